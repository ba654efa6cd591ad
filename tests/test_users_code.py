"""The user's own code: found where the run recorded it, and never mistaken for another module."""

import re
import sys
from pathlib import Path

import pytest

from segshift import networks, runs
from segshift.config import DiffusionConfig, EstimateConfig, NetworkConfig, TransferConfig
from segshift.runs import InputError
from segshift.users_code import imported

NETWORK = "from torch import nn\ndef build(classes):\n    return nn.Conv2d(3, classes, 1)\n"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module and one in a folder below; afterwards nothing of it is imported."""
    home = tmp_path / "code: mine"
    (home / "nets").mkdir(parents=True)
    for name in ("own_net.py", "nets/deep_net.py"):
        (home / name).write_text(NETWORK)
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_net", "nets", "nets.deep_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        sys.modules.pop(name, None)
    return home


@pytest.mark.parametrize("name", ["own_net:build", "./own_net:build", "nets.deep_net:build"])
def test_a_run_finds_the_users_code_from_another_folder(code, tmp_path, monkeypatch, name):
    config = NetworkConfig(name=name)
    assert config.name == f"{code}/{name.removeprefix('./')}"
    runs.write_json(tmp_path / "config.json", {"stage": "train", "config": runs.to_plain(config)})
    monkeypatch.chdir(tmp_path)
    again = runs.read_config(tmp_path / "config.json", NetworkConfig)
    assert again == config
    assert networks.build(again, 5).network.out_channels == 5


def test_both_kinds_of_generator_configuration_record_the_folder(code):
    source = "cityscapes:x"
    for kind in (
        TransferConfig(source=source, generator="own_net:build"),
        EstimateConfig(run="r", source=source, generator="own_net:build"),
    ):
        assert kind.generator == f"{code}/own_net:build"
    assert TransferConfig(source=source, generator="installed:build").generator == "installed:build"


def test_another_module_of_the_same_name_is_not_taken(code, tmp_path, monkeypatch):
    imported("network", NetworkConfig(name="own_net:build").name)
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_net.py").write_text(NETWORK)
    (other / "random.py").write_text(NETWORK)
    monkeypatch.chdir(other)
    for name in ("own_net", "random"):
        with pytest.raises(
            InputError, match=rf"'{name}:build' is expected in {re.escape(str(other))}, and Python has anoth"
        ):
            imported("network", NetworkConfig(name=f"{name}:build").name)
    sys.modules.pop("own_net")


def test_a_folder_of_the_same_name_hides_no_model_and_no_network(tmp_path, monkeypatch):
    for name in ("town", "unet", "mymodel"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert DiffusionConfig().model == "town" and NetworkConfig(name="unet").name == "unet"
    assert DiffusionConfig(model="mymodel").model == str(tmp_path / "mymodel")
    assert NetworkConfig(name="hf:mymodel").name == f"hf:{tmp_path / 'mymodel'}"
