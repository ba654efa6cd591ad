"""What a training does to its classes on an unlabelled target, seen without a label (ours).

    e_k        share of class k in the labels of the source
    s_k        share of the target's pixels that is predicted as class k now
    p_k        the largest s_k so far

    found      p_k >= e_k / 4: the class was predicted about as often as the source shows it
    lost       found, and s_k < e_k / 8 now
    missing    never found: the target has none of it, or the network does not know it there

Self-training that goes wrong loses its small classes first: their pixels become those of a larger class, and
the score on the source does not show it. Selection rule `target` keeps the last step at which no class was
lost. A network that already segments the source before its first step counts as step 0: it is what to fall
back to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator

from segshift.data.frames import Dataset, Frame
from segshift.data.samples import Pictures
from segshift.methods.base import Method
from segshift.training.validation import predicted, summed

FOUND, LOST = 1 / 4, 1 / 8
"""Of e_k. With one bound for both, a class that is predicted more rarely because it is predicted better
counted as lost (LOG.md)."""
FRAMES = 32
"""Frames of the target that are watched, and of the source whose labels are counted, evenly spread."""
TRAINED = 0.5
"""Share of the source's pixels that a network must have right to count as trained before its first step."""


@dataclass(frozen=True)
class Look:
    """One look at the target; classes by name."""

    shares: dict[str, float]
    lost: list[str]
    missing: list[str]

    def record(self) -> dict[str, Any]:
        """As metrics.jsonl has it."""
        return {"shares": self.shares, "lost": self.lost, "missing": self.missing}


class Watch:
    """The watched frames, and the largest share of every class so far (`peaks` [C])."""

    def __init__(
        self,
        source: Dataset,
        target: Dataset,
        pictures: tuple[Pictures, Pictures],
        kept: Sequence[int],
        accelerator: Accelerator,
        peaks: Sequence[float] | None = None,
    ):
        """pictures: of source and target. kept: train ids that are predicted. peaks: of the checkpoint that
        is continued from.
        """
        self.space, self.kept, self.accelerator = source.space, list(kept), accelerator
        self.source, self.target = _spread(source.frames), _spread(target.frames)
        self.of_source, self.of_target = pictures
        counts = [_count(self.of_source.label(frame).numpy(), self.space.classes) for frame in self.source]
        self.expected = _shares(np.sum(counts, 0))
        self.peaks = np.zeros(self.space.classes) if peaks is None else np.array(peaks, float)

    def look(self, method: Method) -> Look:
        """What the method predicts on the target now; the peaks follow. All processes together."""
        found, _ = self._predict(method, self.target, self.of_target)
        shares = _shares(found)
        self.peaks = np.maximum(self.peaks, shares)
        there = [k for k in self.kept if self.expected[k] > 0]
        found, lost = FOUND * self.expected, LOST * self.expected
        names = self.space.names
        return Look(
            {names[k]: round(float(shares[k]), 6) for k in self.kept},
            [names[k] for k in there if shares[k] < lost[k] and found[k] <= self.peaks[k]],
            [names[k] for k in there if self.peaks[k] < found[k]],
        )

    def segments_source(self, method: Method) -> bool:
        """Whether the method has most of the source's pixels right. All processes together."""
        _, right = self._predict(method, self.source, self.of_source, labelled=True)
        return right >= TRAINED

    def _predict(
        self, method: Method, frames: list[Frame], pictures: Pictures, labelled: bool = False
    ) -> tuple[np.ndarray, float]:
        """Pixels by predicted class [C], and the share of `labelled` pixels that is right."""
        classes = self.space.classes
        counts = np.zeros(classes + 2, np.int64)  # by class, then labelled pixels, then right ones
        method.eval()
        for frame, pred in predicted(method, frames, pictures, self.accelerator):
            counts[:classes] += _count(pred, classes)
            if labelled:
                label = pictures.label(frame).numpy()
                counts[classes:] += ((label < classes).sum(), (label == pred).sum())
        method.train()
        total = summed(counts, self.accelerator)
        return total[:classes], total[-1] / max(total[-2], 1)


def _spread(frames: Sequence[Frame]) -> list[Frame]:
    return [frames[i] for i in sorted({i * len(frames) // FRAMES for i in range(FRAMES)})]


def _count(label: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(label.reshape(-1), minlength=256)[:classes]


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)
