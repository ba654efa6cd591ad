"""A named experiment from town to page, its repetition from config.json, and its resumption."""

from dataclasses import replace
from pathlib import Path

import tiny_diffusion

from segshift import experiments
from segshift.config import DiffusionConfig, NetworkConfig, TownConfig, TransferConfig
from segshift.recipes import Experiment, Target, town_rows, town_target, town_training
from segshift.runs import read_json


def small(model: Path) -> Experiment:
    base = replace(
        town_training(steps=2, images=4), size=(64, 128), crop=(32, 64), device="cpu",
        network=NetworkConfig(name="networks:two_convs", feature_layer="encoder"),
    )  # fmt: skip
    rows = town_rows(base, ("night",))
    return Experiment(
        name="small",
        town=TownConfig(height=64, width=128, source_train=3, source_val=2, target_train=1, target_val=2, workers=1),
        transfer=TransferConfig(
            source=town_target("clear", "train"), to=("night",), steps=2, batch_size=3,
            diffusion=DiffusionConfig(model=str(model), device="cpu"),
        ),
        rows=(rows[0], replace(rows[2], name="ZoDi")),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
    )  # fmt: skip


def test_an_experiment_runs_repeats_and_is_left_alone_when_finished(tmp_path: Path, capsys):
    experiment = small(tiny_diffusion.prior(tmp_path / "model"))
    first = experiments.run_experiment(experiment, tmp_path / "first")
    shown = capsys.readouterr().out
    assert "source only" in shown and "ZoDi, gain" in shown
    assert (first / "index.html").stat().st_size > 10_000

    made = sorted((first / "zodi" / "predictions" / "night").rglob("*.png"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in made]
    assert len(made) == 2

    experiments.run(str(first / "config.json"))  # the same folder: nothing is done again
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in made] == before

    second = experiments.run(str(first / "config.json"), tmp_path / "second")  # another: the same bytes
    again = [second / path.relative_to(first) for path in made]
    assert [path.read_bytes() for path in again] == [content for content, _ in before]
    scores = [read_json(run / "zodi" / "evaluation" / "night" / "metrics.json")["miou"] for run in (first, second)]
    assert scores[0] == scores[1]
