"""What a training reads: its data sets, checked against each other, and the pictures of their frames."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segshift import execution, records, runs
from segshift.config import TrainConfig
from segshift.data import frames, samples, transforms
from segshift.data.frames import Dataset
from segshift.data.labels import class_set
from segshift.runs import InputError
from segshift.training import validation

_log = logging.getLogger(__name__)

FEW = 10
"""Images of a target below which a training is warned of."""


@dataclass(frozen=True)
class TrainingData:
    """Everything that is read, checked."""

    config: TrainConfig
    source: Dataset
    pairs: list[samples.Pair]
    target: Dataset | None
    validation: dict[str, Dataset]
    """As `validation.load`."""
    trained: tuple[Dataset, ...]
    """Source, more sources, transferred trees, target."""
    kept: tuple[int, ...]
    """Train ids that are learnt and predicted."""

    def digest(self) -> str:
        """Of what is trained on: the ids of every data set's frames, in order."""
        return hashlib.sha256(
            repr([[frame.id for frame in d.frames] for d in self.trained]).encode()
        ).hexdigest()

    def pictures(self, dataset: Dataset, size: transforms.Size | None = None) -> samples.Pictures:
        """Of `dataset` at `size`; None takes the training size."""
        more = [*self.validation.values(), *([self.target] if self.target else [])]
        images = sum(len(pair[1]) + 1 for pair in self.pairs) + sum(len(d.frames) for d in more)
        labels = len(self.pairs) + sum(len(d.frames) for d in self.validation.values())
        trained_at = self.config.size
        assert trained_at is not None
        pixels = trained_at[0] * trained_at[1]
        # Every reader has a cache of its own.
        readers = max(1, self.config.workers) * execution.current().local_count
        keep = pixels * (3 * images + labels) * readers < samples.CACHE_BYTES
        others = {
            f.label: d.space for d in self.trained if d.space != dataset.space for f in d.frames if f.label
        }
        return samples.Pictures(size or trained_at, dataset.space, self.kept, keep, others)


def read(config: TrainConfig, source: Dataset) -> TrainingData:
    """Raises: InputError for data that is incomplete or does not fit together."""
    sets = validation.load(config)
    more = [frames.load(name) for name in config.more_sources]
    target = frames.load(config.target) if config.target else None
    for dataset in (source, *more, *sets.values(), *([target] if target else [])):
        if dataset.space.names != source.space.names:
            raise InputError(
                f"{dataset.name} has the classes of '{dataset.space.name}' and {source.name} those of "
                f"'{source.space.name}', expected the same: map one onto the other in its dataset.yaml"
            )
        if dataset is not target:
            frames.require_labels(dataset)
            frames.require_sizes(dataset)
    if target is not None and len(target.frames) < FEW:
        _log.warning(
            "%s has %d image(s): the training learns these and not their domain; give it tens of images",
            target.name,
            len(target.frames),
        )
    known = frames.images_of((source, *more))
    for name, dataset in sets.items():
        if seen := len(frames.images_of((dataset,)) & known):
            _log.warning(
                "%d of %d frames of %s are trained on too: scores on %s mean nothing",
                seen,
                len(dataset.frames),
                dataset.name,
                name,
            )
    transferred = [frames.load(name) for name in config.transferred]
    pairs = samples.pair_up(source, transferred)
    pairs += [(frame, ()) for dataset in more for frame in dataset.frames]
    trained = (source, *more, *transferred, *([target] if target else []))
    kept = class_set(config.classes, source.space, config.source)
    return TrainingData(config, source, pairs, target, sets, trained, kept)


def rare_classes(config: TrainConfig, data: TrainingData) -> samples.RareClasses | None:
    """What draws frames with rare classes; None where none is asked for.

    Raises: InputError when the statistics are missing or of other frames.
    """
    if config.rare_classes is None:
        return None
    path = Path(config.rare_classes) / "classes.jsonl"
    counts = {line["id"]: line["pixels"] for line in runs.read_lines(path, records.ClassPixels)}
    unknown = [
        pair[0].id for pair in data.pairs if len(counts.get(pair[0].id, ())) != data.source.space.classes
    ]
    if unknown:
        raise InputError(
            f"{path} does not count the classes of {len(unknown)} frames (first '{unknown[0]}'): run "
            f"segshift check on {config.source} into that folder; it counts one data set, so --more-sources "
            "must have the same frames"
        )
    table = np.array([counts[pair[0].id] for pair in data.pairs], np.int64)
    table[:, sorted(set(range(data.source.space.classes)) - set(data.kept))] = 0
    if not table.any():
        raise InputError(
            f"{path} counts no pixel of any class that is trained on: run segshift check again on labels "
            "that hold some, or leave --rare-classes out"
        )
    return samples.RareClasses(table, config.rare_temperature)
