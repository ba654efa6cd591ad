"""What a training chooses where the user leaves it open."""

from pathlib import Path

import trees

from segshift import runs
from segshift.__main__ import main
from segshift.config import TrainConfig
from segshift.data import frames
from segshift.training import checkpoints, sizes


def test_cityscapes_gets_the_published_settings(tmp_path: Path):
    source = frames.load(
        f"cityscapes:{trees.cityscapes(tmp_path, size=(1024, 2048), ids=('aachen_000000_000019',))}:train"
    )
    assert sizes.size_of(source) == (512, 1024)
    assert (sizes.crop_side(512), sizes.crop_side(1024)) == (384, 768)
    assert sizes.steps_for(2975, 4) == 74_375


def test_photographs_keep_their_shape_and_small_sets_train_shorter(tmp_path: Path):
    home = trees.folder(tmp_path / "mine", [f"{i}" for i in range(5)], (360, 480))
    trees.folder(tmp_path / "mine", ["odd"], (300, 300))
    source = frames.load(f"folder:{home}:train")
    config, told = sizes.chosen(TrainConfig(source=f"folder:{home}:train"), source)
    assert (config.size, config.crop, config.steps) == ((360, 480), (256, 352), 2_000)
    assert told is not None and "--size 360 480, --crop 256 352, --steps 2000" in told and "6 frames" in told
    assert sizes.steps_for(305, 4) == 7_625
    given = TrainConfig(source=f"folder:{home}:train", size=(64, 64), crop=(32, 32), steps=1)
    assert sizes.chosen(given, source) == (given, None)
    part, told = sizes.chosen(TrainConfig(source=f"folder:{home}:train", size=(64, 64), steps=7), source)
    assert part.crop == (64, 64)
    assert told is not None and "--crop" in told and "--size" not in told and "--steps" not in told


def test_train_says_what_it_chose_and_continues_with_it(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(sizes, "FEWEST_STEPS", 2)
    monkeypatch.setattr(sizes, "EPOCHS", 1)
    home = trees.folder(tmp_path / "mine", ["a", "b", "c", "d"], (48, 80))
    command = [
        "train",
        str(tmp_path / "run"),
        "--source",
        f"folder:{home}:train",
        "--method",
        "source_only",
        "--select",
        "last",
        "--network.name",
        "networks:two_convs",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--batch-size",
        "2",
    ]
    assert main(command) == 0
    assert "--size 48 80, --crop 32 64, --steps 2" in " ".join(capsys.readouterr().out.split())
    assert runs.read_config(tmp_path / "run" / "config.json", TrainConfig).crop == (32, 64)
    assert checkpoints.last_step(tmp_path / "run") == 2
    assert main(command) == 0  # the same command finds it finished
