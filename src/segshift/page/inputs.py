"""The folders that a report is made of: what wrote each, with which configuration, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segshift import records, runs
from segshift.config import EstimateConfig, EvaluateConfig, PredictConfig, TrainConfig, TransferConfig
from segshift.data import frames
from segshift.methods import METHODS
from segshift.runs import InputError

STAGES: dict[str, type] = {
    "train": TrainConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "estimate": EstimateConfig,
    "transfer": TransferConfig,
}
"""Stages whose folders the page shows, with their configuration."""
TITLES = {key: m.title for m in METHODS.values() for key in (m.name, runs.slug(m.title))} | {
    "oracle": "Oracle"
}
"""What methods are called, by the names that their folders have."""


@dataclass(frozen=True)
class Folder:
    """One folder of the report's input."""

    path: Path
    stage: str
    config: Any
    saved: dict[str, Any]
    """`config` as config.json holds it."""


def recognise(path: Path) -> Folder:
    """What stage wrote a folder, and with which configuration. Raises: InputError for none of STAGES."""
    file = path / "config.json"
    if not file.exists() and (path / "manifest.jsonl").exists():
        file = path.parent / "config.json"  # one domain of a transfer
    if not file.exists():
        raise InputError(f"no config.json in {path}: name a folder that segshift {', '.join(STAGES)} wrote")
    saved: runs.Saved = runs.read_json(file, runs.Saved)
    stage = saved["stage"]
    if stage not in STAGES:
        raise InputError(f"{path} holds a run of stage '{stage}': name folders of {', '.join(STAGES)}")
    config: Any = runs.read_config(file, STAGES[stage], stage)
    if isinstance(config, PredictConfig) and config.images is not None:
        raise InputError(
            f"{path} holds predictions of --images: name one of --data, which has frames to show"
        )
    try:
        if isinstance(config, EvaluateConfig | PredictConfig):
            frames.split(config.data or "")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Folder(path, stage, config, saved["config"])


def names(paths: list[str | Path]) -> list[str]:
    """What each run is called: its folder's name, with as many parents' as tell it from other runs."""
    parts = [name.rpartition("/") for name in runs.short_names(paths)]
    return ["".join((*before, TITLES.get(last, last))) for *before, last in parts]


def read(folder: Folder, name: str, kind: Any) -> Any:
    """The file `name` of a folder, a `kind`. Raises: InputError where it is missing or broken."""
    file = folder.path / name
    if not file.exists():
        raise InputError(f"no {file}: run segshift {folder.stage} again to finish it")
    return runs.read_json(file, kind)


def scores(evaluation: Folder) -> records.Metrics:
    """metrics.json. Raises: InputError."""
    return read(evaluation, "metrics.json", records.METRICS)
