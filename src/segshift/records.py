"""What the files hold that one stage writes and another reads: one type a format, which the readers check.

    OUT/config.json           runs.Saved             every stage
    OUT/failures.jsonl        runs.Failure           every stage
    TREE/manifest.jsonl       Transferred            worker, journal
    OUT/journal/*.jsonl       Entry                  stages.transfer
    OUT/gate.json             Measured               stages.transfer
    OUT/model.json            Model                  stages.predict
    OUT/predictions.jsonl     Prediction             stages.predict
    OUT/metrics.json          METRICS                stages.evaluate
    OUT/frames.npz            read_matrices          stages.evaluate
    OUT/estimate.json         ESTIMATE               stages.estimate
    OUT/ranking.json          RANKING                stages.estimate
    RUN/metrics.jsonl         LOGGED                 stages.train
    RUN/labels.json           labels.LabelSpace      checkpoints
    RUN/environment.json      Versions               checkpoints
    best*.safetensors         Chosen (metadata)      checkpoints
    OUT/data/*.npy            read_array             town.prior_data
    OUT/classes.jsonl         ClassPixels            stages.check

A type names what some reader needs; files may hold more. Names in capitals also compare the parts of a file.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from segshift.runs import Failure, InputError
from segshift.settings import Share

Finite = Annotated[float, Field(allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=0, lt=2**53)]
Shares = dict[str, Share | None]
Location = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""A path."""
Versions = dict[str, str | None]


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


# ----------------------------------------------------------------------------------------------- transfer


class GateRecord(TypedDict):
    """What a gate decided about a frame (`Gate.record`)."""

    decision: str
    tries: int
    score: Share | None
    agreement: dict[str, Annotated[list[Share], Field(min_length=2, max_length=2)]]
    """By class: expected, found."""


class Line(TypedDict):
    """A line of any manifest: trees that others wrote may tell ids alone."""

    id: str
    prompt: NotRequired[str]
    model: NotRequired[str]
    weights: NotRequired[dict[str, str]]
    gate: NotRequired[GateRecord]


class Transferred(TypedDict):
    """A line of a manifest that segshift wrote (`Worker.line`)."""

    id: str
    domain: str
    prompt: str
    strength: Share
    model: str
    weights: dict[str, str]
    sha256: str | None
    gate: NotRequired[GateRecord]


class Finished(TypedDict):
    """A process has done its part."""

    finished: bool


Entry = Transferred | Failure | Finished


class Limits(TypedDict):
    """`gate.Thresholds`."""

    frame: Finite
    region: Finite


class Measured(TypedDict):
    """What a gate measured before the first transfer."""

    weights: dict[str, str]
    thresholds: Limits
    source_agreement: dict[str, Share]
    kept_agreement: dict[str, dict[str, Share]]
    """By domain and class."""


# --------------------------------------------------------------------------- predictions and their scores


class Model(TypedDict):
    """What predicted."""

    run: Location
    weights: str
    selection: str
    rules: NotRequired[list[str]]
    step: NotRequired[int | None]
    sampling: NotRequired[str | None]
    input: NotRequired[str | None]


class Prediction(TypedDict):
    """A frame that is predicted."""

    id: str
    file: Location
    confidence: Share
    confidences: Annotated[list[Pixels], Field(min_length=1)]
    """Pixels by confidence, in the bins of `label_free`."""
    nuclear_norm: Share


class Calibration(TypedDict):
    """`calibration.reliability`."""

    bins: int
    count: Annotated[list[Pixels], Field(min_length=1)]
    accuracy: list[Share | None]
    ece: Share


def _binned(c: Calibration) -> Calibration:
    counts, accuracies = c["count"], c["accuracy"]
    _require(c["bins"] == len(counts) == len(accuracies), "bins, count and accuracy differ in length")
    filled = all(accuracy is not None for n, accuracy in zip(counts, accuracies, strict=True) if n)
    _require(filled, "a bin without accuracy")
    return c


class Curve(TypedDict):
    """`calibration.risk_coverage`."""

    coverage: Annotated[list[Share], Field(min_length=1)]
    risk: list[Share]
    area: Share


def _paired(curve: Curve) -> Curve:
    _require(len(curve["coverage"]) == len(curve["risk"]), "coverage and risk differ in length")
    return curve


class Scores(TypedDict):
    """Of one domain, or of all frames."""

    miou: Share | None
    pixel_accuracy: Share | None
    iou: Shares
    confusion: list[list[Pixels]]
    """[C, C + 1]."""
    calibration: NotRequired[Annotated[Calibration, AfterValidator(_binned)] | None]
    risk_coverage: NotRequired[dict[str, Annotated[Curve, AfterValidator(_paired)]]]


class Origin(TypedDict):
    """The data set that was scored."""

    space: str
    transferred: bool


class FrameScore(TypedDict):
    """One frame's own score."""

    id: str
    domain: str
    miou: Share | None


class Metrics(Scores):
    """Scores of predictions."""

    protocol: str
    setting: str
    data: Origin
    model: Model | None
    classes: Annotated[list[str], Field(min_length=1)]
    colours: dict[str, str]
    domains: Annotated[dict[str, Scores], Field(min_length=1)]
    frames: list[FrameScore]


def _of_its_classes(found: Metrics) -> Metrics:
    names = found["classes"]
    _require(found["colours"].keys() >= set(names), "a class without a colour")
    for scores in (found, *found["domains"].values()):
        _require(scores["iou"].keys() >= set(names), "a class without iou")
        rows = [len(row) for row in scores["confusion"]]
        _require(rows == [len(names) + 1] * len(names), "a confusion matrix of another shape")
    return found


METRICS: Any = Annotated[Metrics, AfterValidator(_of_its_classes)]

_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What numpy and zipfile raise on a damaged archive."""


def read_matrices(folder: Path, scored: Metrics) -> dict[str, np.ndarray]:
    """The confusion matrices [C, C + 1] of FOLDER/frames.npz by frame id, of all frames of its metrics.json.

    Raises: InputError.
    """
    file = folder / "frames.npz"
    try:
        # what is no archive numpy takes for a pickle
        with zipfile.ZipFile(file), np.load(file, allow_pickle=False) as found:
            ids, confusion = found["ids"], found["confusion"]
    except _BROKEN as error:
        what = type(error).__name__
        raise InputError(f"cannot read {file} ({what}): run segshift evaluate again") from error
    classes = len(scored["classes"])
    kinds, shapes = (ids.dtype.kind, confusion.dtype.kind), (ids.shape, confusion.shape)
    whole = kinds == ("U", "i") and shapes == ((ids.size,), (ids.size, classes, classes + 1))
    if not whole or confusion.min(initial=0) < 0:
        raise InputError(
            f"{file} holds no matrix of {classes} classes for every frame: run segshift evaluate again"
        )
    matrices = dict(zip(ids.tolist(), confusion, strict=True))
    if missing := [frame["id"] for frame in scored["frames"] if frame["id"] not in matrices]:
        raise InputError(
            f"{file} lacks {len(missing)} frames of metrics.json (first '{missing[0]}'): evaluate again"
        )
    return matrices


def read_array(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a .npy file, mapped into memory. Raises: InputError where it is another one."""
    try:
        found = np.lib.format.open_memmap(file, mode="r")
    except _BROKEN as error:
        raise InputError(f"cannot read {file} ({type(error).__name__}): delete it and start again") from error
    if (found.dtype, found.shape) != (np.dtype(dtype), shape):
        raise InputError(
            f"{file} holds {found.dtype} of shape {found.shape}, expected {np.dtype(dtype)} of shape "
            f"{shape}: delete it and start again"
        )
    return found


# ---------------------------------------------------------------------------------------------- estimates

Difference = Annotated[float, Field(ge=-1, le=1)]


class Interval(TypedDict):
    """A value with the ends of its interval; null where there is none."""

    value: Difference | None
    low: Difference | None
    high: Difference | None


def _whole(found: Interval) -> Interval:
    _require((found["low"] is None) == (found["high"] is None), "an interval with one end")
    return found


Between = Annotated[Interval, AfterValidator(_whole)]


class Estimated(TypedDict):
    """One of `bootstrap.SCORES`."""

    miou: Between
    iou: dict[str, Between]


class TargetImagesRecord(TypedDict):
    """What unlabelled images of the target say of a generator."""

    count: int
    generator_error: Between
    without: Between
    """The mIoU that is predicted without them."""


class DomainEstimate(TypedDict):
    """A domain of an estimate."""

    name: str
    source: Estimated
    corrected: Estimated
    transfer_cost: Between
    drop: Between
    failing: list[str]
    target_images: NotRequired[TargetImagesRecord | None]


class Judge(TypedDict):
    """The generator that an estimate is made with."""

    model: str
    weights: dict[str, str]


class Estimate(TypedDict):
    """What is predicted for domains without images."""

    protocol: str
    level: Share
    model: Model
    generator: Judge
    classes: Annotated[list[str], Field(min_length=1)]
    domains: Annotated[dict[str, DomainEstimate], Field(min_length=1)]


def _estimates_its_classes(found: Estimate) -> Estimate:
    for domain in found["domains"].values():
        for scores in (domain["source"], domain["corrected"]):
            _require(scores["iou"].keys() >= set(found["classes"]), "a class without iou")
    return found


ESTIMATE: Any = Annotated[Estimate, AfterValidator(_estimates_its_classes)]


class Ranked(TypedDict):
    """A network's place in a domain."""

    candidate: str
    miou: Between
    best: Share
    """Probability that it is the best."""


class DomainRanking(TypedDict):
    """Networks in a domain, best first."""

    name: str
    ranking: Annotated[list[Ranked], Field(min_length=1)]


class Ranking(TypedDict):
    """Several networks, each with its estimate."""

    protocol: str
    level: Share
    candidates: Annotated[
        dict[str, Annotated[Estimate, AfterValidator(_estimates_its_classes)]], Field(min_length=1)
    ]
    domains: Annotated[dict[str, DomainRanking], Field(min_length=1)]


def _ranks_its_candidates(found: Ranking) -> Ranking:
    for domain in found["domains"].values():
        named = [line["candidate"] for line in domain["ranking"]]
        _require(set(named) <= found["candidates"].keys(), "a candidate without an estimate")
    return found


RANKING: Any = Annotated[Ranking, AfterValidator(_ranks_its_candidates)]

# ----------------------------------------------------------------------------------------------- training


class Validated(TypedDict):
    """Scores on one validation set."""

    miou: Share | None


class Watched(TypedDict):
    """A look at the unlabelled target (`training.watch`): share of its pixels by class, names of classes."""

    shares: dict[str, Share]
    lost: list[str]
    missing: list[str]


class Logged(TypedDict):
    """A step, a validation, or a run that is extended. Every other key is a term of the loss."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    step: Annotated[int, Field(ge=0, lt=2**53)]
    lr: NotRequired[Finite]
    seconds: NotRequired[Finite]
    score: NotRequired[Share | None]
    validation: NotRequired[dict[str, Validated]]
    target: NotRequired[Watched]
    observed: NotRequired[dict[str, Finite]]
    steps: NotRequired[int]
    steps_before: NotRequired[int]


NO_LOSS = frozenset(Logged.__annotations__)


def _with_finite_losses(line: Logged) -> Logged:
    for name, value in line.items():
        finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        _require(name in NO_LOSS or finite, f"{name} is no finite number")  # nan is not less
    return line


LOGGED: Any = Annotated[Logged, AfterValidator(_with_finite_losses)]


class Chosen(TypedDict):
    """What the metadata of a best checkpoint say, under `segshift`."""

    step: Annotated[int, Field(ge=0, lt=2**53)]
    score: Share | None


class ClassPixels(TypedDict):
    """Pixels of a frame by train id."""

    id: str
    pixels: list[Pixels]
