"""What the report page draws: thumbnails, line charts, diagrams of confidence and heat maps as inline SVG.

    image   RGB [H, W, 3] uint8
    label   train ids [H, W] uint8, 255 void

Colours of charts are CSS variables of the page (--s0, --s1, ... a series, --good, --bad), so they follow its
light and dark scheme.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segshift.runs import InputError

SERIES = 6
"""Colours of series that the page defines; more series begin again."""
VOID = (58, 60, 66)
"""Colour of void in pictures of labels: unlike black, no class of Cityscapes is near it."""


def fit(shape: tuple[int, ...], width: int) -> tuple[int, int]:
    """(width, height) of a picture [H, W, ...] at `width` pixels or less."""
    scale = min(1.0, width / shape[1])
    return round(shape[1] * scale), max(1, round(shape[0] * scale))


def thumbnail(image: np.ndarray, size: tuple[int, int], *, flat: bool = False) -> str:
    """The image at `size` (width, height) as WebP in base64; `flat`: colours of classes, kept exactly."""
    image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "WEBP", lossless=flat, quality=100 if flat else 72, method=4)
    return base64.b64encode(memory.getvalue()).decode()


def paint(label: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A label as a picture, void in dark grey."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(colours)] = colours
    return table[label]


def heat(file: Path) -> np.ndarray:
    """A 16-bit map of [0, 1] as a picture [H, W, 3]: dark where it is 0, through red to bright yellow where
    it is 1.
    """
    values: np.ndarray | None = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise InputError(f"cannot read the map {file}: predict again with --uncertainty into a new folder")
    return cv2.cvtColor(
        cv2.applyColorMap((values >> 8).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
    )


def thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` points of a curve: means over equal shares of it."""
    if len(points) <= most:
        return list(points)
    return [tuple(np.mean(part, axis=0)) for part in np.array_split(np.asarray(points), most)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    if not high > low:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    return [i * step for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def line_chart(title: str, curves: dict[int, list[tuple[float, float]]], names: Sequence[str]) -> str:
    """Curves (x, y) by index of their series in `names`, as SVG. Curves that are empty are no part of
    `curves`.
    """
    width, height, left, bottom, top = 380, 210, 46, 24, 10
    curves = {index: thin(points) for index, points in curves.items()}
    xs, ys = zip(*(point for points in curves.values() for point in points), strict=True)
    x_ticks, y_ticks = ticks(min(0, *xs), max(xs)), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (width - left - 10), height - bottom - up * (height - bottom - top)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        _, at = place(x_ticks[0], y)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{width - 10}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in x_ticks:
        at, _ = place(x, y_ticks[0])
        parts.append(f'<text x="{at:.1f}" y="{height - 6}" text-anchor="middle">{_short(x)}</text>')
    for index, points in curves.items():
        colour = f"var(--s{index % SERIES})"
        spots = [place(*point) for point in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(
            f'<path class="curve" style="stroke:{colour}" '
            f'd="M{path}"><title>{escape(names[index])}</title></path>'
        )
        if len(spots) <= 12:
            parts += [f'<circle r="2.5" cx="{x:.1f}" cy="{y:.1f}" style="fill:{colour}"/>' for x, y in spots]
    return "".join(parts) + "</svg>"


def _short(value: float) -> str:
    if 0 < abs(value) < 0.01:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10**power:.3g}e{power}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix [C, C + 1] as SVG, every row in shares of its truth; the last column is void.

    Cells below half a percent are left empty, which keeps the page small.
    """
    cell, left, top = 17, 92, 84
    columns = [*names, "void"] if matrix[:, -1].any() else list(names)
    # The last name leans to the right
    width, height = (
        left + cell * len(columns) + 44,
        top + cell * len(names) + 4,
    )
    parts = [f'<svg class="heat" viewBox="0 0 {width} {height}" role="img" aria-label="confusion matrix">']
    parts.append(
        f'<rect class="field" x="{left}" y="{top}" width="{cell * len(columns)}" '
        f'height="{cell * len(names)}"/>'
    )
    for j, name in enumerate(columns):
        x = left + (j + 0.5) * cell + 3
        parts.append(f'<text transform="translate({x:g} {top - 6}) rotate(-55)">{escape(name)}</text>')
    for i, name in enumerate(names):
        y = top + i * cell
        parts.append(f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        total = matrix[i].sum()
        for j in range(len(columns)):
            share = matrix[i, j] / total if total else 0.0
            if share < 0.005:
                continue
            kind = "hit" if i == j else "miss"
            tip = f"{escape(name)} → {escape(columns[j])}: {100 * share:.1f} %"
            spot = f'x="{left + j * cell}" y="{y}" width="{cell}" height="{cell}"'
            parts.append(
                f'<rect class="{kind}" {spot} '
                f'fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{tip}</title></rect>'
            )
    return "".join(parts) + "</svg>"


def reliability(found: dict, colour: int) -> str:
    """Accuracy against confidence (`calibration.reliability`) as SVG: bars of accuracy on the diagonal that a
    calibrated network meets, and below them the share of the pixels in each bin."""
    side, left, top, foot = 190, 34, 8, 34
    bottom, bins = top + side, found["bins"]
    step, total, most = side / bins, sum(found["count"]), max(found["count"])
    width, height = left + side + 10, bottom + foot + 22
    parts = [
        f'<svg class="chart reliability" viewBox="0 0 {width} {height}" role="img" aria-label="reliability '
        'diagram">'
    ]
    for share in (0, 0.5, 1):
        x, y = left + share * side, bottom - share * side
        parts.append(f'<path class="grid" d="M{left} {y:g}H{left + side}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:g}" text-anchor="end">{100 * share:g}</text>')
        parts.append(f'<text x="{x:g}" y="{height - 4}" text-anchor="middle">{100 * share:g}</text>')
    for b, (count, accuracy) in enumerate(zip(found["count"], found["accuracy"], strict=True)):
        if not count:
            continue
        x, tall, share = left + b * step, accuracy * side, count / most
        tip = (
            f"confidence {100 * b / bins:g} to {100 * (b + 1) / bins:g} %: {100 * accuracy:.1f} % right, "
            f"{100 * count / total:.1f} % of the pixels"
        )
        size = f'x="{x + 0.6:.1f}" width="{step - 1.2:.1f}"'
        parts.append(
            f'<g><title>{tip}</title><rect {size} y="{bottom - tall:.1f}" height="{tall:.1f}" '
            f'style="fill:var(--s{colour % SERIES})"/>'
        )
        parts.append(
            f'<rect class="share" {size} y="{bottom + 6:g}" height="{max(0.6, share * (foot - 6)):.1f}"/></g>'
        )
    parts.append(f'<path class="diagonal" d="M{left} {bottom}L{left + side} {top}"/>')
    return "".join(parts) + "</svg>"


def agreement(points: Sequence[tuple[float, float, int, str]]) -> str:
    """Predicted against true mIoU as SVG: points (true, predicted, series, what) with ratios in [0, 1], and
    the diagonal on which a prediction is right."""
    side, left, top, foot = 190, 34, 8, 34
    bottom, width = top + side, left + side + 10
    marks = ticks(100 * min(v for p in points for v in p[:2]), 100 * max(v for p in points for v in p[:2]))
    low, high = marks[0], marks[-1]

    def along(value: float) -> float:
        return side * (value - low) / (high - low)

    parts = [
        f'<svg class="chart reliability" viewBox="0 0 {width} {bottom + foot}" role="img" '
        'aria-label="predicted against true mIoU">'
    ]
    for mark in marks:
        x, y = left + along(mark), bottom - along(mark)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{left + side}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{mark:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{left + side / 2:g}" y="{bottom + 31}" text-anchor="middle">true mIoU, %</text>')
    parts.append(f'<path class="diagonal" d="M{left} {bottom}L{left + side} {top}"/>')
    for true, guess, series, what in points:
        x, y = left + along(100 * true), bottom - along(100 * guess)
        tip = f"{escape(what)}: predicted {100 * guess:.1f}, true {100 * true:.1f}"
        parts.append(
            f'<circle r="4" cx="{x:.1f}" cy="{y:.1f}" '
            f'style="fill:var(--s{series % SERIES})"><title>{tip}</title></circle>'
        )
    return "".join(parts) + "</svg>"
