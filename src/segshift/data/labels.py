"""Label spaces: class names, colours, and the maps between a data set's own ids and train ids.

Train ids are 0 .. C-1 in Cityscapes order, 255 is ignored everywhere. Ids and colours of Cityscapes are those
of cityscapesScripts, those of SYNTHIA are its README's, those of ADE20K are the ones that the published
`sd-controlnet-seg` weights were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from segshift.runs import InputError

IGNORE = 255
"""Train id of pixels that count in no loss and no metric."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes and how a data set writes them in its label files."""

    name: str
    names: tuple[str, ...]
    """Class names by train id."""
    colours: tuple[Colour, ...]
    """RGB, 0 to 255, by train id."""
    ids: tuple[int, ...]
    """The value a label file holds for each train id."""
    ignored_ids: tuple[int, ...] = (IGNORE,)
    """Values a label file may hold that are no class (void). The first is written for ignored pixels."""
    merged_ids: tuple[tuple[int, int], ...] = ()
    """(value, train id) of further values, where several of a data set's own classes are one class here."""
    absent: tuple[int, ...] = ()
    """Train ids that the data set never labels: their `ids` occur only in predictions."""
    file_colours: tuple[tuple[Colour, int], ...] = ()
    """(RGB, value) of every class and void, for label files drawn in colours."""
    red_channel: bool = False
    """Label files have three channels, the class in the first (SYNTHIA)."""
    panoptic: bool = False
    """Label files that are drawn in colours draw segments, whose classes are in a list beside them (COCO)."""

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names)

    @cached_property
    def _to_train(self) -> np.ndarray:
        table = np.full(65536, IGNORE, np.uint8)
        table[list(self.ids)] = np.arange(self.classes)
        for file_id, train_id in self.merged_ids:
            table[file_id] = train_id
        return table

    @cached_property
    def _known(self) -> np.ndarray:
        table = np.zeros(65536, np.uint8)
        table[[*self.ids, *self.ignored_ids, *(file_id for file_id, _ in self.merged_ids)]] = 1
        return table

    @cached_property
    def _to_file(self) -> np.ndarray:
        table = np.full(
            256, self.ignored_ids[0], np.uint16 if max(*self.ids, self.ignored_ids[0]) > 255 else np.uint8
        )
        table[: self.classes] = self.ids
        return table

    @cached_property
    def _palette(self) -> np.ndarray:
        table = np.zeros((256, 3), np.uint8)
        table[: self.classes] = self.colours
        return table

    def to_train(self, file_ids: np.ndarray) -> np.ndarray:
        """File ids [H, W] (integers, 0 to 65535) to train ids [H, W] uint8; void and unknown become 255."""
        return _look_up(self._to_train, file_ids)

    def to_file(self, train_ids: np.ndarray) -> np.ndarray:
        """Train ids [H, W] uint8 to the values this data set's label files hold."""
        return _look_up(self._to_file, train_ids)

    def paint(self, train_ids: np.ndarray) -> np.ndarray:
        """Train ids [H, W] uint8 to an RGB picture [H, W, 3] uint8; ignored pixels are black."""
        return self._palette[train_ids]

    def unknown(self, file_ids: np.ndarray, *, truth: bool = False) -> list[int]:
        """Values in `file_ids` (0 to 65535) that are neither a class nor void, ascending.

        `truth`: the values are of a label, not of a prediction: classes that the data set never labels are
        unknown, too.
        """
        known = self._known
        if truth and self.absent:
            known = known.copy()
            known[[self.ids[train_id] for train_id in self.absent]] = 0
        there = _look_up(known, file_ids).view(bool)
        return [] if there.all() else np.unique(file_ids[~there]).tolist()


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """table[values]; by OpenCV, several times faster, where `values` are 8 bit and not empty."""
    return cv2.LUT(values, table[:256]) if values.dtype == np.uint8 and values.size else table[values]


_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_COLOURS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_VOID_COLOURS = (
    ((0, 0, 0), 0), ((20, 20, 20), 4), ((111, 74, 0), 5), ((81, 0, 81), 6), ((250, 170, 160), 9),
    ((230, 150, 140), 10), ((180, 165, 180), 14), ((150, 100, 100), 15), ((150, 120, 90), 16),
    ((0, 0, 90), 29),
    ((0, 0, 110), 30),
)  # fmt: skip
_SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)

CITYSCAPES_VOID_COLOURS: dict[int, Colour] = dict.fromkeys(range(35), (0, 0, 0)) | {
    5: (111, 74, 0), 6: (81, 0, 81), 9: (250, 170, 160), 10: (230, 150, 140), 14: (180, 165, 180),
    15: (150, 100, 100), 16: (150, 120, 90), 18: (153, 153, 153), 29: (0, 0, 90), 30: (0, 0, 110),
    34: (0, 0, 142),
}  # fmt: skip
"""Colours of Cityscapes' own void ids in its colour files (those of the classes are not used); 34 is GTA5's
licence plate."""

CITYSCAPES = LabelSpace(
    "cityscapes",
    _NAMES,
    _COLOURS,
    _CITYSCAPES_IDS,
    tuple(i for i in range(35) if i not in _CITYSCAPES_IDS),
    file_colours=(*zip(_COLOURS, _CITYSCAPES_IDS, strict=True), *_VOID_COLOURS),
)
"""Cityscapes `labelIds` (0 to 33); ACDC and GTA5 write the same, GTA5 also 34 (licence plate, void)."""

SYNTHIA = LabelSpace(
    "synthia",
    _NAMES,
    _COLOURS,
    _SYNTHIA_IDS,
    tuple(i for i in range(23) if i not in _SYNTHIA_IDS),
    red_channel=True,
)
"""SYNTHIA RAND_CITYSCAPES class ids (0 void, 13 parking, 14 road work, 22 lane marking are no class)."""

CLASS_SETS: dict[int, tuple[int, ...]] = {
    19: tuple(range(19)),
    16: tuple(i for i in range(19) if i not in (9, 14, 16)),  # without terrain, truck, train
    13: tuple(i for i in range(19) if i not in (3, 4, 5, 9, 14, 16)),  # also without wall, fence, pole
}
"""Explicit index sets of the 19, 16 and 13 class protocols, in train ids."""


def class_set(classes: int | None, space: LabelSpace, name: str) -> tuple[int, ...]:
    """Train ids of a class set; every one of `space` for None. name: of the data set, for messages.

    Raises: InputError when the space has no such set.
    """
    if classes is None:
        return tuple(range(space.classes))
    if space.names != CITYSCAPES.names:
        raise InputError(
            f"{name} has the classes of '{space.name}', expected Cityscapes' 19 for --classes {classes}: "
            f"leave it out to take all {space.classes}"
        )
    return CLASS_SETS[classes]


ADE20K_COLOURS: dict[str, Colour] = {
    "road": (140, 140, 140), "sidewalk": (235, 255, 7), "building": (180, 120, 120), "wall": (120, 120, 120),
    "fence": (255, 184, 6), "pole": (51, 0, 255), "traffic light": (41, 0, 255),
    "traffic sign": (255, 5, 153),
    "vegetation": (4, 200, 3), "terrain": (4, 250, 7), "sky": (6, 230, 230), "person": (150, 5, 61),
    "rider": (150, 5, 61), "car": (0, 102, 200), "truck": (255, 0, 20), "bus": (255, 0, 245),
    "train": (255, 0, 245), "motorcycle": (163, 0, 255), "bicycle": (255, 245, 0),
    "tree": (4, 200, 3), "sign": (255, 5, 153), "pedestrian": (150, 5, 61), "bicyclist": (255, 245, 0),
}  # fmt: skip
"""ADE20K colour of the nearest of ADE20K's 150 classes, by class name: a rider is a person there, a
motorcycle a minibike, a sign a signboard, terrain grass; a train, which ADE20K does not have, is a bus."""
