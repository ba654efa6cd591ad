"""The generation gate (ours): did the layout survive a transfer, and did the picture move towards the prompt?

A network f that was trained on source images alone looks at the transferred image. Where it finds the label's
classes again the layout is still there; where it does not, either the layout is gone or the domain is too
strange for f. The first tells one frame from the others of its domain, the second does not. So a score is
compared with what f reached on the same frame's source, times what the domain leaves of it on average. The
thresholds come from source images; that average alone from first draws, and without it the gate would reject
the domain. So a class that the generator loses in every frame looks like a strange one: neither is judged,
and a warning names them.

| symbol | meaning |
|---|---|
| x, x', y | source image, transferred image, label: train ids, 255 void |
| x~ | D(E(x)), the source image through the autoencoder alone: no prompt, no noise, its label holds |
| R | labelled pixels that belong together: those of one class, or a connected region of one class |
| a_R(x) | agreement: share of R's pixels p with f(x)_p = y_p |
| k_c | what the domain leaves of f's agreement with c: min(1, sum a_c(x') / sum a_c(x)) over first draws |
| e_R, e_c | what f is expected to agree with: k_c a_R(x), k_c a_c(x) |
| r_R | score of a region: min(1, a_R(x') / e_R) |
| S(x') | score of a frame: sum_c min(a_c(x'), e_c) / sum_c e_c over the classes c of y |
| G(x, c) | how much better c explains x than the empty prompt does (segshift.generators.movement) |

Regions are the connected regions of the label, not cells of a grid: what a generator loses is a thing (a car
turned into road, a sign that is gone), and a cell would hold half of it and much else. Shapes: pictures [H,
W, 3] uint8, labels, predictions and region maps [H, W], agreements [C] by train id or [n] by region, nan
where there is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch

from segshift.config import GateConfig
from segshift.data import transforms
from segshift.data.labels import IGNORE, LabelSpace
from segshift.methods.base import Method
from segshift.runs import InputError
from segshift.scoring import inference, metrics

SEEN = 0.5
"""A region is judged where f is expected to agree with at least this share of it: what it does not see it
cannot miss."""

PILOT = 32
"""First draws of so many frames tell k_c of a domain."""


@dataclass(frozen=True)
class Thresholds:
    """Scores from which on a frame, or a region of it, passes."""

    frame: float
    region: float


@dataclass(frozen=True, eq=False)
class SourceView:
    """A frame's label, and what f makes of its source image."""

    label: np.ndarray
    index: np.ndarray
    """Region of every pixel, int32 [H, W]; 0 for none."""
    classes: np.ndarray
    """a_c(x), [C]."""
    regions: np.ndarray
    """a_R(x), [n]."""

    @cached_property
    def region_classes(self) -> np.ndarray:
        """Class of each region, [n]."""
        numbers, first = np.unique(self.index, return_index=True)
        return self.label.ravel()[first[numbers > 0]]


@dataclass(frozen=True, eq=False)
class Verdict:
    """One draw, judged."""

    layout: bool
    """S(x') is at its threshold or above."""
    moved: bool
    """The picture moved towards the prompt, or need not."""
    score: float
    """S(x'); nan where f is expected to agree with the label nowhere: such a frame cannot be judged, and
    passes."""
    classes: np.ndarray
    """a_c(x'), [C]."""
    judged: int
    """Regions that f is expected to see."""
    failed: int
    """Those of them under the threshold."""
    failing: np.ndarray
    """Their pixels, bool [H, W]."""
    lowest: float
    """The least r_R; 1 where no region is judged."""
    movement: float | None
    """G(x', c) - G(x, c); 0 is the source itself, None where the generator cannot tell."""

    @property
    def passed(self) -> bool:
        """Whether layout, movement and every region are as they should be."""
        return self.layout and self.moved and not self.failed

    @property
    def rank(self) -> tuple[bool, bool, int, float]:
        """The draw of the highest is the best."""
        return self.passed, self.moved, -int(self.failing.sum()), self.score


def regions(label: np.ndarray, least: float) -> np.ndarray:
    """Connected regions (8 neighbours) of one class, numbered from 1, int32 [H, W].

    label: train ids [H, W] uint8. 0: void, and regions of less than the share `least` of the picture.
    """
    found, count = np.zeros(label.shape, np.int32), 0
    for train_id in np.unique(label[label != IGNORE]):
        mask = (label == train_id).astype(np.uint8)
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        large = statistics[:, cv2.CC_STAT_AREA] >= least * label.size
        large[0] = False  # everything else
        numbers = np.where(large, count + np.cumsum(large), 0).astype(np.int32)
        found += numbers[parts]
        count += int(large.sum())
    return found


def class_agreement(pred: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """a_c = |{p : pred_p = y_p = c}| / |{p : y_p = c}|, [C] in [0, 1]; nan for a class that the label does
    not hold."""
    matrix = metrics.confusion_matrix(pred, label, classes)
    total = matrix.sum(1)
    return np.divide(np.diagonal(matrix), total, out=np.full(classes, np.nan), where=total > 0)


def region_agreement(pred: np.ndarray, label: np.ndarray, index: np.ndarray) -> np.ndarray:
    """a_R = |{p in R : pred_p = y_p}| / |R| of the regions 1 to n of `index`, [n] in [0, 1]."""
    count = int(index.max()) + 1
    right = np.bincount(index[pred == label], minlength=count)[1:]
    return right / np.bincount(index.ravel(), minlength=count)[1:]


def kept_agreement(source: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """k_c = min(1, sum a_c(x') / sum a_c(x)), [C] in [0, 1]; 0, so that it is not judged, for a class that f
    finds in no source image; that of all classes together for one that no frame shows. source, drawn: a_c by
    frame, [F, C]."""
    found, total = np.nansum(drawn, 0), np.nansum(source, 0)
    whole = found.sum() / total.sum() if total.any() else 0.0
    shown = ~np.isnan(source).all(0)
    return np.minimum(1, np.divide(found, total, out=np.where(shown, 0.0, whole), where=total > 0))


def frame_score(expected: np.ndarray, drawn: np.ndarray) -> float:
    """S = sum_c min(a_c(x'), e_c) / sum_c e_c, in [0, 1]; nan where the sum below is 0.

    expected, drawn: e_c and a_c(x'), [C]. A ratio of sums, so that every class of the frame counts as much as
    f knows it in this domain: small ones as much as the road, those that f never learnt not at all.
    """
    there = ~np.isnan(expected)
    total = expected[there].sum()
    return float(np.minimum(drawn, expected)[there].sum() / total) if total > 0 else float("nan")


def region_scores(expected: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """r_R = min(1, a_R(x') / e_R), [n] in [0, 1]; nan where e_R is less than SEEN. expected, drawn: e_R,
    a_R(x'), [n]."""
    ratio = np.divide(drawn, expected, out=np.full(len(expected), np.nan), where=expected >= SEEN)
    return np.minimum(ratio, 1)


def thresholds(frame: np.ndarray, lowest: np.ndarray, quantile: float, fraction: float) -> Thresholds:
    """fraction times the quantile over source frames of S(x~), and of their lowest r_R(x~), with k_c = 1: no
    transferred image takes part.

    x~ went through the autoencoder and nothing else, so the quantile is what f loses where the layout is
    intact; the fraction leaves room for what varies more in a strange domain. frame, lowest: by frame, nan in
    `frame` left out. Raises: InputError when all frames are nan.
    """
    if np.isnan(frame).all():
        raise InputError(
            "the gate's reference network agrees with the label of no source frame: train it longer, or name "
            "a network that was trained on this data set in --gate.reference"
        )
    return Thresholds(*(fraction * float(np.nanquantile(values, quantile)) for values in (frame, lowest)))


def judge(
    seen: SourceView,
    pred: np.ndarray,
    limits: Thresholds,
    kept: np.ndarray,
    *,
    movement: float | None = 0.0,
    require_movement: bool = False,
) -> Verdict:
    """One draw, from f's prediction on it: train ids [H, W] uint8 at the label's size. kept: k_c of its
    domain, [C].

    It passes with S and every r_R at its threshold or above and, where that is required, a movement above 0.
    """
    classes = class_agreement(pred, seen.label, len(seen.classes))
    score = frame_score(kept * seen.classes, classes)
    parts = region_scores(
        kept[seen.region_classes] * seen.regions, region_agreement(pred, seen.label, seen.index)
    )
    failed = parts < limits.region  # nan is not less
    judged = parts[~np.isnan(parts)]
    return Verdict(
        layout=not score < limits.frame,
        moved=not require_movement or (movement is not None and movement > 0),
        score=score,
        classes=classes,
        judged=len(judged),
        failed=int(failed.sum()),
        failing=np.concatenate([[False], failed])[seen.index],
        lowest=float(judged.min(initial=1)),
        movement=movement,
    )


class Gate:
    """The reference network f with its thresholds."""

    def __init__(self, config: GateConfig, network: Method, size: tuple[int, int], space: LabelSpace) -> None:
        """network: in evaluation mode. size: height and width that it sees."""
        self.config, self.network, self.size, self.space = config, network, size, space
        self.limits = Thresholds(frame=0.0, region=0.0)
        """Everything passes, until they are measured."""
        self.kept: dict[str, np.ndarray] = {}
        """k_c [C] by domain."""

    def predict(self, picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """f's train ids [H, W] uint8 on a picture [h, w, 3] uint8, enlarged to the label's `shape` by nearest
        neighbour. One picture at a time: what it says does not depend on others.

        Raises: torch.OutOfMemoryError; InputError for logits that are not finite.
        """
        image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        image = transforms.resize_image(image, self.size)[None]
        logits, _ = inference.infer(self.network, image.to(next(self.network.parameters()).device))
        [pred] = inference.classes(logits, self.size)
        return cv2.resize(pred, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def look(self, image: np.ndarray, label: np.ndarray) -> SourceView:
        """What f makes of a source image [H, W, 3] uint8 with its label, train ids [H, W] uint8."""
        pred, index = self.predict(image, label.shape), regions(label, self.config.least_region)
        classes = class_agreement(pred, label, self.space.classes)
        return SourceView(label, index, classes, region_agreement(pred, label, index))

    def judge(self, seen: SourceView, picture: np.ndarray, domain: str, movement: float | None) -> Verdict:
        """A draw [h, w, 3] uint8 of the frame that was `seen`."""
        return judge(
            seen,
            self.predict(picture, seen.label.shape),
            self.limits,
            self.kept[domain],
            movement=movement,
            require_movement=self.config.require_movement,
        )

    def decision(self, verdict: Verdict) -> str:
        """What becomes of a frame whose best draw is this: `kept`, `ignored` (its failing regions) or
        `dropped`."""
        if verdict.passed:
            return "kept"
        if self.config.on_failure == "drop" or not verdict.moved or not verdict.failed:
            return "dropped"
        return "ignored"

    def record(self, seen: SourceView, verdict: Verdict, domain: str, draws: Sequence[dict]) -> dict:
        """What the manifest tells of a frame: its best draw, and a line of each; agreement by class is what
        was expected and what was found."""
        expected = (self.kept[domain] * seen.classes).tolist()
        pairs = zip(self.space.names, expected, verdict.classes.tolist(), strict=True)
        labelled = int((seen.label != IGNORE).sum())
        return {
            "decision": self.decision(verdict),
            "passed": verdict.passed,
            "tries": len(draws),
            "score": _finite(verdict.score),
            "threshold": self.limits.frame,
            "agreement": {name: [round(e, 4), round(a, 4)] for name, e, a in pairs if not np.isnan(e)},
            "regions": {
                "judged": verdict.judged,
                "failed": verdict.failed,
                "lowest": round(verdict.lowest, 4),
                "threshold": self.limits.region,
            },
            "failing_share": round(int(verdict.failing.sum()) / max(labelled, 1), 6),
            "movement": _rounded(verdict.movement),
            "draws": list(draws),
        }


def draw(seed: int, strength: float, verdict: Verdict) -> dict:
    """What the manifest tells of one draw."""
    return {
        "seed": seed,
        "strength": strength,
        "passed": verdict.passed,
        "score": _finite(verdict.score),
        "failed_regions": verdict.failed,
        "movement": _rounded(verdict.movement),
    }


def _finite(score: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(score) else round(score, 6)


def _rounded(movement: float | None) -> float | None:
    return None if movement is None else round(movement, 8)


def redraw_seed(seed: int, frame_id: str, attempt: int) -> int:
    """Seed of a frame's draw: `seed` itself for attempt 0, one of the frame's own for every other."""
    return seed if attempt == 0 else transforms.key_seed(seed, frame_id, attempt) % 2**31
