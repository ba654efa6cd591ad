"""Trackers: what TensorBoard is told, and that a training does not depend on it."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segshift.networks.options import ICCLDNetworkConfig
from segshift.runs import InputError
from segshift.stages.train import train

torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return training.trees_of(tmp_path)


def told(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_tensorboard_is_told_losses_validations_and_pictures(data, tmp_path):
    config = training.config(data)
    train(config, tmp_path / "plain")
    run = train(training.config(data, log="tensorboard"), tmp_path / "run")
    assert training.same(tmp_path / "plain", run) and training.logged(tmp_path / "plain") == training.logged(
        run
    )
    events = told(run)
    lines = training.logged(run)
    for name in ("source", "transferred", "similarity", "lr"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
    scores = [line["validation"]["source"]["miou"] for line in lines if "validation" in line]
    assert [e.value for e in events.Scalars("validation/source/miou")] == pytest.approx(scores)
    assert "validation/source/iou/road" in events.Tags()["scalars"]
    pictures = events.Images("pictures/source")
    assert [picture.step for picture in pictures] == [3, 6]
    assert (pictures[0].height, pictures[0].width) == (32, 3 * 64)


def test_a_target_without_validation_is_shown(data, tmp_path):
    config = training.config(
        data,
        method="self_training",
        transferred=(),
        validation=None,
        target=f"cityscapes:{data}/night:train",
        network=training.NetworkConfig(
            name="iccld", encoder="test_resnet", pretrained=False, iccld=ICCLDNetworkConfig(latent_channels=4)
        ),
        crop=(32, 32),
        steps=1,
        select="last",
        log="tensorboard",
    )
    events = told(train(config, tmp_path / "run"))
    [picture] = events.Images("pictures/target")
    assert picture.width % 64 == 0 and "target/shares/road" in events.Tags()["scalars"]


def test_a_continued_run_replaces_the_steps_that_were_lost(data, tmp_path, monkeypatch):
    config = training.config(data, log="tensorboard")
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        training.stop_in_step(stopped, 3)  # told of step 3, saved at step 2
        train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert [event.step for event in told(tmp_path / "run").Scalars("source")] == [1, 2, 3, 4, 5, 6]
    train(training.config(data, steps=8), tmp_path / "run")  # and may go on without


def test_other_trackers_get_the_settings_and_the_same_numbers(data, tmp_path, monkeypatch):
    """Trackio's functions, as accelerate calls them."""
    calls: list[tuple] = []
    fake = ModuleType("trackio")
    fake.config = {}
    fake.__spec__ = ModuleSpec("trackio", None)
    run_of = SimpleNamespace(
        log=lambda values, **more: calls.append(("log", values)), finish=lambda: calls.append(("finish",))
    )
    fake.init = lambda **options: calls.append(("init", options)) or run_of
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = train(training.config(data, log="trackio"), tmp_path / "mine")
    assert calls[0] == ("init", {"project": "segshift", "name": "mine"}) and calls[-1] == ("finish",)
    assert fake.config["zodi/similarity"] == "cosine" and fake.config["lr"] == "0.1"
    losses = [values["source"] for _, values in calls[1:-1] if "source" in values]
    assert losses == [line["source"] for line in training.logged(run) if "source" in line]


@pytest.mark.parametrize("missing", [True, False])
def test_a_tracker_that_is_not_there_or_cannot_begin_is_one_sentence(data, tmp_path, monkeypatch, missing):
    if missing:
        message = "--log wandb needs the package wandb: pip install wandb"
        config = training.config(data, log="wandb")
    else:
        message = (
            "--log tensorboard cannot begin .OSError: no space.: set tensorboard up first, or leave it out"
        )
        config = training.config(data, log="tensorboard")

        def full(*_, **__):
            raise OSError("no space")

        monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", full)
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run")
