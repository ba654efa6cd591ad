"""segshift: adapt semantic segmentation to a domain you have no labels for, or not even an image of.

Everything public is here, and is imported when it is first used: `import segshift` does nothing else.
"""

from importlib import import_module

TYPE_CHECKING = False  # without `typing`: until the command line answers to Ctrl-C, nothing may take time
if TYPE_CHECKING:
    from typing import Any

    from segshift.config import CheckConfig as CheckConfig
    from segshift.config import ControlConfig as ControlConfig
    from segshift.config import DiffusionConfig as DiffusionConfig
    from segshift.config import EstimateConfig as EstimateConfig
    from segshift.config import EvaluateConfig as EvaluateConfig
    from segshift.config import ExportConfig as ExportConfig
    from segshift.config import GateConfig as GateConfig
    from segshift.config import ICCLDConfig as ICCLDConfig
    from segshift.config import NetworkConfig as NetworkConfig
    from segshift.config import PredictConfig as PredictConfig
    from segshift.config import PushConfig as PushConfig
    from segshift.config import ReportConfig as ReportConfig
    from segshift.config import TownConfig as TownConfig
    from segshift.config import TrainConfig as TrainConfig
    from segshift.config import TransferConfig as TransferConfig
    from segshift.config import ZoDiConfig as ZoDiConfig
    from segshift.predictor import Prediction as Prediction
    from segshift.predictor import Predictor as Predictor
    from segshift.predictor import load as load
    from segshift.recipes.runner import run as run
    from segshift.runs import InputError as InputError
    from segshift.stages.check import check as check
    from segshift.stages.control import train as train_control  # noqa: F401
    from segshift.stages.estimate import estimate as estimate
    from segshift.stages.evaluate import evaluate as evaluate
    from segshift.stages.export import export as export
    from segshift.stages.predict import predict as predict
    from segshift.stages.push import push as push
    from segshift.stages.report import report as report
    from segshift.stages.train import train as train
    from segshift.stages.transfer import transfer as transfer
    from segshift.town.writer import town as write_town  # noqa: F401

_PUBLIC = {
    **dict.fromkeys(
        (
            "CheckConfig",
            "ControlConfig",
            "DiffusionConfig",
            "EstimateConfig",
            "EvaluateConfig",
            "ExportConfig",
            "GateConfig",
            "ICCLDConfig",
            "NetworkConfig",
            "PredictConfig",
            "PushConfig",
            "ReportConfig",
            "TownConfig",
            "TrainConfig",
            "TransferConfig",
            "ZoDiConfig",
        ),
        "segshift.config",
    ),
    "InputError": "segshift.runs",
    "check": "segshift.stages.check",
    "estimate": "segshift.stages.estimate",
    "evaluate": "segshift.stages.evaluate",
    "Prediction": "segshift.predictor",
    "Predictor": "segshift.predictor",
    "export": "segshift.stages.export",
    "load": "segshift.predictor",
    "predict": "segshift.stages.predict",
    "push": "segshift.stages.push",
    "report": "segshift.stages.report",
    "run": "segshift.recipes.runner",
    "train": "segshift.stages.train",
    "train_control": "segshift.stages.control",
    "transfer": "segshift.stages.transfer",
    "write_town": "segshift.town.writer",
}
"""Module of every public name."""

_CALLED_THERE = {"train_control": "train", "write_town": "town"}
"""Names that their modules have under another one."""

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> "Any":
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segshift' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), _CALLED_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
