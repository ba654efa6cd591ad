"""segshift: adapt semantic segmentation to a domain you have no labels for, or not even an image of."""

from importlib import import_module
from typing import Any

from segshift.config import (
    CheckConfig,
    DiffusionConfig,
    EstimateConfig,
    EvaluateConfig,
    GateConfig,
    ICCLDConfig,
    NetworkConfig,
    PredictConfig,
    ReportConfig,
    TownConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.runs import InputError

_STAGES = {
    "write_town": ("segshift.town.writer", "town"),
    "check": ("segshift.stages.check", "check"),
    "transfer": ("segshift.stages.transfer", "transfer"),
    "train": ("segshift.stages.train", "train"),
    "predict": ("segshift.stages.predict", "predict"),
    "evaluate": ("segshift.stages.evaluate", "evaluate"),
    "estimate": ("segshift.estimation", "estimate"),
    "report": ("segshift.stages.report", "report"),
    "run": ("segshift.experiments", "run"),
}

__all__ = [
    "CheckConfig", "DiffusionConfig", "EstimateConfig", "EvaluateConfig", "GateConfig", "ICCLDConfig", "InputError",
    "NetworkConfig", "PredictConfig", "ReportConfig", "TownConfig", "TrainConfig", "TransferConfig", *_STAGES,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Stages are imported when they are used: the command line's --help should not wait for torch."""
    if name not in _STAGES:
        raise AttributeError(f"module 'segshift' has no attribute '{name}'")
    module, function = _STAGES[name]
    return getattr(import_module(module), function)
