"""The command line and named experiments: what a stranger types, and what comes back."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trees

import segshift
from segshift import outputs
from segshift.__main__ import main
from segshift.config import NetworkConfig
from segshift.recipes import RECIPES, runner
from segshift.recipes.town import town_target
from segshift.runs import InputError
from segshift.training import checkpoints


@pytest.mark.parametrize(
    "command",
    [
        "town",
        "check",
        "transfer",
        "train",
        "predict",
        "evaluate",
        "estimate",
        "export",
        "push",
        "report",
        "studio",
        "demo",
        "models",
        "recipes",
        "run",
        "prior",
    ],
)
def test_every_command_explains_itself(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"segshift {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["recipes"], []])
def test_a_reader_that_leaves_early_is_no_error(command: list[str], monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # as `| head` leaves it
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(command) == 0
    assert not capsys.readouterr().err


def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys):
    assert main(["check", "--data", f"nosuch:{tmp_path}"]) == 2
    assert "nosuch" in capsys.readouterr().err
    assert (
        main(
            [
                "transfer",
                str(tmp_path / "out"),
                "--source",
                f"cityscapes:{tmp_path}:train",
                "--strength",
                "1.5",
            ]
        )
        == 2
    )
    assert main(["run", "no-such-recipe"]) == 2
    assert "zodi-cityscapes-acdc-night" in capsys.readouterr().err


def test_town_then_check_from_the_command_line(tmp_path: Path):
    small = (
        "--height 32 --width 64 --source-train 2 --source-val 1 --target-train 1 --target-val 1 --workers 1"
    )
    assert main(["town", str(tmp_path), *small.split()]) == 0
    assert main(["check", "--data", f"cityscapes:{tmp_path}/cityscapes:train", "--workers", "1"]) == 0
    next((tmp_path / "gta5" / "labels").glob("*.png")).write_bytes(b"no png")
    assert main(["check", "--data", f"gta5:{tmp_path}/gta5", "--workers", "1"]) == 1


def test_failed_frames_are_an_exit_code_but_under_torchrun(tmp_path: Path, monkeypatch, capsys):
    small = (
        "--height 32 --width 64 --source-train 1 --source-val 1 --target-train 1 --target-val 1 --workers 1"
    )
    assert main(["town", str(tmp_path), *small.split()]) == 0
    next((tmp_path / "gta5" / "labels").glob("*.png")).write_bytes(b"no png")
    check = ["check", "--data", f"gta5:{tmp_path}/gta5", "--workers", "1"]
    assert main(check) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(check) == 0 and "failed" in capsys.readouterr().err  # or it would stop all other processes


def test_many_failed_frames_are_counted_and_all_in_the_file(tmp_path: Path, capsys):
    root = trees.folder(tmp_path / "data", [f"{i:02}" for i in range(25)], labelled=False)
    trees.folder(root, ["00"])
    check = ["check", "--data", f"folder:{root}:train", "--workers", "1"]
    assert main([*check, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("failed 0") or line.startswith("failed 1") for line in shown) == 19
    assert f"failed and 4 more: all are in {tmp_path}/out/failures.jsonl" in shown
    assert main(check) == 1 and "4 more: --out FOLDER lists all" in capsys.readouterr().err


def test_recipes_name_the_data_that_they_need_and_round_trip_as_json(tmp_path: Path):
    for recipe in RECIPES.values():
        kept = {name: f"/data/{name}" for name in ("cityscapes", "acdc", "gta5", "synthia")}
        filled = runner.fill(recipe, kept, keep=("out", "rows"))
        outputs.begin(tmp_path / recipe.name, "run", filled)
        assert segshift.runs.read_config(tmp_path / recipe.name / "config.json", type(recipe)) == filled
    with pytest.raises(InputError, match="--data cityscapes"):
        runner.run("zodi-cityscapes-acdc-night", tmp_path / "x", {})
    assert runner.fill(town_target("night"), {"out": "/a"}) == "acdc:/a/town/acdc:night/val"


def test_recipes_on_dinov2_change_the_network_and_its_training_alone():
    domains = ("acdc-night", "acdc-snow", "acdc-rain", "acdc-fog", "gta5")
    names = [f"zodi-cityscapes-{domain}" for domain in domains] + ["iccld-gta5-cityscapes"]
    changed = (
        "network",
        "crop",
        "steps",
        "optimizer",
        "lr",
        "head_lr",
        "weight_decay",
        "warmup",
        "precision",
    )
    for name in names:
        plain, recipe = RECIPES[name], RECIPES[f"{name}-dinov2"]
        assert (recipe.targets, recipe.transfers) == (plain.targets, plain.transfers)
        assert "not known" in recipe.published
        for before, row in zip(plain.rows, recipe.rows, strict=True):
            assert row.train.network.encoder == "vit_large_patch14_dinov2"
            assert row.train.network.adapter == "lora"
            same = {field: getattr(before.train, field) for field in changed}
            assert replace(row.train, **same) == before.train


def test_published_recipes_keep_the_published_settings():
    recipe = RECIPES["zodi-cityscapes-acdc-night"]
    train = recipe.rows[1].train
    assert (train.lr, train.momentum, train.weight_decay, train.poly_power, train.batch_size) == (
        1e-3,
        0.9,
        1e-4,
        0.9,
        4,
    )
    assert (train.size, train.crop, train.zodi.similarity_weight, train.optimizer) == (
        (512, 1024),
        (384, 768),
        0.1,
        "sgd",
    )
    assert recipe.transfers["transferred"].mode == "reference" and train.select == "source"
    assert checkpoints.rules(train) == ("last", "source", "transferred", "oracle")


def test_the_public_names_are_there():
    for name in segshift.__all__:
        assert getattr(segshift, name) is not None


def test_a_foreign_network_is_named_by_plain_options(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "segshift.stages.predict.predict", lambda config, out: seen.append(config.network) or []
    )
    given = ["predict", "out", "--run", "mine.pth", "--data", "acdc:/data:night/val"]
    for more in (
        [],
        ["--network.name", "mine:build"],
        ["--network.encoder", "resnet18"],
        ["--network.name", "unet", "--network.encoder", "resnet18"],
    ):
        assert main([*given, *more]) == 0
    assert seen == [
        None,
        NetworkConfig(name="mine:build"),
        NetworkConfig(encoder="resnet18"),
        NetworkConfig(name="unet", encoder="resnet18"),
    ]


def test_nested_settings_keep_their_names(capsys):
    for command, option in (
        ("train", "--network.encoder"),
        ("predict", "--network.name"),
        ("transfer", "--diffusion.model"),
        ("train", "--source"),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert option in capsys.readouterr().out
