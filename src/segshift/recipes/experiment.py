"""What a recipe is: the whole frozen configuration of an experiment.

An experiment's paths may hold `{out}` (its own folder), `{rows}` (where the rows of one seed are trained,
each in a folder of its name) and `{cityscapes}`, `{acdc}`, `{gta5}`, `{synthia}` (where the user unpacked
them:
`segshift run NAME OUT --data cityscapes /data/cityscapes acdc /data/acdc`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from segshift.config import TownConfig, TrainConfig, TransferConfig


@dataclass(frozen=True)
class Row:
    """One line of an experiment's table: a training, and what it is called there."""

    name: str
    train: TrainConfig
    targets: tuple[str, ...] = ()
    """Names of the targets it is evaluated on; all of them where empty."""
    uncertainty: bool = False
    """Predict the last checkpoint with maps of confidence, entropy and, of several draws, spread."""
    samplings: tuple[tuple[int, int], ...] = ()
    """(DDIM steps, draws) that it predicts the first target with besides: a line of the table each."""


@dataclass(frozen=True)
class Target:
    """One column of an experiment's table: labelled frames to evaluate on."""

    name: str
    data: str


@dataclass(frozen=True)
class Experiment:
    """The whole configuration of a run; it alone reproduces the run."""

    name: str
    rows: tuple[Row, ...]
    """Trained in order. Gains are counted from the first."""
    targets: tuple[Target, ...]
    transfers: dict[str, TransferConfig] = field(default_factory=dict)
    """By name of a folder: written to `{out}/<folder>/<domain>`."""
    town: TownConfig | None = None
    """The embedded town, written to {out}/town first; None for the user's own data."""
    seeds: int = 1
    """Trainings of every row: with its own seed and the following ones. Town and transferred images are the
    same for all.
    """
    published: str = ""
    """What the paper's authors measured, and under which selection rule."""


def with_validation(
    rows: tuple[Row, ...], *, oracle: tuple[str, ...], transferred: tuple[str, ...] = ()
) -> tuple[Row, ...]:
    """The rows with these validation sets, so that their table has a line for every selection rule. `oracle`
    are the targets themselves, with labels."""
    return tuple(
        replace(row, train=replace(row.train, transferred_validation=transferred, oracle_validation=oracle))
        for row in rows
    )
