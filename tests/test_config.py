"""Configurations check themselves: ranges, choices, types, and paths, in Python and on the command line
alike.
"""

import os
from dataclasses import fields
from pathlib import Path

import pytest

from segshift.__main__ import main
from segshift.config import (
    DiffusionConfig,
    EstimateConfig,
    EvaluateConfig,
    GateConfig,
    ICCLDConfig,
    ICCLDNetworkConfig,
    NetworkConfig,
    PredictConfig,
    PriorConfig,
    StrongAugmentation,
    TownConfig,
    TrainConfig,
    TransferConfig,
    ZoDiConfig,
)
from segshift.runs import InputError, to_plain
from segshift.settings import Data, RunFolder, inputs

NAN, INF = float("nan"), float("inf")
NEEDED = {"source": "cityscapes:/data", "run": "/run", "data": "cityscapes:/data"}


def made(kind: type, **changes):
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in NEEDED.items() if name in names} | changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TransferConfig, {"mode": "fast"}, "--mode is 'fast': expected 'default' or 'reference'"),
        (TransferConfig, {"to": "night"}, "--to is 'night': expected a list of values"),
        (TransferConfig, {"labels": "move"}, "--labels is 'move'"),
        (TransferConfig, {"strength": 0.0}, "--strength is 0.0: expected more than 0"),
        (TransferConfig, {"strength": NAN}, "--strength is nan: expected a finite number"),
        (TransferConfig, {"guidance": NAN}, "--guidance is nan"),
        (TransferConfig, {"eta": 1.5}, "--eta is 1.5: expected at most 1"),
        (TransferConfig, {"short_side": 1}, "--short-side is 1: expected 8 or more"),
        (TransferConfig, {"short_side": 10**9}, "--short-side is 1000000000: expected at most 8192"),
        (TransferConfig, {"batch_size": 0}, "--batch-size is 0: expected 1 or more"),
        (TransferConfig, {"source": ["a"]}, "--source is .*: expected text"),
        (GateConfig, {"tries": 0}, "--gate.tries is 0"),
        (GateConfig, {"strength_factor": NAN}, "--gate.strength-factor is nan"),
        (GateConfig, {"on_failure": "keep"}, "--gate.on-failure is 'keep': expected 'ignore' or 'drop'"),
        (GateConfig, {"quantile": 1.1}, "--gate.quantile is 1.1"),
        (
            TrainConfig,
            {"method": "zod"},
            "--method is 'zod': expected one of zodi, source_only, self_training",
        ),
        (TrainConfig, {"optimizer": "lion"}, "--optimizer is 'lion': expected 'sgd' or 'adamw'"),
        (TrainConfig, {"seed": -1}, "--seed is -1: expected 0 or more"),
        (TrainConfig, {"seed": 2**32}, "--seed is 4294967296: expected less than"),
        (TrainConfig, {"lr": 1e308}, "--lr is 1e.308: expected at most 1000"),
        (TrainConfig, {"steps": 2.5}, "--steps is 2.5: expected a whole number"),
        (TrainConfig, {"jitter": (INF, 0, 0, 0)}, r"--jitter \(value 1\) is inf"),
        (TrainConfig, {"jitter": (0.5, 0.5, 0.5, 0.6)}, r"--jitter \(value 4\) is 0.6: expected at most 0.5"),
        (TrainConfig, {"size": (10**6, 10**6)}, r"--size \(value 1\) is 1000000"),
        (TrainConfig, {"size": (32_768, 32_768)}, "--size is .32768, 32768.: expected at most 134217728 pix"),
        (TrainConfig, {"size": (512,)}, "expected one value more"),
        (ZoDiConfig, {"similarity_weight": -1}, "--zodi.similarity-weight is -1"),
        (TrainConfig, {"workers": -1}, "--workers is -1"),
        (TrainConfig, {"momentum": 1.0}, "--momentum is 1.0: expected less than 1"),
        (TrainConfig, {"network": "unet"}, "--network is 'unet': expected a NetworkConfig"),
        (ICCLDNetworkConfig, {"latent_channels": 0}, "--network.iccld.latent-channels is 0"),
        (NetworkConfig, {"weights": ""}, "an empty path"),
        (NetworkConfig, {"name": "hf:"}, "an empty path"),
        (
            NetworkConfig,
            {"name": "unet", "head": "dpt"},
            "--network.head is for --network.name vit, and unet",
        ),
        (
            NetworkConfig,
            {"iccld": ICCLDNetworkConfig(latent_channels=4)},
            "--network.iccld is for --network.name iccld, and deeplabv3plus is given",
        ),
        (DiffusionConfig, {"model": "~nosuchuser"}, "no user for the home folder"),
        (DiffusionConfig, {"model": " "}, "an empty path"),
        (EvaluateConfig, {"predictions": "x" * 256}, "is too long, with a name of 256 bytes"),
        (NetworkConfig, {"weights": "~nosuchuser/w.pt"}, "no user for the home folder"),
        (ICCLDConfig, {"threshold": 1.5}, "--iccld.threshold is 1.5"),
        (ICCLDConfig, {"unet_channels": ()}, "--iccld.unet-channels is .*: expected at least 1"),
        (StrongAugmentation, {"blur": (0.1, INF)}, r"--iccld.augmentation.blur \(value 2\) is inf"),
        (EstimateConfig, {"resamples": 10**9}, "--resamples is 1000000000: expected at most 100000"),
        (EstimateConfig, {"run": "run\0"}, "an empty path"),
        (EstimateConfig, {"seed": 2**32 - 1}, "--seed 4294967295 leaves no room for --draws 2"),
        (PredictConfig, {"window": (0, 1)}, r"--window \(value 1\) is 0"),
        (TownConfig, {"height": 0}, "--height is 0: expected 32 or more"),
        (PriorConfig, {"narrow_share": 2.0}, "--narrow-share is 2.0"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_the_configuration_itself(kind: type, changes: dict, message: str):
    with pytest.raises(InputError, match=message) as caught:
        made(kind, **changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_values_of_the_right_kind_in_another_form_are_taken():
    config = made(TrainConfig, size=[32, 64], lr=1, weight_decay=0)
    assert config.size == (32, 64) and isinstance(config.lr, float)
    assert made(TransferConfig, source=Path("a/b")).source == "a/b"  # no layout: told when it is read


def test_paths_are_text_or_path_and_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = made(PredictConfig, run=Path("run"), data="cityscapes:town/day:val")
    assert config.run == str(tmp_path / "run") and config.data == f"cityscapes:{tmp_path}/town/day:val"
    assert made(PredictConfig, data="acdc:../x:night/val").data == f"acdc:{tmp_path.parent}/x:night/val"
    assert made(TrainConfig, network=NetworkConfig("hf:model")).network.name == f"hf:{tmp_path / 'model'}"
    assert NetworkConfig("hf:nvidia/segformer").name == "hf:nvidia/segformer"  # on the hub
    assert to_plain(config)["run"] == os.fspath(tmp_path / "run")
    assert made(TrainConfig, transferred=("cityscapes:{out}/t:train",)).transferred == (
        "cityscapes:{out}/t:train",
    )


def test_everything_that_is_read_is_known_as_an_input():
    config = made(
        TrainConfig,
        more_sources=("gta5:/g",),
        target="cityscapes:/t",
        from_run="/one",
        network=NetworkConfig(weights="/w.pt"),
        validation="cityscapes:/v",
        oracle_validation=("acdc:/o",),
        transferred=("cityscapes:/tr",),
    )
    assert {str(name) for name in inputs(config)} == {
        "cityscapes:/data",
        "gta5:/g",
        "cityscapes:/t",
        "/one",
        "/w.pt",
        "cityscapes:/v",
        "acdc:/o",
        "cityscapes:/tr",
    }
    kinds = {str(name): type(name) for name in inputs(config)}
    assert kinds["gta5:/g"] is Data and kinds["/one"] is RunFolder
    gated = made(TransferConfig, gate=GateConfig("/ref"))
    assert "/ref" in set(inputs(gated)) and isinstance(gated.source, Data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("transfer OUT --source cityscapes:/x --strength 2", "--strength is 2.0: expected at most 1"),
        ("train OUT --source cityscapes:/x --seed -1", "--seed is -1"),
        (
            "train OUT --source cityscapes:/x --network.iccld.latent-channels 0",
            "--network.iccld.latent-channels is 0",
        ),
        ("town OUT --height 0", "--height is 0"),
        ("estimate out --run /run --source cityscapes:/x --resamples 0", "--resamples is 0"),
        ("prior train OUT --lr 0", "--lr is 0"),
    ],
)
def test_the_command_line_says_the_same_and_leaves_nothing(
    arguments: str, message: str, tmp_path: Path, capsys
):
    assert main(arguments.replace("OUT", str(tmp_path / "out")).split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
