"""Write the town as users unpack the published data sets: Cityscapes, ACDC, GTA5, SYNTHIA (RAND_CITYSCAPES).

    OUT/cityscapes   clear day, official labelIds
    OUT/acdc         night, fog, rain, snow, official labelIds; test frames without labels
    OUT/gta5         game, indexed-colour labels in Cityscapes colours, split.mat
    OUT/synthia      a soft rendering from a higher view, 16-bit labels with the class in the red channel

A frame is a function of (seed, part, index, size) alone, so neither the number of processes nor an
interruption changes a byte. Source: ours; the trees are those of the data sets' own archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from segshift import execution, outputs, runs
from segshift.config import TownConfig
from segshift.data.labels import CITYSCAPES, SYNTHIA
from segshift.runs import InputError
from segshift.town import scenes, weather

TARGETS = ("night", "fog", "rain", "snow")
"""Conditions of the ACDC tree."""

PARTS = (
    "cityscapes/train",
    "cityscapes/val",
    *(f"acdc/{c}/{s}" for c in TARGETS for s in ("train", "val", "test")),
    "gta5/train",
    "gta5/val",
    "synthia",
)
"""What can be counted. The order is part of the seed: append, never reorder."""

_CITIES = {"train": ("amselfurt", "birkenau", "dornbach", "eichwalde"), "val": ("fernholm", "grauburg")}
_PER_SEQUENCE = 25  # frames in a drive
_MOST = 100_000  # frames a part


@dataclass(frozen=True)
class _Job:
    """One frame to write."""

    out: Path
    seed: int
    part: str
    index: int
    first: int  # number of the part's first frame, where a data set numbers through (gta5)
    height: int
    width: int

    def files(self) -> tuple[Path, Path | None]:
        """Image and label; a test frame of ACDC has no label."""
        name, *steps = self.part.split("/")
        drive, frame = divmod(self.index, _PER_SEQUENCE)
        root = self.out / name
        if name == "cityscapes":
            cities = _CITIES[steps[0]]
            city = cities[drive % len(cities)]
            id = f"{steps[0]}/{city}/{city}_{drive:06d}_{frame:06d}"
            return root / f"leftImg8bit/{id}_leftImg8bit.png", root / f"gtFine/{id}_gtFine_labelIds.png"
        if name == "acdc":
            drive_name = f"TOWN{TARGETS.index(steps[0])}{('train', 'val', 'test').index(steps[1])}{drive:02d}"
            id = f"{steps[0]}/{steps[1]}/{drive_name}/{drive_name}_frame_{frame + 1:06d}"
            label = root / f"gt/{id}_gt_labelIds.png" if steps[1] != "test" else None
            return root / f"rgb_anon/{id}_rgb_anon.png", label
        if name == "gta5":
            number = f"{self.first + self.index + 1:05d}.png"
            return root / "images" / number, root / "labels" / number
        return root / f"RGB/{self.index:07d}.png", root / f"GT/LABELS/{self.index:07d}.png"

    def done(self) -> bool:
        return all(path is None or path.exists() for path in self.files())

    def write(self) -> None:
        """Draw the scene and write image and label, the label last: it completes the frame."""
        name, *steps = self.part.split("/")
        scene = (self.seed * len(PARTS) + PARTS.index(self.part)) * _MOST + self.index
        world = scenes.HIGH_VIEW if name == "synthia" else scenes.BENCHMARK
        layers = scenes.draw(world, scene, self.height, self.width)
        condition = {
            "cityscapes": "clear",
            "acdc": steps[0] if steps else "",
            "gta5": "game",
            "synthia": "soft",
        }[name]
        image_path, label_path = self.files()
        _save(image_path, _png(weather.render(layers, (condition,), 0)))
        if label_path:
            encode = {"gta5": _indexed, "synthia": _sixteen_bit}.get(name, _label_ids)
            _save(label_path, encode(layers.label_at_size()))


def counts_of(config: TownConfig) -> dict[str, int]:
    """Frames of every part that a configuration asks for."""
    amounts = {"train": config.target_train, "val": config.target_val}
    return {
        "cityscapes/train": config.source_train,
        "cityscapes/val": config.source_val,
        **{f"acdc/{c}/{s}": n for c in TARGETS for s, n in amounts.items()},
        **{f"gta5/{s}": n for s, n in amounts.items()},
        "synthia": config.source_train,
    }


def write(
    out: Path,
    *,
    seed: int = 0,
    height: int = 128,
    width: int = 256,
    counts: Mapping[str, int],
    workers: int = 0,
) -> Path:
    """Write the frames that `counts` names by part (see PARTS) under `out`; complete frames are skipped.

    `workers`: processes, 0 for every core. Returns `out`. Raises: InputError on unknown parts, sizes, counts.
    """
    unknown = sorted(set(counts) - set(PARTS))
    if unknown:
        raise InputError(f"no part {', '.join(unknown)} in the town: name some of {', '.join(PARTS)}")
    if min(height, width) < 32:
        raise InputError(f"a town of {height}x{width} pixels: choose 32 or more each way")
    if seed < 0 or not all(0 <= n < _MOST for n in counts.values()):
        raise InputError(
            f"seed {seed} and {max(counts.values(), default=0)} frames a part: choose a seed of 0 or more "
            f"and 0 to {_MOST - 1} frames"
        )
    first = {"gta5/val": counts.get("gta5/train", 0)}
    jobs = [
        _Job(out, seed, part, i, first.get(part, 0), height, width)
        for part in PARTS
        for i in range(counts.get(part, 0))
    ]
    todo = [job for job in jobs if not job.done()]
    if counts.get("gta5/train") or counts.get("gta5/val"):
        _save(out / "gta5/split.mat", _split(counts.get("gta5/train", 0), counts.get("gta5/val", 0)))
    workers = min(workers or runs.cpus(), -(-len(todo) // 32))  # a process takes a second to start
    with runs.progress("town", len(jobs), done=len(jobs) - len(todo)) as bar:
        if workers <= 1:
            for job in todo:
                job.write()
                bar.advance()
        else:
            chunks = [todo[i : i + 8] for i in range(0, len(todo), 8)]
            with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
                with execution.starting_workers():
                    futures = [pool.submit(_write_all, chunk) for chunk in chunks]
                try:
                    for future in as_completed(futures):
                        bar.advance(future.result())
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return out


def town(config: TownConfig, out: str | Path) -> Path:
    """The stage: write the town of a configuration under `out`, or continue it. Raises: InputError."""
    return write(
        outputs.begin(out, "town", config, free=("workers",)),
        seed=config.seed,
        height=config.height,
        width=config.width,
        counts=counts_of(config),
        workers=config.workers,
    )


def _write_all(jobs: list[_Job]) -> int:
    for job in jobs:
        job.write()
    return len(jobs)


def _one_thread() -> None:
    cv2.setNumThreads(1)  # one process a core already


def _save(path: Path, data: bytes) -> None:
    with runs.atomic(path) as temporary:
        temporary.write_bytes(data)


def _png(image: np.ndarray) -> bytes:
    """RGB [H, W, 3] or grey [H, W], 8 or 16 bit, as PNG."""
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def _label_ids(label: np.ndarray) -> bytes:
    """Official Cityscapes labelIds, 8-bit grey."""
    return _png(CITYSCAPES.to_file(label))


def _indexed(label: np.ndarray) -> bytes:
    """labelIds as indices into a palette of Cityscapes' colours, as in GTA5's labels."""
    palette = np.zeros((256, 3), np.uint8)
    for colour, value in CITYSCAPES.file_colours:
        palette[value] = colour
    image = Image.fromarray(CITYSCAPES.to_file(label))
    image.putpalette(palette.tobytes())  # turns grey into indexed colour
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _sixteen_bit(label: np.ndarray) -> bytes:
    """SYNTHIA's labels: class in red, instance (none here, 0) in green, 16 bits a channel."""
    out = np.zeros((*label.shape, 3), np.uint16)
    out[..., 0] = SYNTHIA.to_file(label)
    return _png(out)


def _split(train: int, val: int) -> bytes:
    """GTA5's split.mat: 1-based frame numbers as column vectors; no test frames here."""
    data = BytesIO()
    ids = np.arange(1, train + val + 1, dtype=np.uint16 if train + val < 65536 else np.uint32)[:, None]
    savemat(data, {"trainIds": ids[:train], "valIds": ids[train:], "testIds": ids[:0]})
    header = b"MATLAB 5.0 MAT-file, frames of the embedded town".ljust(116)  # scipy's own holds the date
    return header + data.getvalue()[116:]
