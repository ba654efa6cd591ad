"""Validation: the labelled sets that a training is scored on, and the score of each selection rule.

A rule (`checkpoints.rules`) goes by the mean mIoU of its sets and keeps the step where that is best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from segshift.config import Select, TrainConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.samples import Pictures
from segshift.methods.base import Method
from segshift.runs import InputError
from segshift.scoring import inference, metrics
from segshift.settings import option
from segshift.training import checkpoints

BATCH = 4
"""Images that are validated at once."""


def check(config: TrainConfig) -> None:
    """Raises: InputError when the rule to select by has no validation set."""
    if config.select not in checkpoints.rules(config):
        if config.select == "target":
            raise InputError(
                "--select target needs an unlabelled target data set: name one as --target, with a method "
                "that uses it, or take --select last"
            )
        field = "validation" if config.select == "source" else f"{config.select}_validation"
        raise InputError(
            f"--select {config.select} needs a validation set: name one as {option(field)}, or take "
            "--select last"
        )


def load(config: TrainConfig) -> dict[str, Dataset]:
    """The validation sets by name: source, `transferred/<its folder>/<its subset>`, `oracle/<the same>`.

    Raises: InputError, also when two have one name.
    """
    sets = {"source": frames.load(config.validation)} if config.validation else {}
    for rule, names in (("transferred", config.transferred_validation), ("oracle", config.oracle_validation)):
        for dataset in map(frames.load, names):
            key = f"{rule}/{dataset.root.name}/{dataset.subset}".rstrip("/")
            if key in sets:
                raise InputError(
                    f"two validation sets are called '{key}': name each once, and rename one of two "
                    "folders of a name"
                )
            sets[key] = dataset
    return sets


def size_of(name: str, config: TrainConfig) -> tuple[int, int] | None:
    """Height and width that a set is validated at, as it will be predicted; None for the training size."""
    return config.target_size if name.startswith("oracle/") else None


def predicted(
    method: Method, chosen: Sequence[Frame], pictures: Pictures, accelerator: Accelerator
) -> Iterator[tuple[Frame, np.ndarray]]:
    """This process's share of the frames, each with its predicted train ids [H, W] at the pictures' size.

    method: in evaluation mode. Raises: InputError when memory does not suffice for one image.
    """

    def read(frame: Frame) -> tuple[Tensor, Frame]:
        return pictures.image(frame), frame

    share = chosen[accelerator.process_index :: accelerator.num_processes]
    for images, batch in inference.read_batches(read, [share], BATCH):
        try:
            with accelerator.autocast():
                logits, _ = inference.infer(method, images.to(accelerator.device))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{accelerator.device} has too little memory to validate on one image of "
                f"{tuple(images.shape[2:])}: take a smaller --size, in a new folder"
            ) from error
        yield from zip(batch, inference.classes(logits, (images.shape[2], images.shape[3])), strict=True)


def summed(counts: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """The sum of every process's counts."""
    return accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum").cpu().numpy()


class Validation:
    """The sets, and the best score of every rule so far."""

    def __init__(
        self,
        sets: dict[str, Dataset],
        pictures: dict[str, Pictures],
        kept: tuple[int, ...],
        accelerator: Accelerator,
        best: dict[Select, float],
    ):
        """pictures: of each set. kept: train ids that count."""
        self.sets, self.pictures, self.kept = sets, pictures, kept
        self.accelerator, self.best = accelerator, best

    def scores(self, method: Method) -> tuple[dict[str, dict[str, Any]], dict[Select, float | None]]:
        """mIoU and IoU by class of every set, and the score of every rule, in [0, 1]; None where no class has
        one. All processes together."""
        method.eval()
        found = {name: self._score(method, name) for name in self.sets}
        method.train()
        by_rule: dict[Any, list[float | None]] = {}
        for name, score in found.items():
            by_rule.setdefault(name.split("/")[0], []).append(score["miou"])
        return found, {
            rule: None if None in values else float(np.mean(np.array(values, float)))
            for rule, values in by_rule.items()
        }

    def improved(self, scores: dict[Select, float | None]) -> Iterator[tuple[Select, float]]:
        """The rules whose score is better than before, with it; `best` follows."""
        for rule, score in scores.items():
            if score is not None and score > self.best.get(rule, -1.0):
                self.best[rule] = score
                yield rule, score

    def _score(self, method: Method, name: str) -> dict[str, Any]:
        """mIoU and IoU by class, in [0, 1], of whole images at the training size, or the target's: to choose
        by, not to report.
        """
        dataset, pictures = self.sets[name], self.pictures[name]
        names, count = dataset.space.names, dataset.space.classes
        matrix = np.zeros((count, count + 1), np.int64)
        for frame, pred in predicted(method, dataset.frames, pictures, self.accelerator):
            matrix += metrics.confusion_matrix(pred, pictures.label(frame).numpy(), count)
        total = summed(matrix, self.accelerator)
        scored = [c for c in self.kept if c not in dataset.space.absent]
        total = metrics.restrict(total, scored)
        iou = {names[c]: metrics.plain(value) for c, value in zip(scored, metrics.iou(total), strict=True)}
        return {"miou": metrics.plain(metrics.miou(total)), "iou": iou}
