"""Tiny data sets in every layout, for the tests of everything that reads frames.

Each maker writes pictures of random noise and label maps in which all 19 classes occur, and returns its root.
The same (id, size) gives the same bytes in every layout.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segshift.data.frames import Frame
from segshift.data.labels import CITYSCAPES, SYNTHIA

IDS = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")
Size = tuple[int, int]  # height, width


def picture(id: str, size: Size = (32, 64)) -> np.ndarray:
    """RGB [H, W, 3] uint8."""
    return np.random.default_rng(crc32(id.encode())).integers(0, 256, (*size, 3), np.uint8)


def train_ids(id: str, size: Size = (32, 64)) -> np.ndarray:
    """[H, W] uint8: 4x4 blocks of random classes, a strip of void (255) at the bottom; classes in the first
    rows.
    """
    rng = np.random.default_rng(crc32(id.encode()) + 1)
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    blocks = rng.integers(0, 19, rows * columns).astype(np.uint8)
    blocks[: min(19, len(blocks))] = np.arange(min(19, len(blocks)))
    label = blocks.reshape(rows, columns).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    label[-2:] = 255
    return label


def save(path: Path, array: np.ndarray) -> Path:
    """Write an array as the picture that the suffix of `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def cityscapes(
    root: Path, ids: Iterable[str] = IDS, size: Size = (32, 64), split: str = "train", labelled: bool = True
) -> Path:
    """Ids begin with their city, as in aachen_000000_000019."""
    for id in ids:
        city = id.split("_")[0]
        save(root / f"leftImg8bit/{split}/{city}/{id}_leftImg8bit.png", picture(id, size))
        if labelled:
            label = CITYSCAPES.to_file(train_ids(id, size))
            save(root / f"gtFine/{split}/{city}/{id}_gtFine_labelIds.png", label)
    return root


def acdc(
    root: Path,
    ids: Iterable[str] = ("GOPR0351_frame_000001", "GOPR0351_frame_000158"),
    size: Size = (32, 64),
    condition: str = "night",
    split: str = "val",
    labelled: bool = True,
) -> Path:
    """Ids begin with their sequence, as in GOPR0351_frame_000001."""
    for id in ids:
        sequence = id.split("_")[0]
        save(root / f"rgb_anon/{condition}/{split}/{sequence}/{id}_rgb_anon.png", picture(id, size))
        if labelled:
            label = CITYSCAPES.to_file(train_ids(id, size))
            save(root / f"gt/{condition}/{split}/{sequence}/{id}_gt_labelIds.png", label)
    return root


def gta5(
    root: Path,
    ids: Iterable[str] = ("00001", "00002", "00003"),
    size: Size = (32, 64),
    splits: dict[str, Sequence[int]] | None = None,
) -> Path:
    """Labels are indexed-colour PNGs; `splits` ({"train": [1, 2], "val": [3]}) are written as split.mat."""
    for id in ids:
        save(root / f"images/{id}.png", picture(id, size))
        palette = np.zeros((256, 3), np.uint8)
        palette[list(CITYSCAPES.ids)] = CITYSCAPES.colours
        label = Image.fromarray(CITYSCAPES.to_file(train_ids(id, size)))
        label.putpalette(palette.tobytes())
        (root / "labels").mkdir(exist_ok=True)
        label.save(root / f"labels/{id}.png")
    if splits is not None:
        lists = {f"{name}Ids": np.array(splits.get(name, ()))[:, None] for name in ("train", "val", "test")}
        savemat(root / "split.mat", lists)
    return root


def synthia(root: Path, ids: Iterable[str] = ("0000000", "0000001"), size: Size = (32, 64)) -> Path:
    """Labels are 16-bit PNGs of three channels: class in the red one, instance in the green one."""
    for id in ids:
        save(root / f"RGB/{id}.png", picture(id, size))
        label = np.zeros((*size, 3), np.uint16)
        label[..., 2] = SYNTHIA.to_file(train_ids(id, size))  # OpenCV writes blue, green, red
        label[..., 1] = 300
        (root / "GT/LABELS").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"GT/LABELS/{id}.png"), label)
    return root


def coco(root: Path, ids: Iterable[str] = ("000001", "000002"), size: Size = (32, 64)) -> Path:
    """COCO's panoptic annotations of train: category 10 k + 1 for train id k, two segments of each class."""
    annotations = []
    for id in ids:
        save(root / f"train/{id}.png", picture(id, size))
        label = train_ids(id, size).astype(int)
        drawn = 1000 * label + 70_000 + np.where(np.arange(size[1]) < size[1] // 2, 0, 1)
        drawn[label == 255] = 0
        colours = np.stack([drawn & 255, drawn >> 8 & 255, drawn >> 16], -1).astype(np.uint8)
        save(root / f"annotations/panoptic_train/{id}.png", colours)
        segments = [
            {"id": int(i), "category_id": 10 * ((int(i) - 70_000) // 1000) + 1, "iscrowd": 0}
            for i in np.unique(drawn[drawn > 0])
        ]
        annotations.append({"file_name": f"{id}.png", "segments_info": segments})
    categories = [{"id": 10 * k + 1, "name": name, "isthing": 0} for k, name in enumerate(CITYSCAPES.names)]
    content = {"images": [], "categories": categories[::-1], "annotations": annotations}
    (root / "annotations/panoptic_train.json").write_text(json.dumps(content))
    return root


FOLDER_YAML = """\
images: "{subset}/images/*.jpg"
labels: "{subset}/labels/*.png"
subsets: {train: day, val: day, test: dusk}
classes: [road, tree, car]
ignore: [3]
"""


def folder(
    root: Path,
    ids: Iterable[str] = ("a", "b", "c"),
    size: Size = (32, 64),
    split: str = "train",
    labelled: bool = True,
    yaml: str = FOLDER_YAML,
) -> Path:
    """The user's own: JPEG images, label PNGs of the indices 0 to 2, void 3, and `dataset.yaml`."""
    for id in ids:
        save(root / f"{split}/images/{id}.jpg", picture(id, size))
        if labelled:
            label = train_ids(id, size)
            save(root / f"{split}/labels/{id}.png", np.where(label == 255, 3, label % 3).astype(np.uint8))
    (root / "dataset.yaml").write_text(yaml)
    return root


def mark_transferred(root: Path, ids: Iterable[str]) -> Path:
    """Make a tree look like one that `segshift transfer` wrote."""
    (root / "manifest.jsonl").write_text("".join(f'{{"id": "{id}"}}\n' for id in ids))
    return root


def transferred_line(domain: str, prompt: str = "", strength: float = 0.9) -> dict:
    """What every line of a manifest tells that `segshift transfer` writes, but for the frame's id."""
    made = {"model": "town", "weights": {"unet": "0"}, "sha256": "0"}
    return {"domain": domain, "prompt": prompt, "strength": strength, **made}


CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"


def camvid(folder: Path, onto_cityscapes: bool = False) -> Path:
    """A dataset.yaml for the CamVid frames beside the checkout, in their own 11 classes or in Cityscapes' 19;
    to be loaded as `folder:FILE:day/train`. Skips the test where the frames are absent."""
    if not CAMVID.is_dir():
        pytest.skip(f"no CamVid in {CAMVID}")
    text = (Path(__file__).parent / "camvid.yaml").read_text().replace("root: .", f"root: {CAMVID}")
    file = folder / "camvid.yaml"
    file.write_text(text if onto_cityscapes else text.partition("map:")[0])
    return file


def label_frame(path: Path) -> Frame:
    """A frame whose image and label are one file."""
    return Frame("x", "x", path, path)


# The domain and ids of each layout's tree.
LAYOUTS = {
    "cityscapes": ("clear", IDS),
    "acdc": ("night", ("GOPR0351_frame_000001", "GOPR0351_frame_000158")),
    "gta5": ("game", ("00001", "00002", "00003")),
    "synthia": ("synthia", ("0000000", "0000001")),
    "coco": ("coco", ("000001", "000002")),
    "folder": ("day", ("a", "b", "c")),
}
