"""The configuration of every stage: frozen dataclasses, one field a decision, a docstring under each.

The command line is made from these (`tyro`), a run saves its own as `config.json`, and that file alone
repeats it (`segshift run CONFIG.JSON`; a check, a report and a training of the prior or a ControlNet take
their own commands again).
"""

from segshift.config.control import ControlConfig
from segshift.config.judging import (
    CheckConfig,
    EstimateConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PushConfig,
    ReportConfig,
    StudioConfig,
)
from segshift.config.running import EngineConfig
from segshift.config.town import PriorConfig, TownConfig
from segshift.config.training import (
    ForeignNetwork,
    NetworkConfig,
    TrainConfig,
)
from segshift.config.transfer import DiffusionConfig, GateConfig, OptionalGate, TransferConfig
from segshift.methods.iccld import ICCLDConfig, StrongAugmentation
from segshift.methods.zodi import ZoDiConfig
from segshift.networks.options import ICCLDNetworkConfig
from segshift.settings import CHECKPOINTS, Device, Select

__all__ = [
    "CHECKPOINTS",
    "CheckConfig",
    "ControlConfig",
    "Device",
    "DiffusionConfig",
    "EngineConfig",
    "EstimateConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ForeignNetwork",
    "GateConfig",
    "ICCLDConfig",
    "ICCLDNetworkConfig",
    "NetworkConfig",
    "OptionalGate",
    "PredictConfig",
    "PriorConfig",
    "PushConfig",
    "ReportConfig",
    "Select",
    "StrongAugmentation",
    "StudioConfig",
    "TownConfig",
    "TrainConfig",
    "TransferConfig",
    "ZoDiConfig",
]
