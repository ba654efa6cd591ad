"""What the report page draws: thumbnails as data URIs, error overlays, line charts and heat maps as inline SVG.

    image   RGB [H, W, 3] uint8
    label   train ids [H, W] uint8, 255 void

Colours of charts are CSS variables of the page (--s0, --s1, ... a series, --good, --bad), so they follow its light and
dark scheme.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from PIL import Image

from segshift.labels import IGNORE

SERIES = 6
"""Colours of series that the page defines; more series begin again."""
VOID = (58, 60, 66)
"""Colour of void in pictures of labels: unlike black, no class of Cityscapes is near it."""
WRONG = (255, 64, 48)


def thumbnail(image: np.ndarray, width: int, *, flat: bool = False) -> str:
    """The image at `width` pixels or less, as a WebP data URI; `flat`: colours of classes, kept exactly."""
    scale = min(1.0, width / image.shape[1])
    size = (round(image.shape[1] * scale), max(1, round(image.shape[0] * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "WEBP", lossless=flat, quality=80 if not flat else 100, method=4)
    return "data:image/webp;base64," + base64.b64encode(memory.getvalue()).decode()


def paint(label: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A label as a picture, void in dark grey."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(colours)] = colours
    return table[label]


def errors(image: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """The image in faint grey with wrong pixels in red; void in dark grey, as it counts nowhere.

    `label` and `pred` may be of another size than the image; the result has theirs.
    """
    height, width = label.shape
    grey = cv2.cvtColor(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    picture = (96 + 0.5 * grey)[..., None].repeat(3, axis=2)
    wrong = (pred != label) & (label != IGNORE)
    picture[wrong] = 0.25 * picture[wrong] + 0.75 * np.array(WRONG)
    picture[label == IGNORE] = VOID
    return picture.round().astype(np.uint8)


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
    """Curves (x, y) by index of their series in `names`, as SVG. Curves that are empty are no part of `curves`."""
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
        parts.append(f'<path class="curve" style="stroke:{colour}" d="M{path}"><title>{escape(names[index])}</title></path>')
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
    width, height = left + cell * len(columns) + 44, top + cell * len(names) + 4  # the last name leans to the right
    parts = [f'<svg class="heat" viewBox="0 0 {width} {height}" role="img" aria-label="confusion matrix">']
    parts.append(f'<rect class="field" x="{left}" y="{top}" width="{cell * len(columns)}" height="{cell * len(names)}"/>')
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
            parts.append(f'<rect class="{kind}" {spot} fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{tip}</title></rect>')
    return "".join(parts) + "</svg>"
