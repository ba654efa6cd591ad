"""Pictures without labels and without a data set: one file, a folder, a glob, or a video.

They become a `Dataset` of frames, so that stages read and write them as any other. The frames of a video lie
at `<video's name>/<number>`, and are read by `Video.frames` alone.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from segshift import runs
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import LabelSpace
from segshift.data.layouts import SUFFIXES, Layout, printable, unusable
from segshift.runs import InputError

_log = logging.getLogger(__name__)

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what it says of broken files, we say in one sentence


@dataclass(frozen=True)
class Video:
    """A video whose frames can be decoded."""

    path: Path
    rate: float
    """Frames a second."""
    count: int

    def frames(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(number, RGB [H, W, 3] uint8) of the wanted frames in order; None takes all. Raises: InputError."""
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        for number in range(self.count):
            capture.grab()
            if wanted is None or number in wanted:
                done, picture = capture.retrieve()
                if not done:
                    raise InputError(f"frame {number} of {self.path} cannot be decoded any more: restore it")
                yield number, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def find(name: str, space: LabelSpace) -> tuple[Dataset, Video | None]:
    """The frames that a path names, and the video where it is one. Pictures are not opened, but for a single
    one.

    Raises: InputError where there is none, and for a video that cannot be decoded.
    """
    path = Path(name)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower()[1:] in SUFFIXES]
        return _dataset(name, path, found, space), None
    if not os.path.lexists(path):
        if not glob.has_magic(name):
            raise InputError(f"no {path}: name a picture, a folder, a glob in quotes, or a video")
        found = [Path(file) for file in glob.glob(name, recursive=True) if os.path.isfile(file)]
        root = Path(os.path.dirname(re.split(r"[*?\[]", name)[0]))
        return _dataset(name, root, found, space), None
    try:
        frames.image_size(path)
    except InputError:
        if path.suffix.lower()[1:] in SUFFIXES or not os.access(path, os.R_OK):
            raise
        video = _opened(path)
        numbers = [Path(path.parent, path.stem, f"{number:06d}.png") for number in range(video.count)]
        return _dataset(name, path.parent, numbers, space), video
    return _dataset(name, path.parent, [path], space), None


def _dataset(name: str, root: Path, found: Iterable[Path], space: LabelSpace) -> Dataset:
    files = sorted(file for file in found if not file.name.startswith("."))
    if not files:
        raise InputError(
            f"no picture in {name}: name a picture, a folder that holds some ({', '.join(SUFFIXES)}), a glob "
            "in quotes, or a video"
        )
    ids: dict[str, Path] = {}
    left_out: list[tuple[str, str]] = []
    for file in files:
        inside = file.relative_to(root)
        id = printable(inside.with_suffix("").as_posix())
        if why := unusable([str(inside)]):
            left_out.append((id, why))
            continue
        if id in ids:
            raise InputError(f"{ids[id]} and {file} are two pictures of one name: rename one")
        ids[id] = file
    if left_out:
        id, why = left_out[0]
        if not ids:
            raise InputError(f"no picture in {name} can be used, the first of {len(files)} is '{id}': {why}")
        _log.warning("%s: %d pictures left out, the first is '%s': %s", name, len(left_out), id, why)
    listed = tuple(Frame(id, "pictures", file, None) for id, file in ids.items())
    tree = Layout(root, (), space, "pictures have no labels")
    return Dataset(name, "pictures", root, "", listed, space, False, tree)


def _opened(path: Path) -> Video:
    """The video in a file, its frames counted. Raises: InputError for what OpenCV cannot decode."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it prints its errors
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(level)
    cure = f"convert it, as with ffmpeg -i {path.name} video.mp4"
    if not capture.isOpened():
        raise InputError(f"{path} is no picture, and no video whose format and codec OpenCV knows: {cure}")
    announced, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    if not capture.read()[0]:
        raise InputError(f"the video {path} has no frame that can be decoded: restore it, or {cure}")
    count = 1
    while capture.grab():  # what the header says is often a guess
        count += 1
    if count < announced:
        _log.warning("%s ends, or breaks off, after %d of the %d frames it announces", path, count, announced)
    return Video(path, rate if 0 < rate < 1000 else 25.0, count)


def overlay(picture: np.ndarray, ids: np.ndarray, space: LabelSpace) -> np.ndarray:
    """A picture [H, W, 3] uint8 with the colours of its classes [H, W] over it, half and half."""
    return cv2.addWeighted(picture, 0.5, space.paint(ids), 0.5, 0)


def write_video(path: Path, rate: float, pictures: Iterable[np.ndarray]) -> None:
    """Write RGB pictures [H, W, 3] uint8 of one size as an MP4 (MPEG-4 part 2), atomically. Raises:
    InputError."""
    with runs.atomic(path) as temporary:
        writer = None
        for picture in pictures:
            if writer is None:
                height, width = picture.shape[:2]
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), codec, rate, (width, height))
                if not writer.isOpened():
                    raise InputError(
                        f"OpenCV cannot write a video of {width}x{height} to {path}: the label PNGs are there"
                    )
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if writer is not None:
            writer.release()
