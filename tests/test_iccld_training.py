"""ICCLD's two steps through the stages: data, bad input, resume, prediction with uncertainty."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import training
import trees

from segshift import runs
from segshift.config import (
    CheckConfig,
    ICCLDConfig,
    ICCLDNetworkConfig,
    NetworkConfig,
    PredictConfig,
    StrongAugmentation,
    TrainConfig,
)
from segshift.data import samples as batches
from segshift.data.labels import CITYSCAPES
from segshift.methods.iccld.diffusion import AdversarialDiffusion
from segshift.methods.iccld.self_training import SelfTraining
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.stages.check import check
from segshift.stages.predict import predict
from segshift.stages.train import train
from segshift.training import checkpoints
from segshift.training.watch import Watch

NETWORK = NetworkConfig(
    name="iccld", encoder="test_resnet", pretrained=False, iccld=ICCLDNetworkConfig(latent_channels=4)
)
SETTINGS = ICCLDConfig(diffused="label", unet_channels=(8, 16), adversary_warmup=1)
"""Of the reading that trains one network more, E_y."""


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
        source=f"cityscapes:{data}/day:train",
        target=f"cityscapes:{data}/dusk:train",
        method="self_training",
        network=NETWORK,
        iccld=SETTINGS,
        size=(32, 64),
        crop=(32, 32),
        batch_size=4,
        steps=3,
        optimizer="adamw",
        lr=1e-3,
        checkpoint_every=2,
        workers=0,
        device="cpu",
        select="last",
        jitter=(0, 0, 0, 0),
        head_lr=1.0,
    )
    return replace(plain, **changes)


def step2(data: Path, run: Path, **changes) -> TrainConfig:
    return replace(step1(data), method="adversarial_diffusion", from_run=str(run), **changes)


def trained(config: TrainConfig, folder: Path) -> Path:
    """The run `folder`/whole; beside it, `folder`/killed is what a kill in its last step leaves: a checkpoint
    of step 2.
    """
    kind = SelfTraining if config.method == "self_training" else AdversarialDiffusion
    whole = folder / "whole"
    with pytest.MonkeyPatch.context() as patch:
        training.copy_in_step(patch, kind, config.steps - 1, whole, folder / "killed")
        return train(config, whole)


def assert_the_killed_run_goes_on_to_the_same_bytes(config: TrainConfig, folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    assert checkpoints.last_step(killed) == 2
    train(config, killed)
    assert training.same(whole, killed) and training.logged(whole) == training.logged(killed)


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(step1(data, steps=4), tmp_path_factory.mktemp("step1"))


@pytest.fixture(scope="module")
def first_of_images(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = replace(SETTINGS, diffused="image")
    return trained(step1(data, steps=4, iccld=settings), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def second(data: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(step2(data, first, steps=1), tmp_path_factory.mktemp("step2"))


def test_a_target_of_fewer_frames_than_a_batch_is_trained_on(first: Path):
    assert checkpoints.last_step(first) == 4
    assert {"source", "mixed", "label_latent"} <= training.logged(first)[0].keys()


RECORDED = {
    "first": [
        {"source": 2.9976943, "mixed": 1.5459287, "label_latent": 2.9979234},
        {"source": 2.9841294, "mixed": 1.6597697, "label_latent": 2.968678},
    ],
    "second": [
        {
            "denoiser/diffusion_source": 1.8171256,
            "denoiser/estimate_source": 0.83728784,
            "denoiser/decoded_source": 2.8397593,
            "denoiser/diffusion_mixed": 0.67358613,
            "denoiser/estimate_mixed": 0.30172051,
            "denoiser/decoded_mixed": 1.2832209,
            "denoiser/adversarial": 0.0,
            "discriminator/discriminator": 1.0983606,
        },
        {
            "denoiser/diffusion_source": 1.5841038,
            "denoiser/estimate_source": 0.77320021,
            "denoiser/decoded_source": 2.9895598,
            "denoiser/diffusion_mixed": 0.67075317,
            "denoiser/estimate_mixed": 0.27629884,
            "denoiser/decoded_mixed": 1.5095409,
            "denoiser/adversarial": 0.0011013128,
            "discriminator/discriminator": 1.0968636,
        },
    ],
}
"""Losses of the first two steps, step 2 in two micro-batches: a change in the order of draws shows here."""


def test_the_losses_of_both_steps_are_those_on_record(data: Path, first: Path, tmp_path: Path):
    second = train(step2(data, first, accumulate=2, steps=2), tmp_path)
    for run, lines in ((first, RECORDED["first"]), (second, RECORDED["second"])):
        for line, expected, rel in zip(
            training.logged(run), lines, (1e-6, 1e-4), strict=False
        ):  # before any update, and after
            assert {name: line[name] for name in expected} == pytest.approx(expected, rel=rel)


def test_step_2_starts_from_the_teacher_of_step_1(first: Path, second: Path):
    before, _, _ = checkpoints.load_run(first, "last")
    after, _, _ = checkpoints.load_run(second, "last")
    assert isinstance(before, SelfTraining) and isinstance(after, AdversarialDiffusion)
    x = torch.rand(2, 3, 32, 64)
    ours, theirs = after.adapted.state_dict(), before.teacher.module.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )
    assert not torch.equal(before.predict(x), after.predict(x))


def test_a_run_is_not_continued_on_other_target_frames(data: Path, tmp_path: Path, monkeypatch):
    target = trees.cityscapes(tmp_path / "target", training.IDS[:4], labelled=False)
    config = step1(data, target=f"cityscapes:{target}:train", checkpoint_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SelfTraining, "after_step", _stop_in(SelfTraining.after_step, 1))
        train(config, tmp_path / "run")
    trees.cityscapes(target, training.IDS[4:], labelled=False)
    with pytest.raises(
        InputError, match=r"began with other frames than are there now \(5 labelled, 5 of the target"
    ):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("diffused", ["label", "image"])
@pytest.mark.parametrize("step", [1, 2])
def test_either_step_resumes_bitwise(
    step: int, diffused: str, data: Path, first: Path, first_of_images: Path, tmp_path: Path
):
    begun = first if diffused == "label" else first_of_images
    settings = replace(SETTINGS, diffused=diffused)
    if step == 1:
        config = step1(data, steps=4, iccld=settings)
        assert_the_killed_run_goes_on_to_the_same_bytes(config, begun.parent)
    else:
        config = step2(data, begun, iccld=settings)
        trained(config, tmp_path)
        assert_the_killed_run_goes_on_to_the_same_bytes(config, tmp_path)


def test_transferred_frames_are_one_more_labelled_source(
    data: Path, first: Path, tmp_path: Path, monkeypatch
):
    trees.mark_transferred(trees.cityscapes(tmp_path / "moved/night", training.IDS[:3]), training.IDS[:3])
    config = step1(data, more_sources=(f"cityscapes:{tmp_path}/moved/night:train",))
    drawn = []
    read = batches.Pictures.label
    monkeypatch.setattr(
        batches.Pictures, "label", lambda self, frame: drawn.append(frame.label) or read(self, frame)
    )
    whole = trained(config, tmp_path)
    assert {(tmp_path / "moved/night") in path.parents for path in drawn} == {False, True}
    assert training.logged(whole)[0] != training.logged(first)[0]
    assert_the_killed_run_goes_on_to_the_same_bytes(config, tmp_path)
    trees.synthia(tmp_path / "synthia")
    assert train(step1(data, more_sources=(f"synthia:{tmp_path}/synthia",), steps=1), tmp_path / "other")
    with pytest.raises(InputError, match="takes no --more-sources"):
        train(training.config(data, more_sources=config.more_sources), tmp_path / "zodi")


def test_sixteen_classes_go_through_both_steps_and_are_all_that_is_predicted(data: Path, tmp_path: Path):
    begun = train(step1(data, classes=16, steps=1), tmp_path / "first")
    run = train(step2(data, begun, classes=16, steps=1), tmp_path / "second")
    out = predict(PredictConfig(str(run), f"cityscapes:{data}/day:train", device="cpu"), tmp_path / "out")
    found = {
        value
        for file in out.rglob("*leftImg8bit.png")
        for value in np.unique(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)).tolist()
    }
    left_out = {CITYSCAPES.ids[CITYSCAPES.names.index(name)] for name in ("terrain", "truck", "train")}
    assert found and found <= set(CITYSCAPES.ids) - left_out


def test_step_2_follows_its_own_settings_before_and_after_an_interruption(
    data: Path, first: Path, second: Path, tmp_path: Path
):
    settings = replace(
        SETTINGS,
        threshold=0.0,
        sure_share=0.2,
        augmentation=StrongAugmentation(jitter_probability=0.0),
    )
    config = step2(data, first, iccld=settings)
    whole = trained(config, tmp_path)
    assert_the_killed_run_goes_on_to_the_same_bytes(config, tmp_path)
    assert training.logged(whole)[0] != training.logged(second)[0]


def _stop_in(after_step, step: int):
    def stopping(self, done):
        if done == step:
            raise KeyboardInterrupt
        after_step(self, done)

    return stopping


def test_a_continued_run_needs_neither_published_weights_nor_the_run_of_step_1(
    data: Path, first: Path, tmp_path: Path, monkeypatch
):
    step_1 = shutil.copytree(first, tmp_path / "first")
    config = step2(data, step_1, network=replace(NETWORK, pretrained=True))  # the run of step 1 brings them
    monkeypatch.setattr("timm.create_model", _offline(timm.create_model))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdversarialDiffusion, "after_step", _stop_in(AdversarialDiffusion.after_step, 2))
        train(config, tmp_path / "run")
    shutil.rmtree(step_1)
    assert checkpoints.last_step(train(config, tmp_path / "run")) == 3


def _offline(create):
    def created(*arguments, pretrained=False, **more):
        assert not pretrained, "a download"
        return create(*arguments, pretrained=False, **more)

    return created


def test_two_processes_train_both_players(data: Path, first: Path, tmp_path: Path):
    second = training.in_two_processes(step2(data, first, steps=1), tmp_path / "second")
    half = train(
        step2(data, first, steps=1, batch_size=2), tmp_path / "half"
    )  # what the first process has alone
    shared, alone = training.logged(second)[0], training.logged(half)[0]
    assert {"denoiser/adversarial", "discriminator/discriminator"} <= shared.keys() == alone.keys()
    assert all(
        shared[name] != alone[name] for name in ("denoiser/diffusion_source", "discriminator/discriminator")
    )
    ours, theirs = training.last(second), training.last(half)
    for player in ("trained", "discriminator"):  # gradients of both processes
        assert any(
            not torch.equal(value, theirs[name]) for name, value in ours.items() if name.startswith(player)
        )


def test_step_2_refuses_a_step_1_that_is_not_finished(data: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SelfTraining, "after_step", _stop_in(SelfTraining.after_step, 1))
        train(step1(data, checkpoint_every=1), tmp_path / "first")
    with pytest.raises(InputError, match="is at step 1 of 3: continue it"):
        train(step2(data, tmp_path / "first"), tmp_path / "second")


def test_a_loss_that_is_not_finite_names_the_target_frames_too(data: Path, tmp_path: Path, monkeypatch):
    losses = SelfTraining.losses
    monkeypatch.setattr(
        SelfTraining, "losses", lambda *a: (t := losses(*a)) | {"mixed": t["mixed"] / (a[3] != 2)}
    )
    with pytest.raises(
        InputError, match=r"loss 'mixed' is inf in step 3 \(frames aachen_.*, target aachen_.*\)"
    ):
        train(step1(data), tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2


def test_step_2_refuses_a_run_that_is_no_step_1_of_its_network(data: Path, first: Path, tmp_path: Path):
    other = replace(step2(data, first), network=replace(NETWORK, iccld=ICCLDNetworkConfig(latent_channels=8)))
    with pytest.raises(InputError, match=r"trained with --network\.iccld\.latent-channels 4, got 8"):
        train(other, tmp_path / "other")
    plain = step1(data, method="source_only", target=None, steps=1)
    with pytest.raises(InputError, match="trained by method source_only"):
        train(step2(data, train(plain, tmp_path / "plain")), tmp_path / "second")
    labels = runs.read_json(first / "labels.json")
    labels["names"][:2] = labels["names"][1::-1]  # as many classes, in another order
    shutil.copytree(first, tmp_path / "permuted")
    runs.write_json(tmp_path / "permuted" / "labels.json", labels)
    with pytest.raises(InputError, match="on the same classes, in the same order"):
        train(step2(data, tmp_path / "permuted"), tmp_path / "third")


def test_source_only_learns_its_heads_as_step_1_does(data: Path):
    plain = step1(data, method="source_only", target=None, head_lr=None)
    groups = {}
    for config in (plain, step1(data, head_lr=None, iccld=replace(SETTINGS, diffused="image"))):
        method = checkpoints.method_of(config, CITYSCAPES)
        groups[config.method] = [
            (sum(p.numel() for p in parameters), factor)
            for parameters, factor in method.parameter_groups("segmenter")
        ]
    assert groups["source_only"] == groups["self_training"] and [
        factor for _, factor in groups["source_only"]
    ] == [1, 10]


def test_the_oracles_frames_are_judged_at_the_size_that_targets_are_predicted_at(
    data: Path, tmp_path: Path, monkeypatch
):
    sizes, whole = set(), inference.infer

    def recorded(method, images):
        sizes.add(tuple(images.shape[2:]))
        return whole(method, images)

    monkeypatch.setattr(inference, "infer", recorded)
    day = f"cityscapes:{data}/day:train"
    train(step1(data, validation=day, oracle_validation=(day,), target_size=(48, 96), steps=1), tmp_path)
    assert sizes == {(32, 64), (48, 96)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "needs an unlabelled target"),
        ({"method": "source_only"}, "does not use --target"),
        ({"network": NetworkConfig(encoder="resnet18", pretrained=False)}, "take --network.name iccld"),
        ({"target_size": (16, 64)}, "crop .* is larger"),
        ({"method": "adversarial_diffusion"}, "needs a run of method self_training"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        train(step1(data, **changes), tmp_path)


def test_a_target_of_another_label_space_is_refused(data: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    (mine / "images").mkdir(parents=True)
    cv2.imwrite(str(mine / "images" / "a.png"), np.zeros((32, 64, 3), np.uint8))
    (mine / "dataset.yaml").write_text("images: images/*.png\nclasses: [ground, sky]\n")
    with pytest.raises(InputError, match="expected the same"):
        train(step1(data, target=f"folder:{mine}"), tmp_path / "run")


def test_rare_classes_are_drawn_as_often_as_the_formula_says():
    counts = np.array([[90, 0, 0], [60, 30, 0], [0, 18, 2]])
    share = counts.sum(0) / 200
    chances = np.exp((1 - share) / 0.5) / np.exp((1 - share) / 0.5).sum()
    rare, rng = batches.RareClasses(counts, 0.5), torch.Generator().manual_seed(0)
    drawn = np.bincount([rare.draw(rng) for _ in range(4000)], minlength=3) / 4000
    expected = [
        chances[0] / 2,
        chances[0] / 2 + chances[1] / 2,
        chances[1] / 2 + chances[2],
    ]  # a frame of two classes shares them
    assert drawn == pytest.approx(expected, abs=0.03) and expected[2] > 0.5
    absent = batches.RareClasses(np.array([[5, 0], [5, 0]]), 0.01)
    assert {absent.draw(rng) for _ in range(50)} == {0, 1}


def test_rare_class_sampling_reads_what_check_wrote(data: Path, tmp_path: Path):
    spec = step1(data).source
    check(CheckConfig(data=spec), tmp_path / "check")
    rare = step1(data, rare_classes=str(tmp_path / "check"), steps=1)
    plain = train(step1(data, steps=1), tmp_path / "plain")
    assert training.logged(train(rare, tmp_path / "run")) != training.logged(plain)
    runs.write_lines(tmp_path / "check" / "classes.jsonl", [])
    with pytest.raises(InputError, match="run segshift check"):
        train(rare, tmp_path / "without")


def test_rare_class_sampling_needs_statistics_with_pixels(data: Path, tmp_path: Path):
    rare = step1(data, rare_classes=str(tmp_path / "check"), steps=1)
    with pytest.raises(InputError, match=r"does not count the classes of 5 frames .*: run segshift check on"):
        train(rare, tmp_path / "never-checked")
    check(CheckConfig(data=rare.source), tmp_path / "check")
    lines = runs.read_lines(tmp_path / "check" / "classes.jsonl")
    empty = [line | {"pixels": [0] * len(line["pixels"])} for line in lines]
    runs.write_lines(tmp_path / "check" / "classes.jsonl", empty)
    with pytest.raises(InputError, match=r"classes.jsonl counts no pixel of any class .*: .*leave --rare"):
        train(rare, tmp_path / "void")


def test_a_target_of_one_image_is_trained_on_in_both_steps(data: Path, tmp_path: Path):
    one = trees.cityscapes(tmp_path / "one", training.IDS[:1], labelled=False)
    target = f"cityscapes:{one}:train"
    run = train(step1(data, target=target, steps=2), tmp_path / "step1")
    second = train(step2(data, run, target=target, steps=2), tmp_path / "step2")
    for trained in (run, second):
        steps = [line for line in training.logged(trained) if "lr" in line]
        assert len(steps) == 2
        assert all(np.isfinite(line[name]) for line in steps for name in line if name != "observed")


@pytest.mark.parametrize("trained, gone", [(True, {2, 3}), (False, {2, 3}), (True, {1, 2, 3})])
def test_a_training_that_loses_a_class_says_so_and_keeps_the_step_before(
    data: Path, tmp_path: Path, monkeypatch, caplog, trained, gone
):
    """Looks after steps 1 to 3, and before the first where the network is trained."""

    def scripted(self, method, frames, pictures, labelled=False):
        counts = (1000 * self.expected).round().astype(int)
        if not labelled and next(numbers) in gone:
            counts[self.expected.argmax()] = 0
        return counts, 0.9 if trained else 0.1

    numbers = iter(range(0 if trained else 1, 9))
    monkeypatch.setattr(Watch, "_predict", scripted)
    run = train(step1(data, validate_every=1), tmp_path)
    looks = {line["step"]: line["target"]["lost"] for line in training.logged(run) if "target" in line}
    assert list(looks) == ([0] if trained else []) + [1, 2, 3]
    assert {step for step, lost in looks.items() if lost} == gone
    assert checkpoints.chosen_steps(run) == {"last": 3, "target": min(gone) - 1}
    assert f"the training has lost {looks[3][0]} on the target" in caplog.text


def test_the_watch_goes_on_from_the_peaks_of_the_checkpoint(data: Path, tmp_path: Path):
    config = step1(data, validate_every=1)
    trained(config, tmp_path)
    assert_the_killed_run_goes_on_to_the_same_bytes(config, tmp_path)


def test_prediction_depends_on_the_frame_and_the_seed_alone(data: Path, second: Path, tmp_path: Path):
    plain = PredictConfig(
        run=str(second), data=step1(data).target, uncertainty=True, draws=3, sampling_steps=2, batch_size=1
    )
    one = predict(plain, tmp_path / "one")
    two = predict(replace(plain, batch_size=3), tmp_path / "two")
    names = [path.relative_to(one) for path in sorted(one.rglob("*.png"))]
    kinds = {str(name).split("/")[1] for name in names if str(name).startswith("uncertainty")}
    assert kinds == {"confidence", "entropy", "spread"}
    for name in names:
        ours, theirs = (
            cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED).astype(int) for folder in (one, two)
        )
        assert np.abs(ours - theirs).max() <= (2 if name.parts[0] == "uncertainty" else 0), name
    spread = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED).max() for p in one.glob("uncertainty/spread/**/*.png")]
    assert max(spread) > 0
    for wrong, message in (
        ({"draws": 0}, "draws is 0"),
        ({"sampling_steps": 1001}, "--sampling-steps is 1001: expected 1 to 1000"),
    ):
        with pytest.raises(InputError, match=message):
            predict(replace(plain, **wrong), tmp_path / "none")


def test_a_sliding_window_covers_every_pixel(data: Path, first: Path, tmp_path: Path):
    plain = PredictConfig(run=str(first), data=step1(data).target, window=(32, 32))
    whole = predict(replace(plain, window=(64, 128)), tmp_path / "whole")
    full = predict(replace(plain, window=None), tmp_path / "full")
    files = [path.relative_to(full) for path in sorted(full.rglob("*.png"))]
    assert files
    for file in files:
        assert (cv2.imread(str(whole / file), -1) == cv2.imread(str(full / file), -1)).all()
    with pytest.raises(InputError, match="trained by method self_training, which has no --draws"):
        predict(replace(plain, draws=2), tmp_path / "drawn")


def test_windows_cover_every_pixel_and_average_where_they_overlap(
    data: Path, second: Path, tmp_path: Path, monkeypatch
):
    """A network that says of a pixel what its own colour says gives the same with any window, step 2 and its
    maps too.
    """

    def by_colour(self, images, seeds=None):
        logits = 9 * torch.cat([images, *[images[:, :1] * 0 - 1] * 16], 1)
        return logits, {"entropy": images[:, 0], "spread": images[:, 1]}

    monkeypatch.setattr(AdversarialDiffusion, "predict_with_uncertainty", by_colour)
    plain = PredictConfig(run=str(second), data=step1(data).target, uncertainty=True, draws=2)
    full = predict(plain, tmp_path / "full")
    files = [path.relative_to(full) for path in sorted(full.rglob("*.png"))]
    assert {file.parts[0] for file in files} >= {"uncertainty"} and len(
        {cv2.imread(str(full / f), -1).tobytes() for f in files}
    ) > 3
    for window in ((32, 32), (17, 29), (31, 64)):
        narrow = predict(replace(plain, window=window, seed=7), tmp_path / f"{window}")
        assert runs.read_json(narrow / "model.json")["input"] == f"window {window[0]}x{window[1]}, seed 7"
        for file in files:
            a, b = (cv2.imread(str(folder / file), -1).astype(int) for folder in (narrow, full))
            assert np.abs(a - b).max() <= (1 if file.parts[0] == "uncertainty" else 0), (window, file)


@pytest.mark.parametrize(("threshold", "sure_share", "counted"), [(0.0, 0.5, True), (1.0, 0.0, False)])
def test_a_teacher_that_is_never_sure_and_a_target_of_few_images_are_told(
    data: Path, tmp_path: Path, caplog, threshold, sure_share, counted
):
    settings = replace(SETTINGS, threshold=threshold, sure_share=sure_share)
    run = train(step1(data, iccld=settings, steps=2), tmp_path / "run")
    shares = [line["observed"]["pseudo-labels that count"] for line in training.logged(run)[:2]]
    assert shares == [1.0, 1.0] if counted else max(shares) < 0.001
    assert "has 3 image(s): the training learns these" in caplog.text
    assert ("learnt from the source alone" in caplog.text) is not counted
