"""Estimates: the statistics on numbers made up for them, the whole stage on a tiny data set, and wrong
input."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import networks
import numpy as np
import pytest
import tiny_diffusion
import torch
import trees
from PIL import Image
from safetensors.torch import load_file, save_file
from test_masks import eomt, saved
from training import config as training_config
from transferring import load_once

from segshift import networks as segmentation_networks
from segshift import outputs, records, runs
from segshift.__main__ import main
from segshift.config import (
    DiffusionConfig,
    EstimateConfig,
    NetworkConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.engine.worker import target_domains
from segshift.generators import loading
from segshift.recipes import runner
from segshift.runs import InputError
from segshift.scoring import bootstrap, label_free, metrics
from segshift.stages.estimate import estimate
from segshift.town import writer
from segshift.training import checkpoints
from segshift.training.origins import identity

TWO_CONVS = NetworkConfig(name="networks:two_convs", pretrained=False)
IDS = tuple(f"ulm_{i:06d}_000019" for i in range(10))
SANDSTORM = "in a sandstorm"


def matrices(*right: list[int], wrong: int = 10) -> np.ndarray:
    """M [F, 1, 2, 3] of one list a frame: pixels of class 0 and 1 that are right; of each, `wrong` are taken
    for the other.
    """
    return np.array([[[[a, wrong, 0], [wrong, b, 0]]] for a, b in right])


# ------------------------------------------------------------------------------------------ the statistics


def test_the_correction_takes_off_what_the_transfer_costs():
    source, own = np.array([0.8, 0.6, 0.4]), np.array([0.4, 0.3, 0.2])
    halved = bootstrap.correct(source, own, own / 2)  # of what the transfer leaves, the domain leaves half
    np.testing.assert_allclose(halved, source / 2, atol=1e-12)
    np.testing.assert_allclose(bootstrap.correct(source, own, own), source, atol=1e-12)
    free = bootstrap.correct(
        source, source, np.array([0.2, 0.5, 0.1])
    )  # a transfer that costs nothing: T itself
    np.testing.assert_allclose(free, [0.2, 0.5, 0.1], atol=0.04)
    assert bootstrap.correct(source, own, 3 * source).max() == 1


def test_a_class_that_the_transfer_destroys_falls_as_the_others_do():
    source, own = np.array([0.8, 0.6, 0.4]), np.array([0.6, 0.5, 0.0])
    low, high = (bootstrap.correct(source, own, np.array([0.3, 0.25, t]))[2] for t in (0.0, 0.01))
    assert low == pytest.approx(0.4 / 2, abs=1e-12) and low < high < 0.3  # no 0.01 / 0
    blind = bootstrap.correct(source, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(blind, source)  # nothing was measured
    some = bootstrap.correct(np.array([0.8, np.nan]), np.array([0.4, np.nan]), np.array([0.2, np.nan]))
    assert some[0] == pytest.approx(0.4) and np.isnan(some[1])


def test_ratios_are_taken_of_summed_matrices_in_every_resample():
    uneven = matrices(*[[0, 0]] * 10, *[[10_000, 10_000]] * 10, wrong=1)
    [low], [high] = (
        end[None]
        for end in bootstrap.interval(bootstrap.mean(bootstrap.resampled([uneven] * 3, 200, 0))[:, 0])
    )
    whole = metrics.miou(uneven.sum((0, 1)))
    assert 0.99 < low <= whole <= high < 1  # the mean of the frames' own ratios is 0.5
    same = bootstrap.resampled([matrices(*[[30, 20]] * 10)] * 3, 100, 0)
    np.testing.assert_allclose(same, np.broadcast_to(same[0], same.shape))


def test_the_sets_are_resampled_together_and_the_draws_apart():
    rng = np.random.default_rng(0)
    frames_of = matrices(*rng.integers(0, 100, (12, 2)).tolist())
    drop = bootstrap.resampled([frames_of] * 3, 200, 0)
    assert drop[:, 0].std() > 0.01
    np.testing.assert_allclose(drop[:, 0], drop[:, 3])  # of the same frames there is no drop, in any resample


def test_one_deviation_of_the_interval_is_what_the_transfer_costs():
    right, most = matrices(*[[80, 80]] * 12, wrong=20), matrices(*[[60, 60]] * 12, wrong=40)
    drawn = bootstrap.mean(bootstrap.resampled([right, most, most], 2000, 0))
    source, own, raw, corrected = drawn.T
    assert max(source.std(), own.std(), raw.std()) < 1e-9  # equal frames, and P alone spreads
    cost = source[0] - raw[0]
    assert bootstrap.mean(bootstrap.scores(*(m.sum((0, 1)) for m in (right, most, most))))[
        3
    ] == pytest.approx(raw[0] + cost / 2)
    low, high = bootstrap.interval(corrected[:, None])
    assert (low[0], high[0]) == pytest.approx(
        (raw[0] + (0.5 - 1.645) * cost, raw[0] + (0.5 + 1.645) * cost), abs=0.1 * cost
    )


def test_a_prediction_is_a_share_also_in_the_tails_of_its_interval():
    right, few = matrices(*[[99, 99]] * 12, wrong=1), matrices(*[[10, 10]] * 12, wrong=90)
    corrected = bootstrap.resampled([right, few, few], 300, 0)[:, 3]
    assert corrected.min() == 0 and corrected.max() == 1


def test_a_class_that_one_frame_shows_is_in_every_resample():
    frames_of = matrices(*[[80, 0]] * 19, [80, 1], wrong=20)
    spread = bootstrap.resampled([frames_of] * 3, 300, 0)[:, 0]
    assert not np.isnan(spread[:, 1]).any()
    value = bootstrap.mean(bootstrap.scores(*[frames_of.sum((0, 1))] * 3))[0]
    low, high = bootstrap.interval(bootstrap.mean(spread)[:, None])
    assert low[0] <= value <= high[0] < value + 0.05  # and the mean is over the same classes


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_the_spread_of_noise_that_is_each_frames_own_is_held_once(draws):
    """Noise is all that varies: the bootstrap's variance is that of the score over worlds, whatever the
    number of draws.
    """
    rng, scores, spreads = np.random.default_rng(0), [], []
    for trial in range(150):
        right = rng.integers(20, 80, (40, draws, 2))
        drawn = np.concatenate([matrices(*right[:, d].tolist(), wrong=50) for d in range(draws)], 1)
        scores.append(bootstrap.mean(bootstrap.scores(*[drawn.sum((0, 1))] * 3))[2])
        spreads.append(bootstrap.mean(bootstrap.resampled([drawn] * 3, 100, trial))[:, 2].var())
    assert np.mean(spreads) / np.var(scores) == pytest.approx(1, abs=0.3)


def test_noise_that_all_frames_of_a_draw_share_is_resampled_by_draws():
    right, wrong = matrices(*[[50, 50]] * 12), matrices(*[[0, 0]] * 12)
    both = np.concatenate([right, wrong], 1)  # the frames are alike, the draws are not
    own, common = (
        bootstrap.resampled([right, right, both], 200, 0, common_noise=common)[:, 2]
        for common in (False, True)
    )
    assert own.std() < 1e-9 and common.std() > 0.1
    np.testing.assert_array_equal(
        bootstrap.resampled([right, right, wrong], 100, 1), bootstrap.resampled([right, right, wrong], 100, 1)
    )


def test_an_error_of_the_generator_is_also_expected_where_a_class_is_predicted_to_be_lost():
    assert bootstrap.class_error(0.0) == bootstrap.CLASS_FLOOR
    assert bootstrap.class_error(0.6) == pytest.approx(
        ((0.6 * bootstrap.GENERATOR_CLASS) ** 2 + bootstrap.CLASS_FLOOR**2) ** 0.5
    )


def test_the_interval_covers_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(40):
        right = rng.integers(0, 100, (40, 2))  # of a world in which half of 100 pixels are right on average
        spread = bootstrap.mean(bootstrap.resampled([matrices(*right.tolist(), wrong=50)] * 3, 100, trial))[
            :, 0
        ]
        low, high = bootstrap.interval(spread[:, None])
        hits += low[0] <= 49.5 / 149.5 <= high[0]
    assert abs(hits / 40 - bootstrap.LEVEL) < 0.12


def test_failing_classes_come_worst_first_and_need_a_score_on_the_source():
    source = np.array([0.8, 0.6, 0.5, 0.0, np.nan, 0.4])
    predicted = np.array([0.3, 0.1, 0.25, 0.0, np.nan, 0.0])
    assert bootstrap.failing(source, predicted) == [5, 1, 0]


# ------------------------------------------------------------------------------------------ the whole stage


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Ten labelled frames, a diffusion model, and a network that was trained elsewhere."""
    home = tmp_path_factory.mktemp("estimate")
    trees.cityscapes(home / "day", IDS, (64, 64), split="val")
    tiny_diffusion.prior(home / "prior")
    torch.manual_seed(0)
    torch.save(networks.two_convs(19).state_dict(), home / "mine.pth")
    return home


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    load_once(monkeypatch)


def config(home: Path, **changes) -> EstimateConfig:
    plain = EstimateConfig(
        run=str(home / "mine.pth"),
        source=f"cityscapes:{home}/day:val",
        network=TWO_CONVS,
        to=("night",),
        steps=2,
        draws=1,
        resamples=100,
        batch_size=10,
        transferred=str(home / "transferred"),
        device="cpu",
        diffusion=DiffusionConfig(model=str(home / "prior"), device="cpu"),
    )
    return replace(plain, **changes)


def training_run(home: Path, folder: Path, **changes) -> Path:
    """A training run of random weights."""
    plain = {"source": f"cityscapes:{home}/day:val", "method": "source_only", "select": "last"}
    trained = training_config(home, **plain | changes)
    outputs.begin(folder, "train", trained)
    checkpoints.describe(folder, CITYSCAPES, torch.device("cpu"))
    torch.manual_seed(1)
    checkpoints.save_best(folder, 6, checkpoints.method_of(trained, CITYSCAPES), None)
    return folder


def pictures(*folders: Path) -> dict[Path, int]:
    """When each PNG was written."""
    found = [path for folder in folders for path in folder.rglob("*.png") if not path.is_symlink()]
    return {path: path.stat().st_mtime_ns for path in found}


def test_the_estimate_of_a_network_trained_elsewhere(home: Path, tmp_path: Path, capsys):
    out = estimate(config(home, draws=2), tmp_path / "out")
    result = runs.read_json(out / "estimate.json")
    assert "predicted mIoU" in capsys.readouterr().out
    assert list(result["domains"]) == ["night"] and result["frames"] == 10
    night = result["domains"]["night"]
    made = {path.name for path in (home / "transferred").iterdir()}
    assert made >= {
        f"{domain}-0.9-{seed}" for domain in ("night", "driving-in-daylight") for seed in (42, 43)
    }

    # the raw score is that of both draws' matrices together, the source's that of its evaluation
    scored = [runs.read_json(Path(draw["evaluation"]) / "metrics.json") for draw in night["target_draws"]]
    together = sum(np.array(one["confusion"]) for one in scored)
    assert scored[0]["confusion"] != scored[1]["confusion"]
    assert night["raw"]["miou"]["value"] == pytest.approx(metrics.miou(together))
    source = runs.read_json(Path(result["source"]["evaluation"]) / "metrics.json")
    assert night["source"]["miou"]["value"] == pytest.approx(source["miou"])
    three = [
        np.array([night[name]["iou"][c]["value"] for c in CITYSCAPES.names])
        for name in ("source", "own", "raw")
    ]
    expected = (three[2] + bootstrap.correct(*three)) / 2
    assert [night["corrected"]["iou"][c]["value"] for c in CITYSCAPES.names] == pytest.approx(
        expected.tolist()
    )
    assert night["corrected"]["miou"]["value"] == pytest.approx(expected.mean())
    assert night["drop"]["value"] == pytest.approx(three[0].mean() - expected.mean())
    narrow, wide = night["without_generator"]["miou"], night["corrected"]["miou"]
    low, high = bootstrap.widened(*narrow.values(), 0.14 * narrow["value"])
    assert (wide["low"], wide["high"]) == pytest.approx((max(0, low), high)) and wide["high"] > narrow["high"]
    assert night["drop"]["high"] - night["drop"]["low"] > wide["high"] - narrow["high"]
    road, wide = night["without_generator"]["iou"]["road"], night["corrected"]["iou"]["road"]
    low, high = bootstrap.widened(*road.values(), bootstrap.class_error(road["value"]))
    assert (wide["low"], wide["high"]) == pytest.approx((max(0, low), min(1, high)))
    assert night["trained_on"] is False and not runs.failures(out)
    for name in bootstrap.SCORES:
        told = night[name]["miou"]
        assert told["low"] < told["high"] and told["low"] - 0.02 < told["value"] < told["high"] + 0.02
    assert 0 < night["confidence"]["target"] <= 1 and len(night["target_draws"][0]["weights"]) == 4
    assert night["target_draws"][0]["images_sha256"] != night["target_draws"][1]["images_sha256"]
    for name in (
        "estimate without target images",
        "seeds 42, 43",
        "driving in daylight",
        "10 frames",
        "mine.pth",
    ):
        assert name in result["protocol"]

    # its config.json repeats it, and does nothing again; one draw less is found as it is
    before, told = pictures(out, home / "transferred"), (out / "estimate.json").read_bytes()
    runner.run(str(out / "config.json"))
    assert (out / "estimate.json").read_bytes() == told
    estimate(config(home), out)
    assert (
        runs.read_json(out / "estimate.json")["draws"] == 1 and pictures(out, home / "transferred") == before
    )
    with pytest.raises(InputError, match=r"other options \(--steps 2 there, 3 asked for\)"):
        estimate(config(home, steps=3), out)


def test_a_mask_classifier_is_estimated_like_any_network(home, tmp_path):
    saved(tmp_path, eomt)
    network = NetworkConfig(name=f"hf:{tmp_path}")
    settings = config(home, run=str(tmp_path / "model.safetensors"), network=network, size=(64, 64))
    night = runs.read_json(estimate(settings, tmp_path / "out") / "estimate.json")["domains"]["night"]
    assert 0 < night["source"]["miou"]["value"] < 1 and 0 < night["corrected"]["miou"]["value"] < 1


def test_a_vision_transformer_is_estimated_like_any_network(home, tmp_path):
    network = NetworkConfig(name="vit", encoder="test_vit", pretrained=False)
    torch.save(segmentation_networks.build(network, 19).network.state_dict(), tmp_path / "vit.pth")
    settings = config(home, run=str(tmp_path / "vit.pth"), network=network, size=(64, 64))
    night = runs.read_json(estimate(settings, tmp_path / "out") / "estimate.json")["domains"]["night"]
    assert 0 < night["source"]["miou"]["value"] < 1 and 0 < night["corrected"]["miou"]["value"] < 1


def test_networks_share_transferred_frames_and_a_run_keeps_its_class_set(home: Path, tmp_path: Path, caplog):
    first = runs.read_json(estimate(config(home), tmp_path / "out") / "estimate.json")
    before = pictures(home / "transferred")
    run = training_run(home, tmp_path / "run", classes=13)
    estimate(config(home, run=str(run), network=None), run / "estimate")
    second = runs.read_json(run / "estimate" / "estimate.json")
    assert pictures(home / "transferred") == before
    one, other = (told["domains"]["night"] for told in (first, second))
    assert one["target_draws"][0]["images_sha256"] == other["target_draws"][0]["images_sha256"]
    assert len(second["classes"]) == 13 and one["raw"] != other["raw"]
    assert other["trained_on"] and "night: this network was trained on transferred frames" in caplog.text
    assert "10 of 10 frames of" in caplog.text and "name a split that no training has seen" in caplog.text


def test_a_domain_that_was_trained_on_is_known_by_its_prompt_too(home: Path, tmp_path: Path):
    tree = trees.cityscapes(tmp_path / "renamed", IDS[:2], (64, 64))
    [target] = target_domains(TransferConfig(source="", to=("night",)))
    runs.write_lines(tree / "manifest.jsonl", [{"id": id, "prompt": target.prompt} for id in IDS[:2]])
    step1 = training_run(home, tmp_path / "first", more_sources=(f"cityscapes:{tree}:train",), transferred=())
    second = training_run(home, tmp_path / "second", from_run=str(step1), transferred=())
    told = runs.read_json(
        estimate(config(home, run=str(second), network=None, to=("night", "fog")), tmp_path / "out")
        / "estimate.json"
    )
    assert [domain["trained_on"] for domain in told["domains"].values()] == [True, False]


def test_runs_that_start_from_each_other_are_wrong_input(home: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for run, start in ((one, two), (two, one)):
        training_run(home, run, from_run=str(start), transferred=())
    for start in (two, one):
        saved = (one / "config.json").read_text()
        (one / "config.json").write_text(saved.replace(str(two), str(start)))
        with pytest.raises(InputError, match=r"one/config\.json names as from_run a run that"):
            estimate(config(home, run=str(one), network=None), tmp_path / "out")


def test_a_class_that_few_frames_show_has_no_interval(home: Path, tmp_path: Path, capsys):
    rare, day = 18, shutil.copytree(home / "day", tmp_path / "day", symlinks=True)
    for path in sorted(day.rglob("*_gtFine_labelIds.png"))[bootstrap.FEWEST_OF_CLASS - 1 :]:
        label = np.array(Image.open(path))
        label[label == CITYSCAPES.ids[rare]] = 0
        trees.save(path, label)
    settings = config(home, source=f"cityscapes:{day}:val", transferred=None)
    night = runs.read_json(estimate(settings, tmp_path / "out") / "estimate.json")["domains"]["night"]
    for name in bootstrap.SCORES:
        told = night[name]["iou"]
        assert (
            told["bicycle"]["value"] is not None
            and told["bicycle"]["low"] is None
            and told["road"]["low"] is not None
        )
    assert night["corrected"]["miou"]["low"] is not None and "(- to" not in capsys.readouterr().out


def test_another_family_of_diffusion_models_estimates_too(home: Path, tmp_path: Path):
    model = tiny_diffusion.stable_diffusion_xl(tmp_path / "xl")
    told = config(home, transferred=None, diffusion=DiffusionConfig(model=str(model), device="cpu"))
    out = estimate(told, tmp_path / "out")
    night = runs.read_json(out / "estimate.json")["domains"]["night"]
    assert night["strength"] == 0.9 and 0 <= night["corrected"]["miou"]["value"] <= 1
    assert main(["report", str(tmp_path / "page"), "--runs", str(out)]) == 0


def test_the_network_is_built_once_for_all_sets(home: Path, tmp_path: Path, monkeypatch):
    built, build = [], segmentation_networks.build
    monkeypatch.setattr(
        segmentation_networks, "build", lambda *what, **how: built.append(what) or build(*what, **how)
    )
    estimate(config(home), tmp_path / "out")
    assert len(built) == 1


def test_a_sentence_is_compared_with_the_own_domain_at_its_strength(home: Path, tmp_path: Path):
    out = estimate(config(home, to=(SANDSTORM, "driving in daylight")), tmp_path / "out")
    storm, day = runs.read_json(out / "estimate.json")["domains"].values()
    assert (storm["name"], storm["prompt"], storm["strength"]) == (
        SANDSTORM,
        f"{SANDSTORM}, best quality",
        0.75,
    )
    assert Path(storm["own_draws"][0]["transferred"]).parent.name == "driving-in-daylight-0.75-42"
    assert (
        day["raw"] == day["own"] == storm["own"] and day["failing"] == []
    )  # its own domain: the transfer's cost alone
    assert day["drop"]["value"] == pytest.approx(day["transfer_cost"]["value"] / 2)
    assert day["drop"]["low"] < day["transfer_cost"]["value"] / 4  # and hardly any is among what it may be


def test_the_best_of_several_networks_is_counted_over_the_same_resamples():
    rng = np.random.default_rng(0)
    frames_of = matrices(*rng.integers(20, 80, (12, 2)).tolist(), wrong=50)
    worse = frames_of.copy()
    worse[..., 0, 0] -= 15
    resamples = [bootstrap.mean(bootstrap.resampled([one] * 3, 1000, 0))[:, 3] for one in (worse, frames_of)]
    assert resamples[0].max() > resamples[1].min()  # alone they overlap; frame by frame one is always better
    assert (resamples[1] > resamples[0]).all()
    low, high = bootstrap.best(np.stack(resamples), 0)
    assert low + high == pytest.approx(1) and 0.75 < high < 0.95  # but the generator may misjudge one of them
    twins = bootstrap.best(np.stack([resamples[1]] * 3), 0)
    assert twins == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    assert (bootstrap.best(np.stack([resamples[1]] * 3), 0) == twins).all()


def test_networks_are_ranked_on_frames_that_are_transferred_once(home: Path, tmp_path: Path, capsys):
    candidates = [training_run(home, tmp_path / name / "run", transferred=()) for name in ("a", "b")]
    torch.manual_seed(5)
    checkpoints.save_best(
        candidates[1], 6, checkpoints.method_of(training_config(home, method="source_only"), CITYSCAPES), None
    )
    several = config(
        home, run=(*map(str, candidates), str(home / "mine.pth")), to=("night", "fog"), transferred=None
    )
    out = estimate(several, tmp_path / "out")
    made = sorted(path.name for path in (out / "transferred").iterdir())
    assert len(made) == 4 and len([name for name in made if name.startswith("driving")]) == 2
    ranked = runs.read_json(out / "ranking.json", records.RANKING)
    assert list(ranked["candidates"]) == ["a/run", "b/run", "mine.pth"]
    for domain in ranked["domains"].values():
        values = [line["miou"]["value"] for line in domain["ranking"]]
        assert values == sorted(values, reverse=True) and sum(line["best"] for line in domain["ranking"]) == 1
    assert "is the best" in capsys.readouterr().out

    # each estimate is what the network gets alone
    alone = estimate(
        replace(several, run=(str(candidates[1]),), network=None, transferred=str(out / "transferred")),
        tmp_path / "alone",
    )
    for slug, domain in runs.read_json(alone / "estimate.json")["domains"].items():
        other = ranked["candidates"]["b/run"]["domains"][slug]
        assert {**domain, "own_draws": 0, "target_draws": 0} == {**other, "own_draws": 0, "target_draws": 0}

    # the page shows it, and a second call does nothing again
    before, told = pictures(out), (out / "ranking.json").read_bytes()
    runner.run(str(out / "config.json"))
    assert pictures(out) == before and (out / "ranking.json").read_bytes() == told
    assert main(["report", str(tmp_path / "page"), "--runs", str(out)]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count('<table class="ranking">') == 1 and "network, best first" in page


def copied(folder: Path, images: list[Path], change=lambda image: image) -> Path:
    """The pictures once more, under names of their own and in another format."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(change(np.array(Image.open(image)))).save(folder / f"{i:03d}.tiff")
    return folder


WORLD = """
import numpy as np

def build(classes):
    def scores(image):  # sure and right where the red channel is 12 times a train id
        return -4 * (image[:, :, 0] / 12 - np.arange(classes)[:, None, None]) ** 2
    return scores

def noisy(image, layout, domain, seed, amount=None):
    amount = amount or (4 if "night" in domain.prompt else 2)
    return (image + np.random.default_rng(seed).normal(0, amount, image.shape)).clip(0, 255).astype(np.uint8)

def rain():
    return noisy

def other():
    return lambda *what: noisy(*what, amount=5)

def fair():
    return lambda image, layout, domain, seed: image // 2 if "night" in domain.prompt else image

def nothing():
    return lambda image, layout, domain, seed: image
"""
"""A network and generators on frames whose red channel tells their labels, under noise."""


@pytest.fixture
def noisy_world(tmp_path: Path, monkeypatch) -> EstimateConfig:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy_world.py").write_text(WORLD)
    sys.modules.pop("noisy_world", None)
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day', IDS, (64, 64), split='val')}:val"
    for frame in frames.load(day).frames:
        ids = frames.read_label(frame, CITYSCAPES)
        trees.save(frame.image, np.repeat(12 * (ids % 19)[..., None], 3, 2).astype(np.uint8))
    return EstimateConfig(
        "noisy_world:build",
        day,
        draws=2,
        resamples=100,
        device="cpu",
        generator="noisy_world:rain",
        transferred=str(tmp_path / "transferred"),
    )


def test_target_images_show_what_the_generator_is_off_by(noisy_world, tmp_path: Path, capsys):
    out = estimate(noisy_world, tmp_path / "out")
    alone = runs.read_json(out / "estimate.json")["domains"]["night"]
    values = [alone[name]["miou"]["value"] for name in ("source", "own", "raw")]
    assert values == sorted(values, reverse=True)
    made = sorted((tmp_path / "transferred").glob("night-0.9-4[23]/night/**/*_leftImg8bit.png"))
    assert len(made) == 20

    # as if the generator were right: nothing is seen, and the interval holds what frames may hide
    same = replace(noisy_world, target_images=str(copied(tmp_path / "same", made)))
    told = runs.read_json(estimate(same, out) / "estimate.json", records.ESTIMATE)
    night = told["domains"]["night"]
    seen = night["target_images"]
    assert "20 unlabelled target images" in told["protocol"] and seen["count"] == 20
    assert seen["generator_error"]["value"] == pytest.approx(0, abs=1e-6)
    assert seen["generator_error"]["low"] < 0 < seen["generator_error"]["high"]
    for name in label_free.SCORES:
        assert seen["scores"][name]["generated"] == pytest.approx(seen["scores"][name]["real"], abs=1e-5)
    assert seen["without"] == alone["corrected"]["miou"]
    assert night["corrected"]["miou"]["value"] == pytest.approx(alone["corrected"]["miou"]["value"], abs=1e-5)
    assert "target_images" not in alone and "20 target images show" in capsys.readouterr().out

    # real ones are worse: half of what is seen is taken off, of every class alike
    def worse(image: np.ndarray) -> np.ndarray:
        return (image + np.random.default_rng(0).normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)

    real = replace(noisy_world, target_images=str(copied(tmp_path / "real", made, worse)))
    night = runs.read_json(estimate(real, out) / "estimate.json")["domains"]["night"]
    error = night["target_images"]["generator_error"]
    assert error["high"] < 0 and -0.5 < error["value"] < -0.02
    before, now = alone["corrected"]["miou"], night["corrected"]["miou"]
    assert now["value"] == pytest.approx(before["value"] + error["value"] / 2)
    assert now["low"] < before["low"]
    classes = [one["without_generator"]["iou"]["road"]["value"] for one in (alone, night)]
    assert classes[1] / classes[0] == pytest.approx(now["value"] / before["value"])
    assert night["target_images"]["baselines"].keys() == {
        "average confidence",
        "difference of confidences",
        "ATC",
        "nuclear norm",
    }
    again = (out / "estimate.json").read_bytes()
    estimate(real, out)
    assert (out / "estimate.json").read_bytes() == again
    assert main(["report", str(tmp_path / "page"), "--runs", str(out)]) == 0
    assert "20 unlabelled target images" in (tmp_path / "page" / "index.html").read_text()


def test_target_images_that_say_nothing_are_refused(home: Path, tmp_path: Path, monkeypatch):
    day = [frame.image for frame in frames.load(f"cityscapes:{home}/day:val").frames]
    others = copied(tmp_path / "others", [*day, *day], lambda image: 255 - image)
    few = copied(tmp_path / "few", [*day, *day[:9]], lambda image: 255 - image)
    mixed = copied(tmp_path / "mixed", [*day[:3], *others.iterdir()])
    mine = trees.folder(tmp_path / "mine", ids=[f"{i:02d}" for i in range(20)])
    for images, changes, message in (
        (few, {}, "few has 19 target images, expected 20 or more"),
        (mixed, {}, r"3 of the 23 images of .*mixed are labelled frames of cityscapes:"),
        (others, {"to": ("night", "fog")}, "--target-images are of one domain, and --to names 2"),
        (f"folder:{mine}:train", {}, "has the classes of .* give the folder of its pictures"),
    ):
        with pytest.raises(InputError, match=message):
            estimate(config(home, target_images=str(images), **changes), tmp_path / "out")
        assert not (tmp_path / "out" / "config.json").exists()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sure_box.py").write_text(
        "def build(classes):\n    return lambda image: image[:, :, 0] * 0 + 10\n"
    )
    sure = config(home, run="sure_box:build", network=None, target_images=str(others))
    with pytest.raises(InputError, match=r"is sure of every pixel, .* leave --target-images out"):
        estimate(sure, tmp_path / "sure")


def test_a_transformer_that_walks_tells_its_model_from_another_of_the_same_name():
    made = {"model": "flux", "weights": {"vae": "a", "transformer": "b"}}
    assert identity(made) == "b" != identity({"model": "flux", "weights": {"transformer": "c"}})
    assert identity({"model": "weather:build", "weights": {}}) == "weather:build"


def test_another_judge_does_not_know_what_a_network_was_trained_on(noisy_world, tmp_path: Path, caplog):
    """The network saw frames of one generator: it is judged too kindly by that one alone."""
    estimate(noisy_world, tmp_path / "first")
    [tree] = (tmp_path / "transferred").glob("night-0.9-42/night")
    trained = training_run(
        tmp_path, tmp_path / "run", source=noisy_world.source, transferred=(f"cityscapes:{tree}:val",)
    )
    found = {}
    for generator in ("noisy_world:rain", "noisy_world:other"):
        caplog.clear()
        judged = replace(noisy_world, run=str(trained), generator=generator, transferred=None)
        out = estimate(judged, tmp_path / generator.replace(":", "-"))
        told = runs.read_json(out / "estimate.json", records.ESTIMATE)
        found[generator] = told["domains"]["night"]["trained_on"]
        assert told["generator"]["model"] == generator and generator in told["protocol"]
        assert ("the same generator's" in caplog.text) == found[generator]
    assert found == {"noisy_world:rain": True, "noisy_world:other": False}


def test_diffusion_models_are_told_apart_by_their_weights(home: Path, tmp_path: Path):
    other = shutil.copytree(home / "prior", tmp_path / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 0.001 for name, tensor in tensors.items()}, file)
    estimate(config(home), tmp_path / "first")
    [tree] = (home / "transferred").glob("night-0.9-42/night")
    run = training_run(home, tmp_path / "run", transferred=(f"cityscapes:{tree}:val",))
    for folder, known in ((shutil.copytree(home / "prior", tmp_path / "moved"), True), (other, False)):
        model = DiffusionConfig(model=str(folder), device="cpu")
        judged = config(home, run=str(run), network=None, transferred=None, diffusion=model)
        out = estimate(judged, tmp_path / f"by-{folder.name}")
        assert runs.read_json(out / "estimate.json")["domains"]["night"]["trained_on"] == known


def test_a_generator_that_changes_nothing_has_measured_the_source(
    noisy_world, tmp_path: Path, caplog, capsys
):
    out = estimate(replace(noisy_world, generator="noisy_world:nothing", transferred=None), tmp_path / "out")
    night = runs.read_json(out / "estimate.json")["domains"]["night"]
    assert night["changed"] == 0 and night["raw"] == night["source"]
    said = "night: noisy_world:nothing leaves the frames as they are (0.00 grey levels off on average)"
    assert said in caplog.text and "judged by noisy_world:nothing" in " ".join(
        capsys.readouterr().out.split()
    )
    caplog.clear()
    out = estimate(noisy_world, tmp_path / "noisy")
    assert runs.read_json(out / "estimate.json")["domains"]["night"]["changed"] > 2
    assert "leaves the frames" not in caplog.text
    estimate(replace(noisy_world, generator="noisy_world:fair", transferred=None), tmp_path / "fair")
    assert "night: noisy_world:fair leaves the frames of the own domain as they are" in caplog.text


def test_networks_that_cannot_be_ranked_are_refused(home: Path, tmp_path: Path):
    a, b = (
        training_run(home, tmp_path / name, transferred=(), classes=classes)
        for name, classes in (("a", 13), ("b", None))
    )
    plain = config(home, network=None)
    with pytest.raises(InputError, match=r"a is scored on 13 classes and .*b on every class.*add --classes"):
        estimate(replace(plain, run=(str(a), str(b))), tmp_path / "out")
    with pytest.raises(InputError, match=r"--run names .*/a twice"):
        estimate(replace(plain, run=(str(a), str(a))), tmp_path / "out")
    mine = f"folder:{trees.folder(tmp_path / 'mine', ids=[f'{i:02d}' for i in range(10)])}:train"
    with pytest.raises(InputError, match=r"a was trained on the 19 classes of 'cityscapes', .* the 3 of"):
        estimate(replace(plain, run=(str(a), str(b)), source=mine), tmp_path / "out")
    with pytest.raises(InputError, match=r"--run is \(\): expected"):
        replace(plain, run=())
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "config.json").exists()


# ------------------------------------------------------------------------------------------ wrong input


def test_a_network_of_other_classes_costs_no_transfer(home: Path, tmp_path: Path):
    wrong = NetworkConfig(name="networks:one_class_too_many", pretrained=False)
    torch.save(networks.one_class_too_many(19).state_dict(), tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"\[1, 20, .*each of the 19 classes"):
        estimate(
            config(home, run=str(tmp_path / "wrong.pth"), network=wrong, transferred=None), tmp_path / "out"
        )
    assert not (tmp_path / "out" / "config.json").exists() and not (tmp_path / "out" / "transferred").exists()
    mine = f"folder:{trees.folder(tmp_path / 'mine', ids=[f'{i:02d}' for i in range(10)])}:train"
    run = training_run(home, tmp_path / "run")
    with pytest.raises(InputError, match=r"19 classes of 'cityscapes', .* the 3 of"):
        estimate(config(home, run=str(run), network=None, source=mine), tmp_path / "mine-out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": ("night", " ")}, "target domain ' ' is empty"),
        ({"to": ()}, "no target domain"),
        ({"own_prompt": ""}, "prompt of the own domain is empty"),
        ({"strength": 1.5}, "--strength is 1.5"),
        ({"draws": 0}, "--draws is 0: expected 1 or more"),
        ({"resamples": 10}, "--resamples is 10: expected 100 or more"),
        ({"network": None}, "name its network with --network.name"),
        ({"to": ("Driving in daylight",)}, "is the own domain, written otherwise"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(home: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        estimate(config(home, **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_several_processes_are_refused(home: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="estimate is one process: start its stages"):
        estimate(config(home), tmp_path / "out")


def test_frames_that_could_not_be_transferred_are_left_out_and_told(home: Path, tmp_path: Path, capsys):
    """A label of another size than its image passes predict and evaluate, but not the transfer."""
    day = trees.cityscapes(tmp_path / "day", [*IDS, "ulm_000010_000019"], (64, 64), split="val")
    label = frames.load(f"cityscapes:{day}:val").frames[4].label
    trees.save(label, np.full((32, 32), 7, np.uint8))
    out = estimate(config(home, source=f"cityscapes:{day}:val", transferred=None), tmp_path / "out")
    assert runs.read_json(out / "estimate.json")["frames"] == 10
    assert [f["id"] for f in runs.failures(out)] == [frames.load(f"cityscapes:{day}:val").frames[4].id]


def test_an_estimate_without_a_single_transferred_frame_is_refused(home: Path, tmp_path: Path):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day', IDS, (64, 64), split='val')}:val"
    for frame in frames.load(day).frames:
        trees.save(frame.label, np.full((32, 32), 7, np.uint8))
    with pytest.raises(InputError, match=r"no frame of .* could be transferred to .*; the first: .*32"):
        estimate(config(home, source=day, transferred=None), tmp_path / "out")


def test_a_network_from_elsewhere_sees_all_frames_at_the_size_of_the_source(home: Path, tmp_path: Path):
    out = estimate(config(home, short_side=32, transferred=None), tmp_path / "out")
    told = sorted(out.glob("*/predictions/model.json"))
    assert len(told) == 3 and {runs.read_json(file)["input"] for file in told} == {"size 64x64"}
    trees.cityscapes(tmp_path / "day", IDS, (64, 64), split="val")
    trees.save(frames.load(f"cityscapes:{tmp_path}/day:val").frames[0].image, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(InputError, match="frames of 2 sizes: give the one that the network sees"):
        estimate(config(home, source=f"cityscapes:{tmp_path}/day:val"), tmp_path / "sizes")


def test_a_split_without_labels_and_one_with_too_few_frames_are_refused(home: Path, tmp_path: Path):
    trees.cityscapes(tmp_path / "day", IDS, (64, 64), split="test", labelled=False)
    with pytest.raises(InputError, match=r"no frame of cityscapes:.*:test has a label"):
        estimate(config(home, source=f"cityscapes:{tmp_path}/day:test"), tmp_path / "out")
    trees.cityscapes(tmp_path / "day", IDS[:9], (64, 64), split="val")
    with pytest.raises(InputError, match=r"has 9 frames .*expected 10 or more.*name a larger"):
        estimate(config(home, source=f"cityscapes:{tmp_path}/day:val"), tmp_path / "out")
    trees.cityscapes(tmp_path / "broken", IDS, (64, 64), split="val")
    image = frames.load(f"cityscapes:{tmp_path}/broken:val").frames[3].image
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(InputError, match=f"cannot read {image}"):
        estimate(config(home, source=f"cityscapes:{tmp_path}/broken:val"), tmp_path / "broken-out")


def test_from_the_command_line_wrong_input_is_exit_code_2(home: Path, tmp_path: Path, capsys):
    given = [
        "estimate",
        str(tmp_path / "out"),
        "--run",
        str(home / "mine.pth"),
        "--source",
        f"cityscapes:{home}/day:val",
        "--to",
        "fog",
        "",
    ]
    assert main(given) == 2
    assert "target domain '' is empty" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ the benchmark


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/estimate.py."""
    return importlib.import_module("estimate")


def made_up(benchmark) -> list:
    """Three networks in three domains: the confidence falls by half of the drop, the estimate is 2 points too
    high.
    """
    drops = {"night": 0.3, "fog": 0.2, "game": 0.1}
    return [
        benchmark.Pair(
            f"seed-0/{name}",
            domain,
            benchmark.Interval(
                true := source - drop, true + 0.02, true, true + 0.04, true + 0.01, true + 0.03
            ),
            source,
            source - 0.1,
            true - 0.1,
            0.9,
            0.9 - drop / 2,
            ("car", "bus"),
            ("car", "sky", "road"),
            name == "zodi",
            (),
        )
        for name, source in (("source-only", 0.5), ("jitter", 0.6), ("zodi", 0.7))
        for domain, drop in drops.items()
    ]


def but(pair, true: float):
    """The pair with another truth."""
    return replace(pair, miou=replace(pair.miou, true=true))


@pytest.mark.parametrize(
    ("source", "more", "domain", "known"),
    [
        ("gta5:town/gta5:train", (), "game", True),
        ("gta5:town/gta5:train", (), "night", False),
        ("cityscapes:town/cityscapes:train", (), "fog", False),
        ("acdc:town/acdc:fog/train", (), "fog", True),
        ("acdc:town/acdc:fog/train", (), "night", False),
        ("cityscapes:town/cityscapes:train", ("gta5:town/gta5:train",), "game", True),
    ],
)
def test_networks_that_know_a_domains_labels_have_no_say_there(
    benchmark, source, more, domain, known, tmp_path
):
    outputs.begin(tmp_path, "train", TrainConfig(source=source, more_sources=more))
    assert benchmark.knows(tmp_path, domain) == known


def test_every_estimate_is_compared_by_error_bias_and_ranks(benchmark):
    pairs = made_up(benchmark)
    results = {name: benchmark.accuracy(pairs, of(pairs)) for name, of in benchmark.ESTIMATES.items()}
    right = {"error": 0, "bias": 0, "pearson": 1, "over_networks": 1, "over_domains": 1}
    assert results["segshift estimate"] == pytest.approx(right | {"error": 2, "bias": 2})
    assert results["uncorrected"] == pytest.approx(right | {"error": 10, "bias": -10})
    assert results["whole cost taken off"] == pytest.approx(right | {"error": 14, "bias": 14})
    assert results["additive"] == pytest.approx(right)
    source = results["source score"]  # the same in every domain: domains have no rank
    assert (
        source["over_domains"] is None
        and source["bias"] == pytest.approx(20)
        and source["over_networks"] == pytest.approx(1)
    )
    assert results["confidence"]["bias"] == pytest.approx(
        100 * np.mean([p.source * p.confidence / 0.9 - p.miou.true for p in pairs])
    )
    assert results["regression (needs target labels)"] == pytest.approx(right)
    assert benchmark.accuracy(pairs, [-p.miou.true for p in pairs])["over_networks"] == pytest.approx(-1)
    assert benchmark.failures(pairs) == pytest.approx({"precision": 1 / 2, "recall": 1 / 3})


def test_coverage_is_counted_in_domains_that_the_generators_error_was_not_fitted_on(benchmark):
    def whole(pair):
        return (pair.miou,)

    pairs = made_up(benchmark)
    # two points are a larger share of night's scores than of those that the error is fitted on there
    expected = {
        "all": 1,
        "without_generator": 0,
        "fitted": 0.05,
        "held_out": 8 / 9,
        "night": 2 / 3,
        "fog": 1,
        "game": 1,
    }
    assert benchmark.coverage(whole, pairs) == pytest.approx(expected)
    far = [but(p, p.miou.true - 0.2) if p.domain == "game" else p for p in pairs]
    held = benchmark.coverage(whole, far)
    assert held["game"] == 0 and held["night"] == held["fog"] == 1 and held["all"] == pytest.approx(2 / 3)
    assert benchmark.coverage(whole, pairs[:1]) == {
        "all": 1,
        "without_generator": 0,
        "fitted": 0.05,
        "held_out": None,
    }
    two = [replace(p, classes=(p.miou, replace(p.miou, true=0.99))) for p in pairs]
    assert benchmark.coverage(lambda pair: pair.classes, two)["all"] == 0.5


def test_a_further_error_widens_an_interval_by_its_quantile():
    assert bootstrap.widened(0.5, 0.5, 0.5, 0.1) == pytest.approx((0.5 - 0.16449, 0.5 + 0.16449), abs=1e-4)
    assert bootstrap.widened(0.5, 0.46, 0.53, 0) == pytest.approx((0.46, 0.53))
    low, high = bootstrap.widened(0.5, 0.47, 0.51, 0.04 / 1.6449)
    assert (low, high) == pytest.approx((0.45, 0.5 + (0.01**2 + 0.04**2) ** 0.5), abs=1e-5)
    assert bootstrap.widened(0.5, 0.6, 0.7, 0) == pytest.approx(
        (0.5, 0.7)
    )  # a value outside its own resamples


def test_the_regression_never_sees_the_network_it_predicts(benchmark):
    pairs = made_up(benchmark)
    before = benchmark.regression(pairs)
    changed = [but(p, 0.0) if p.network == "seed-0/zodi" else p for p in pairs]
    after = benchmark.regression(changed)
    assert after[6:] == pytest.approx(before[6:]) and after[:6] != pytest.approx(before[:6], abs=0.01)
    assert np.isnan(benchmark.regression(pairs[:3])).all()


def test_the_tables_show_predicted_against_true(benchmark):
    pairs = made_up(benchmark)
    table = benchmark.predicted_table(pairs, ("night", "fog", "game")).splitlines()
    assert table[0] == "| mIoU % | night | fog | game |"
    assert (
        table[2]
        == "| one network (source only): predicted | 22.0 (20.0 to 24.0) | 32.0 (30.0 to 34.0) | 42.0 "
        "(40.0 to 44.0) |"
    )
    assert table[3] == "| one network (source only): true | 20.0 | 30.0 | 40.0 |"
    assert table[5] == "| mean over networks: predicted | 32.0 | 42.0 | 52.0 |"
    assert table[7] == "| mean over networks: error, absolute | 2.0 | 2.0 | 2.0 |"
    results = {name: benchmark.accuracy(pairs, of(pairs)) for name, of in benchmark.ESTIMATES.items()}
    assert "| source score | 20.0 | +20.0 | 1.00 | 1.00 | - |" in benchmark.comparison_table(results)
    seeds = [
        *pairs,
        *(replace(but(p, p.miou.true + 0.02), network=p.network.replace("seed-0", "seed-1")) for p in pairs),
    ]
    by_network = benchmark.networks_table(
        [p for p in seeds if (p.network, p.domain) != ("seed-0/zodi", "fog")]
    ).splitlines()
    assert by_network[2] == "| source-only | 22.0 / 21.0 | 32.0 / 31.0 | 42.0 / 41.0 |"
    assert by_network[4] == "| zodi | 42.0 / 41.0 | 52.0 / 52.0 | 62.0 / 61.0 |"


def test_a_pair_is_read_from_an_estimate_and_the_truth(benchmark, home: Path, tmp_path: Path):
    told = runs.read_json(estimate(config(home), tmp_path / "out") / "estimate.json")
    night = told["domains"]["night"]
    confusion = np.zeros((19, 20), int)
    confusion[0, 0] = 9
    confusion[1:, 19] = 9  # all but the road is missed
    confusion[[10, 11]] = 0  # no labelled pixel shows these two,
    confusion[12, 11] = 1  # though one of them is predicted
    true = {"miou": 0.9, "iou": dict.fromkeys(CITYSCAPES.names, 0.9), "confusion": confusion.tolist()}
    pair = benchmark.pair("seed-0/mine", "night", night, true)
    assert pair.miou.true == pytest.approx(1 / 17)
    assert (pair.raw, pair.miou.value) == (night["raw"]["miou"]["value"], night["corrected"]["miou"]["value"])
    assert pair.miou.low < pair.miou.high and pair.confidence == night["confidence"]["target"]
    scored = {name for name, value in night["source"]["iou"].items() if value["value"]}
    assert set(pair.failed) == scored - {CITYSCAPES.names[c] for c in (0, 10, 11)} and len(pair.classes) == 17


def test_the_first_of_three_is_counted_over_all_triples_of_a_domain(benchmark):
    pairs = made_up(benchmark)
    assert benchmark.first_of_three(pairs) == {"all": 1, "not trained on": None}
    wrong = [but(p, 0.1) if (p.network, p.domain) == ("seed-0/zodi", "fog") else p for p in pairs]
    assert benchmark.first_of_three(wrong)["all"] == pytest.approx(2 / 3)


def test_another_judge_and_target_images_have_rows_of_their_own(benchmark):
    pairs = [
        replace(
            p,
            judged=replace(p.miou, value=p.miou.true - 0.01),
            seen=replace(p.miou, value=p.miou.true + 0.01),
            label_free=dict.fromkeys(benchmark.BASELINES, p.source),
        )
        for p in made_up(benchmark)
    ]
    found = benchmark.findings(pairs)
    seen = found["with_target_images"]
    assert seen["segshift estimate, with target images"]["bias"] == pytest.approx(1)
    assert seen["the same, all of the error taken off"]["error"] == pytest.approx(0)
    assert seen["ATC (target images)"]["bias"] == pytest.approx(20)
    known = "trained on transferred frames of the domain"
    assert found["judged_by_another"][known]["bias"] == pytest.approx(-1)
    assert found["coverage_of_90_percent_intervals"]["miou, with target images"]["all"] == 1
    assert found["kinds"]["zodi"]["bias"] == pytest.approx(2)
    assert benchmark.kind(replace(pairs[0], network="seed-0/zodi-night")) == "zodi"
    told = {"pairs": [benchmark.plain(pair) for pair in pairs], "judge": "weather:build"}
    assert [benchmark.read(one) for one in told["pairs"]] == pairs
    text = benchmark.tables(json.loads(json.dumps(told)))
    assert f"| judged by weather:build, {known} | 1.0 | -1.0 |" in text and "| zodi | 2.0 | +2.0 |" in text
    few = benchmark.tables({"pairs": [benchmark.plain(pair) for pair in made_up(benchmark)]})
    assert "judged" not in few and "target images" not in few


def test_the_benchmark_runs_on_a_tiny_town(benchmark, tmp_path: Path, monkeypatch):
    model = tiny_diffusion.prior(tmp_path / "package" / "town" / "prior")  # in place of the embedded one
    told = runs.read_json(model / "segshift.json")
    runs.write_json(model / "segshift.json", told | {"steps": 2})
    monkeypatch.setattr(loading, "resources", SimpleNamespace(files=lambda name: tmp_path / "package"))
    counts = {"cityscapes/train": 1, "cityscapes/val": 10, "acdc/night/train": 20, "acdc/night/val": 2}
    writer.write(tmp_path / "town", height=64, width=64, counts=counts, workers=1)
    for seed in range(2):
        run = tmp_path / f"seed-{seed}" / "source-only"
        trained = training_config(
            tmp_path,
            source=f"cityscapes:{tmp_path}/town/cityscapes:train",
            method="source_only",
            select="last",
            transferred=(),
        )
        outputs.begin(run, "train", trained)
        checkpoints.describe(run, CITYSCAPES, torch.device("cpu"))
        torch.manual_seed(seed)
        checkpoints.save_best(run, 6, checkpoints.method_of(trained, CITYSCAPES), None)
    judge = str(Path(benchmark.__file__).parent / "noise:build")
    told = benchmark.Benchmark(tmp_path, domains=("night",), draws=1, checkpoint="best", judge=judge)
    benchmark.main(told)
    text = (tmp_path / "estimate" / "estimate.md").read_text()
    found = runs.read_json(tmp_path / "estimate" / "estimate.json")
    assert benchmark.tables(found) == text and found["judge"] == "noise:build" and len(found["pairs"]) == 2
    for row in ("judged by noise:build, not trained on them", "ATC (target images)", "nuclear norm"):
        assert f"| {row}" in text
    assert all(0 <= pair["label_free"]["ATC"] <= 1 and pair["seen"] for pair in found["pairs"])
    before = pictures(tmp_path)
    benchmark.main(told)
    assert pictures(tmp_path) == before
