"""ICCLD's two steps through the stages: data, bad input, resume, prediction with uncertainty."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import training
import trees

from segshift import checkpoints, runs
from segshift.config import CheckConfig, ICCLDConfig, NetworkConfig, PredictConfig, TrainConfig
from segshift.methods.iccld import AdversarialDiffusion, SelfTraining
from segshift.runs import InputError
from segshift.stages.check import check
from segshift.stages.predict import predict
from segshift.stages.train import train

NETWORK = NetworkConfig(name="iccld", encoder="test_resnet", pretrained=False, latent_channels=4)
SETTINGS = ICCLDConfig(unet_channels=(8, 16), adversary_warmup=1, head_lr=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    trees.cityscapes(root / "day", training.IDS)
    trees.cityscapes(root / "dusk", training.IDS[:3])
    for label in (root / "dusk" / "gtFine").rglob("*"):
        if label.is_file():
            label.unlink()  # a target has no labels
    return root


def step1(data: Path, **changes) -> TrainConfig:
    plain = TrainConfig(
        source=f"cityscapes:{data}/day:train", target=f"cityscapes:{data}/dusk:train", method="self_training",
        network=NETWORK, iccld=SETTINGS, size=(32, 64), crop=(32, 32), batch_size=4, steps=4, optimizer="adamw", lr=1e-3,
        checkpoint_every=2, workers=0, device="cpu", select="last", jitter=(0, 0, 0, 0),
    )  # fmt: skip
    return replace(plain, **changes)


def step2(data: Path, run: Path, **changes) -> TrainConfig:
    return replace(step1(data), method="adversarial_diffusion", from_run=str(run), **changes)


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(step1(data), tmp_path_factory.mktemp("step1"))


def test_a_target_of_fewer_frames_than_a_batch_is_trained_on(first: Path):
    assert checkpoints.last_step(first) == 4
    assert {"source", "mixed", "label_latent"} <= training.logged(first)[0].keys()


def test_step_2_starts_from_the_teacher_of_step_1(data: Path, first: Path, tmp_path: Path):
    train(step2(data, first, steps=1), tmp_path)
    before, _, _ = checkpoints.load_run(first, "last")
    after, _, _ = checkpoints.load_run(tmp_path, "last")
    assert isinstance(before, SelfTraining) and isinstance(after, AdversarialDiffusion)
    x = torch.rand(2, 3, 32, 64)
    ours = {name: value for name, value in after.state_dict().items() if "network.encoder" in name}
    theirs = before.teacher.state_dict()
    assert ours
    for name, value in ours.items():
        match = [v for n, v in theirs.items() if n.endswith(name.split("network.encoder")[1]) and "network.encoder" in n]
        assert any(torch.equal(value, v) for v in match), name
    assert not torch.equal(before.predict(x), after.predict(x))


@pytest.mark.parametrize("step", [1, 2])
def test_either_step_resumes_bitwise(step: int, data: Path, first: Path, tmp_path: Path, monkeypatch):
    config = step1(data) if step == 1 else step2(data, first)
    kind = SelfTraining if step == 1 else AdversarialDiffusion
    whole = first if step == 1 else train(config, tmp_path / "whole")
    after_step = kind.after_step

    def killed(self, done):
        if done == 3:
            raise KeyboardInterrupt
        after_step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    assert training.same(whole, tmp_path / "killed")
    assert training.logged(whole) == training.logged(tmp_path / "killed")


def test_step_2_refuses_a_run_that_is_no_step_1_of_its_network(data: Path, first: Path, tmp_path: Path):
    other = replace(step2(data, first), network=replace(NETWORK, latent_channels=8))
    with pytest.raises(InputError, match="step 1 of another network"):
        train(other, tmp_path / "other")
    plain = step1(data, method="source_only", target=None, steps=1)
    with pytest.raises(InputError, match="trained by method source_only"):
        train(step2(data, train(plain, tmp_path / "plain")), tmp_path / "second")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "needs an unlabelled target"),
        ({"method": "source_only"}, "does not use `target`"),
        ({"network": NetworkConfig(encoder="resnet18", pretrained=False)}, "trains network iccld"),
        ({"iccld": replace(SETTINGS, threshold=1.5)}, "threshold is 1.5"),
        ({"iccld": replace(SETTINGS, masked_ratio=2.0)}, "masked_ratio is 2.0, expected 0 to 1"),
        ({"target_size": (16, 64)}, "crop .* is larger"),
        ({"method": "adversarial_diffusion"}, "needs a run of method self_training"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        train(step1(data, **changes), tmp_path)


def test_a_target_of_another_label_space_is_refused(data: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((32, 64, 3), np.uint8))
    (tmp_path / "dataset.yaml").write_text("images: images/*.png\nclasses: [ground, sky]\n")
    with pytest.raises(InputError, match="expected the same"):
        train(step1(data, target=f"folder:{tmp_path}"), tmp_path / "run")


def test_rare_classes_are_drawn_more_often(data: Path, tmp_path: Path):
    spec = step1(data).source
    check(CheckConfig(data=spec), tmp_path / "check")
    rare = replace(SETTINGS, rare_classes=str(tmp_path / "check"))
    train(step1(data, iccld=rare, steps=1), tmp_path / "run")
    runs.write_lines(tmp_path / "check" / "classes.jsonl", [])
    with pytest.raises(InputError, match="run segshift check"):
        train(step1(data, iccld=rare, steps=1), tmp_path / "without")


def test_prediction_depends_on_the_frame_and_the_seed_alone(data: Path, first: Path, tmp_path: Path):
    run = train(step2(data, first, steps=2), tmp_path / "run")
    plain = PredictConfig(run=str(run), data=step1(data).target, uncertainty=True, draws=3, sampling_steps=2, batch_size=1)
    one = predict(plain, tmp_path / "one")
    two = predict(replace(plain, batch_size=3), tmp_path / "two")
    names = [path.relative_to(one) for path in sorted(one.rglob("*.png"))]
    kinds = {str(name).split("/")[1] for name in names if str(name).startswith("uncertainty")}
    assert kinds == {"confidence", "entropy", "spread"}
    for name in names:
        ours, theirs = (cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED).astype(int) for folder in (one, two))
        assert np.abs(ours - theirs).max() <= (2 if name.parts[0] == "uncertainty" else 0), name
    spread = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED).max() for p in one.glob("uncertainty/spread/**/*.png")]
    assert max(spread) > 0
    with pytest.raises(InputError, match="draws is 0"):
        predict(replace(plain, draws=0), tmp_path / "none")


def test_a_sliding_window_covers_every_pixel(data: Path, first: Path, tmp_path: Path):
    plain = PredictConfig(run=str(first), data=step1(data).target, window=(32, 32))
    narrow = predict(plain, tmp_path / "narrow")
    whole = predict(replace(plain, window=(64, 128)), tmp_path / "whole")
    full = predict(replace(plain, window=None), tmp_path / "full")
    files = [path.relative_to(full) for path in sorted(full.rglob("*.png"))]
    assert files
    for file in files:
        assert cv2.imread(str(narrow / file), -1).shape == cv2.imread(str(full / file), -1).shape
        assert (cv2.imread(str(whole / file), -1) == cv2.imread(str(full / file), -1)).all()
    with pytest.raises(InputError, match="draws no noise"):
        predict(replace(plain, draws=2), tmp_path / "drawn")
