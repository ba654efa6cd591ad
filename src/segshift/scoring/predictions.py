"""Prediction PNGs: what they hold.

A folder of predictions mirrors the data set (`frames.place`): the prediction of an image lies at the image's
path relative to the data set's root, as PNG. So cityscapesScripts (pattern `ulm_000000_000019*.png`) and the
benchmark servers find `leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png`, and a folder predicted for a
whole data set also serves its subsets. Values are the data set's official ids, at the label's size, as its
label files hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segshift import runs
from segshift.config import CHECKPOINTS
from segshift.data import frames
from segshift.data.labels import LabelSpace


def read(file: Path, space: LabelSpace) -> np.ndarray:
    """Train ids [H, W] uint8; void becomes 255.

    Raises: InputError on an unreadable file, on several channels and on values outside the label space.
    """
    with frames.open_picture(file, "delete it and run segshift predict again") as picture:
        ids, channels = frames.one_channel(picture), len(picture.getbands())
    if ids is None:
        raise runs.InputError(
            f"the prediction {file} has {channels} channels, expected one holding {space.name} ids: "
            "write ids, not colours"
        )
    values = 256 if ids.dtype == np.uint8 else 65536
    unknown = space.unknown(np.flatnonzero(cv2.calcHist([ids], [0], None, [values], [0, values])))
    if unknown:
        raise runs.InputError(
            f"the prediction {file} holds {unknown[:5]}, which {space.name} does not know: "
            f"write its official ids ({space.names[0]} is {space.ids[0]})"
        )
    return space.to_train(ids)


def read_plain(file: Path) -> np.ndarray | None:
    """Values [H, W] uint8 of an 8-bit grey PNG, the format of predictions and of most labels, unchecked.

    None for any other file, and for one that is missing, broken or larger than `frames.MAX_PIXELS`.
    """
    try:
        content = np.fromfile(file, np.uint8)
    except OSError:
        return None
    header = content[:26].tobytes()  # signature, then width, height, bit depth and colour type
    width, height = int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:] != b"\x08\x00" or width * height > frames.MAX_PIXELS:
        return None
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)


def write(file: Path, train_ids: np.ndarray, space: LabelSpace) -> None:
    """Write train ids [H, W] uint8 in the official ids, atomically. Raises: InputError."""
    # Unfiltered rows: for flat areas of ids the files are smaller and decode twice as fast.
    settings = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 4]
    done, data = cv2.imencode(".png", space.to_file(train_ids), settings)
    assert done
    with runs.atomic(file) as temporary:
        temporary.write_bytes(data.tobytes())


def how(model: Mapping[str, Any] | None) -> str:
    """What model.json beside predictions says of them: the rule that selected the checkpoint, how it was
    sampled, and input size, window and seed where those were chosen."""
    if model is None:
        return "selection of the checkpoint unknown"
    return ", ".join(filter(None, (model["selection"], details(model))))


def selection(rules: Sequence[str]) -> str:
    """How the checkpoint that these selection rules choose is called."""
    return "checkpoint: " + ", ".join(CHECKPOINTS.get(rule, rule) for rule in rules)


def details(model: Mapping[str, Any]) -> str:
    """What `how` says, without the checkpoint."""
    return ", ".join(filter(None, (model.get("sampling"), model.get("input"))))
