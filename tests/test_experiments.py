"""A named experiment from town to page, its repetition from config.json, and its resumption."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tiny_diffusion
import trees
from rich.console import Console
from transferring import load_once

from segshift import outputs
from segshift.config import DiffusionConfig, ICCLDNetworkConfig, NetworkConfig, TownConfig, TrainConfig
from segshift.recipes import RECIPES, runner
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.recipes.iccld import ablation_rows, town_source
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows
from segshift.runs import InputError, failures, read_config, read_json, slug
from segshift.scoring import metrics
from segshift.town import writer


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    load_once(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_diffusion.prior(tmp_path_factory.mktemp("prior") / "model")


def small(model: Path, validation: str | None = town_target("clear")) -> Experiment:
    base = replace(
        town_training(steps=2, images=4),
        size=(64, 128),
        crop=(32, 64),
        device="cpu",
        validation=validation,
        network=NetworkConfig(name="networks:two_convs", feature_layer="encoder"),
    )
    rows = town_rows(base, ("night",))
    return Experiment(
        name="small",
        town=TownConfig(
            height=64, width=128, source_train=3, source_val=2, target_train=1, target_val=2, workers=1
        ),
        transfers={
            "transferred": replace(
                town_transfer("night"),
                steps=2,
                batch_size=3,
                diffusion=DiffusionConfig(model=str(model), device="cpu"),
            )
        },
        rows=(rows[0], replace(rows[2], name="ZoDi", targets=("night",))),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
    )


def test_an_experiment_runs_repeats_and_is_left_alone_when_finished(tmp_path: Path, model, capsys):
    experiment = small(model, validation=None)
    first = runner.run_experiment(experiment, tmp_path / "first")
    shown = capsys.readouterr().out
    assert "source only" in shown and "ZoDi, gain" in shown
    assert (first / "index.html").stat().st_size > 10_000

    made = sorted((first / "seed-0" / "zodi" / "predictions" / "last" / "night").rglob("*.png"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in made]
    assert len(made) == 2

    runner.run(first / "config.json")  # the same folder: nothing is done again
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in made] == before

    second = runner.run(str(first / "config.json"), tmp_path / "second")  # another: the same bytes
    again = [second / path.relative_to(first) for path in made]
    assert [path.read_bytes() for path in again] == [content for content, _ in before]
    assert read_json(first / "scores.json", list) == read_json(second / "scores.json", list)


def test_frames_that_failed_are_told_at_the_end_and_several_processes_are_refused(
    tmp_path: Path, model, monkeypatch, capsys
):
    experiment = small(model, validation=None)
    outputs.begin(tmp_path / "out", "run", experiment)
    broken = writer.town(experiment.town, tmp_path / "out" / "town") / "cityscapes/leftImg8bit/train"
    image = sorted(broken.rglob("*.png"))[0]
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(InputError):  # and train refuses the incomplete tree
        runner.run_experiment(experiment, tmp_path / "out")
    [line] = failures(tmp_path / "out")
    assert str(image) in line["error"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start its stages one after the other on all processes"):
        runner.run_experiment(experiment, tmp_path / "two")


def test_further_seeds_share_the_images_and_are_spread_in_the_table(tmp_path: Path, model, capsys):
    experiment = small(model)
    out = runner.run_experiment(experiment, tmp_path / "out")
    images = {
        path: path.stat().st_mtime_ns
        for folder in ("town", "transferred")
        for path in (out / folder).rglob("*.png")
    }
    capsys.readouterr()
    runner.run(str(out / "config.json"), seeds=2)  # one more: the first is not trained again
    assert "±" in capsys.readouterr().out
    assert images == {
        path: path.stat().st_mtime_ns
        for folder in ("town", "transferred")
        for path in (out / folder).rglob("*.png")
    }
    assert [
        read_json(out / f"seed-{seed}" / "zodi" / "config.json")["config"]["seed"] for seed in (0, 1)
    ] == [0, 1]
    assert read_config(out / "config.json", Experiment).seeds == 2
    found = {(line["row"], line["checkpoint"]): line["miou"] for line in read_json(out / "scores.json", list)}
    assert {rule for _, rule in found} == {"last", "source"} and len(
        found["source only", "last"]["clear"]
    ) == 2
    assert found["source only", "last"] == found["source only", "source"]  # one checkpoint, predicted once
    assert [path.name for path in (out / "seed-0" / "source-only" / "predictions").iterdir()] == ["last"]
    assert "clear" not in found["ZoDi", "last"]  # a row with targets of its own
    page = (out / "index.html").read_text()
    assert metrics.spread(found["source only", "last"]["clear"]) in page and "over seeds" in page
    with pytest.raises(InputError, match="seeds is 0"):
        runner.run(str(out / "config.json"), seeds=0)
    with pytest.raises(InputError, match="seeds is '2': expected a whole number"):
        runner.run(str(out / "config.json"), seeds="2")
    with pytest.raises(InputError, match="only recipes run over seeds"):
        runner.run(str(out / "town" / "config.json"), seeds=2)


def test_what_a_later_stage_would_miss_is_missed_before_anything_is_written(tmp_path: Path, monkeypatch):
    trees.cityscapes(tmp_path / "cityscapes")
    trees.acdc(tmp_path / "acdc")
    base = TrainConfig(source="cityscapes:{cityscapes}:train", network=NetworkConfig(encoder="resnet18"))
    e = Experiment("mine", (Row("a", base), Row("b", base)), (Target("night", "acdc:{acdc}:night/val"),))
    there = {name: str(tmp_path / name) for name in ("cityscapes", "acdc")}
    with pytest.raises(InputError, match=r"no folder .*typo"):
        runner.run_experiment(runner.fill(e, there | {"acdc": str(tmp_path / "typo")}), tmp_path / "out")
    labels = tmp_path / "acdc" / "gt"
    labels.rename(tmp_path / "not unpacked")
    with pytest.raises(InputError, match=r"no frame of .* has a label"):
        runner.run_experiment(runner.fill(e, there), tmp_path / "out")
    (tmp_path / "not unpacked").rename(labels)
    built = []

    def offline(network, classes):
        built.append((network.encoder, classes))
        raise InputError("cannot download")

    monkeypatch.setattr(runner.networks, "build", offline)
    with pytest.raises(InputError, match="cannot download"):
        runner.run_experiment(runner.fill(e, there), tmp_path / "out")
    assert built == [("resnet18", 19)] and not (tmp_path / "out").exists()


def test_what_only_its_own_command_repeats_is_said(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"stage": "check", "config": {}}')
    with pytest.raises(
        InputError, match=r"of stage .check., expected run, town, .* give its own command again"
    ):
        runner.run(str(tmp_path / "config.json"))


def test_the_table_shows_every_rule_and_gains_within_a_rule():
    base = town_training(steps=1, images=2)
    e = Experiment("e", (Row("a", base), Row("b", base)), (Target("night", "x"),), seeds=2)
    scores = {
        ("a", "last"): {"night": [10.0, 20.0]},
        ("a", "source"): {"night": [10.0, 20.0]},
        ("b", "last"): {"night": [11.0, 23.0]},
        ("b", "source"): {"night": [12.0, 23.0]},
        ("b", "oracle"): {"night": [30.0, 30.0]},
        ("oracle", "last"): {"night": [50.0, 60.0]},
    }
    console = Console(width=140, file=StringIO())
    console.print(runner.table(e, scores))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.file.getvalue().splitlines()]
    assert "a last, best on source 15.0 ± 7.1" in lines and "b oracle (not attainable) 30.0 ± 0.0" in lines
    assert "trained on the target's labels (not attainable) last 55.0 ± 7.1" in lines
    assert "b, gain last +2.0 ± 1.4" in lines and "b, gain best on source +2.5 ± 0.7" in lines
    assert not any("gain oracle" in line for line in lines)


def test_iccld_chains_its_steps_and_shows_every_sampling_with_its_uncertainty(tmp_path: Path):
    base = replace(
        town_source("game", steps=2, images=2),
        size=(64, 128),
        crop=(32, 64),
        device="cpu",
        workers=0,
        network=NetworkConfig(
            name="iccld", encoder="test_resnet", pretrained=False, iccld=ICCLDNetworkConfig(latent_channels=4)
        ),
    )
    base = replace(base, iccld=replace(base.iccld, unet_channels=(8, 16)))
    rows = ablation_rows(base, town_target("clear", "train"), {"steps": 1}, samplings=((2, 2),))
    plain = {row.name: row.train.network.iccld for row in rows}["full without inter-coder connections"]
    assert plain == ICCLDNetworkConfig(latent_channels=4, inter_coder=False)
    names = ("step 1", "full", "step 1, equal steps")
    rows = tuple(row for row in rows if row.name in names)
    assert len(rows) == len(names)
    experiment = Experiment(
        "chain",
        rows,
        (Target("clear", town_target("clear")), Target("game", town_target("game"))),
        town=TownConfig(
            height=64, width=128, source_train=3, source_val=2, target_train=3, target_val=2, workers=1
        ),
    )
    out = runner.run_experiment(experiment, tmp_path)
    scores = {line["row"]: line["miou"] for line in read_json(out / "scores.json", list)}
    assert list(scores) == [
        name
        for row in rows
        for name in (row.name, *(["full, DDIM steps 2, draws 2"] if row.samplings else []))
    ]
    assert scores["full"].keys() == {"clear", "game"} and scores["full, DDIM steps 2, draws 2"].keys() == {
        "clear"
    }
    made = out / "seed-0" / "full" / "predictions" / "last"
    for place, maps in (("clear", set()), ("clear-steps-2-draws-2", {"spread"})):
        assert {path.name for path in (made / place / "uncertainty").iterdir()} == {
            "confidence",
            "entropy",
            *maps,
        }
    page = (out / "index.html").read_text()
    assert "2 DDIM steps, 2 draws" in page and "step-1-equal-steps" in page
    read = {
        name: read_json(out / "seed-0" / slug(name) / "config.json")["config"]
        for name in ("full", "step 1, equal steps")
    }
    assert (
        read["full"]["from_run"] == str(out / "seed-0" / "step-1")
        and read["step 1, equal steps"]["steps"] == 3
    )


def test_every_second_step_starts_from_a_row_before_it():
    for recipe in RECIPES.values():
        before: set[str] = set()
        for row in recipe.rows:
            assert row.train.from_run is None or row.train.from_run in before, (recipe.name, row.name)
            before.add(f"{{rows}}/{slug(row.name)}")


def test_every_ablation_reads_what_its_own_transfer_writes():
    recipe = RECIPES["zodi-town-ablations"]
    assert len({row.name for row in recipe.rows}) == len(recipe.rows) == 10
    trees = {
        f"cityscapes:{{out}}/{folder}/{domain}:{config.source.rpartition(':')[2]}"
        for folder, config in recipe.transfers.items()
        for domain in config.to
    }
    used = {
        name for row in recipe.rows for name in (*row.train.transferred, *row.train.transferred_validation)
    }
    assert used == trees
    assert (
        len(
            {
                (row.train.transferred, row.train.zodi, row.train.method, row.train.jitter)
                for row in recipe.rows
            }
        )
        == 10
    )


def test_every_recipe_is_judged_by_the_targets_labels_and_says_so():
    """The rules that need nothing more than the recipe has: the oracle, source validation where the layout
    has a split, and transferred validation where frames are transferred for it."""
    for recipe in RECIPES.values():
        judges = {target.data for target in recipe.targets}
        for row in recipe.rows:
            assert row.train.oracle_validation and judges >= set(row.train.oracle_validation), (
                recipe.name,
                row.name,
            )
            assert bool(row.train.transferred_validation) == ("transferred-val" in recipe.transfers)
            trained = {row.train.source, *row.train.more_sources, row.train.target}
            assert not trained & judges, (recipe.name, row.name)
