"""Output folders: nothing of the user's is overwritten, and a failed start leaves nothing behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training
import trees
from training import config, trees_of

from segshift import outputs, runs
from segshift.__main__ import main
from segshift.config import EstimateConfig, PredictConfig, TrainConfig, TransferConfig
from segshift.runs import InputError
from segshift.stages.train import train
from segshift.training import checkpoints

NETWORK = ["--network.name", "networks:two_convs", "--network.no-pretrained"]


def content(root: Path) -> dict[str, bytes | str]:
    """Every file below a folder, and where every link leads."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished training on a Cityscapes tree beside it, in day/."""
    root = tmp_path_factory.mktemp("outputs")
    return train(config(trees_of(root), steps=2), root / "run")


def refused(arguments: list[str], capsys, *expected: str) -> None:
    """The command ends with exit code 2 and one sentence that says all that is expected."""
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert all(text in " ".join(told.split()) for text in expected), told
    assert len(told.strip().splitlines()[-1]) <= 320 and "\x1b" not in told


# ------------------------------------------------------------------------------- data that is never destroyed


@pytest.mark.parametrize("layout", ["cityscapes", "folder"])
def test_predictions_never_replace_the_images_they_are_of(
    layout: str, run: Path, tmp_path: Path, monkeypatch, capsys
):
    data = trees.cityscapes(tmp_path / "cs", split="val")
    if layout == "folder":
        (data / "dataset.yaml").write_text("images: leftImg8bit/val/*/*.png\nclasses: [a]\n")
    before = content(data)
    subset = "" if layout == "folder" else ":val"
    (tmp_path / "run").symlink_to(run)
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    for out in ("cs", str(data), "link", "cs/predictions", "cs/leftImg8bit/../new", "."):
        refused(["predict", out, "--run", "run", "--data", f"{layout}:cs{subset}"], capsys, "name a ")
        assert content(data) == before


def test_a_transfer_never_replaces_its_source(tmp_path: Path, monkeypatch, capsys):
    trees.cityscapes(tmp_path / "data/night")
    before = content(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    source = ["--source", "cityscapes:data/night:train", "--to", "night"]
    refused(["transfer", "data", *source], capsys, "lies in the output folder")
    refused(["transfer", "data/night", *source], capsys, "lies in the input")
    refused(["transfer", "data/night/new", *source], capsys, "lies in the input")
    assert content(tmp_path / "data") == before


@pytest.mark.parametrize("subset", ["../mine/val", "*", "/val", "a/../../b", ""])
def test_subsets_never_lead_out_of_a_folder(subset: str, tmp_path: Path, capsys):
    home = trees.folder(tmp_path / "mine", split="val")
    text = (
        f"images: '{{subset}}/images/*.jpg'\nlabels: '{{subset}}/labels/*.png'\nclasses: [a, b, "
        f"c]\nsubsets: ['{subset}']\nignore: [3]\n"
    )
    (home / "dataset.yaml").write_text(text)
    refused(["transfer", str(tmp_path / "out"), "--source", f"folder:{home}"], capsys, "dataset.yaml")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_segshift_did_not_begin_is_left_alone(run: Path, tmp_path: Path, monkeypatch, capsys):
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    for name in (
        "index.html",
        "metrics.json",
        "check.json",
        "checkpoints/00000001.pth",
        "checkpoints/best.safetensors",
    ):
        (mine / name).write_text("mine")
    before, data = content(mine), f"cityscapes:{run.parent}/day:val"
    out = str(mine)
    for command in (
        ["report", out, "--runs", str(run)],
        ["check", "--data", data, "--out", out],
        ["town", out],
        ["prior", "train", out],
        ["train", out, "--source", data, "--method", "source_only", "--select", "last", *NETWORK],
        ["predict", out, "--run", str(run), "--data", data],
        ["run", "demo", out],
        ["demo", out],
        ["evaluate", out, "--predictions", str(run), "--data", data],
        ["transfer", out, "--source", data],
        ["estimate", out, "--run", str(run), "--source", data],
    ):
        assert main(command) == 2, command
        assert content(mine) == before, command
    capsys.readouterr()
    (mine / "config.json").write_text('{"architectures": ["UperNet"]}')  # a model's
    refused(["town", out], capsys, "no configuration that segshift wrote")
    monkeypatch.chdir(mine)
    refused(["town", ""], capsys, "an empty path")


def test_hidden_files_of_the_system_do_not_make_a_folder_the_users(tmp_path: Path):
    (tmp_path / ".DS_Store").touch()
    assert outputs.begin(tmp_path, "town", {"seed": 0}) == tmp_path


def test_an_output_that_cannot_be_one_is_refused(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    for out in (
        str(tmp_path / "file"),
        str(tmp_path / "file/below"),
        str(tmp_path / ("x" * 300)),
        "~nosuchuser/out",
        "a\0b",
    ):
        assert main(["town", out]) == 2
    assert "too long" in capsys.readouterr().err.lower()


# ------------------------------------------------------------------------------ a failed start leaves nothing


def test_a_corrected_command_follows_a_failed_one(tmp_path: Path, capsys, monkeypatch):
    data = trees_of(tmp_path)
    small = (
        "--size 32 64 --crop 16 32 --batch-size 2 --steps 1 --workers 0 --device cpu --select last "
        "--method source_only"
    )
    command = ["train", str(tmp_path / "run"), "--source", f"cityscapes:{data}/day:train", *small.split()]
    for wrong in (
        ["--network.name", "nosuch:build"],
        ["--network.weights", str(tmp_path / "none.pt")],
        ["--seed", "-1"],
        ["--network.name", "networks:one_class_too_many"],
    ):
        assert main([*command, *wrong]) == 2
        assert not (tmp_path / "run").exists(), wrong
    (tmp_path / "run").mkdir()  # the user's own stays
    assert main([*command, "--network.name", "nosuch:build"]) == 2 and not any((tmp_path / "run").iterdir())
    assert main([*command, *NETWORK]) == 0


def test_a_training_without_a_checkpoint_is_taken_over_and_one_with_is_not(tmp_path: Path, monkeypatch):
    data = trees_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        training.stop_in_step(patch, 1)
        train(config(data), tmp_path / "run")
    train(config(data, lr=0.2), tmp_path / "run")
    train(config(data, lr=0.2), tmp_path / "whole")
    assert training.same(tmp_path / "run", tmp_path / "whole") and training.logged(
        tmp_path / "run"
    ) == training.logged(tmp_path / "whole")
    with pytest.raises(InputError, match=r"other options \(--lr 0.2 there, 0.3 asked for\)"):
        train(config(data, lr=0.3), tmp_path / "run")


def test_a_transfer_without_a_frame_is_taken_over(tmp_path: Path):
    first = TransferConfig(source="cityscapes:/data:train")
    outputs.begin(tmp_path / "out", "transfer", first)
    from segshift.stages.transfer import begun

    other = outputs.open_output(tmp_path / "out", "transfer", replace(first, seed=7), begun=begun)
    assert other.claim() and runs.read_json(tmp_path / "out" / "config.json")["config"]["seed"] == 7
    (tmp_path / "out" / "journal").mkdir()
    journal = tmp_path / "out" / "journal" / "0-of-1.jsonl"
    journal.write_text('{"id": "a", "error": "broken"}\n')  # a frame that failed is no result
    outputs.open_output(tmp_path / "out", "transfer", first, begun=begun)
    made = {"id": "a", "domain": "night", "prompt": "night", "strength": 0.9}
    runs.write_lines(journal, [made | {"model": "town", "weights": {}, "sha256": None}])
    with pytest.raises(InputError, match="--seed 7 there, 42 asked for"):
        outputs.open_output(tmp_path / "out", "transfer", first, begun=begun)


def test_an_estimate_without_a_transferred_frame_is_taken_over(tmp_path: Path):
    from segshift.stages.estimate import _begun

    first = EstimateConfig(run="run", source="cityscapes:/data:val", generator="mine:broken")
    outputs.begin(tmp_path / "out", "estimate", first)
    (tmp_path / "out" / "source" / "predictions").mkdir(parents=True)
    journal = tmp_path / "out" / "transferred" / "night-0.9-42" / "journal" / "0-of-1.jsonl"
    runs.write_lines(journal, [{"id": "a", "error": "broken"}])
    mended = replace(first, generator="mine:good")
    assert outputs.begin(tmp_path / "out", "estimate", mended, begun=_begun)
    made = {"id": "a", "domain": "night", "prompt": "night", "strength": 0.9}
    runs.write_lines(journal, [made | {"model": "town", "weights": {}, "sha256": None}])
    with pytest.raises(InputError, match="--generator mine:good there, mine:broken asked for"):
        outputs.open_output(tmp_path / "out", "estimate", first, begun=_begun)


def test_a_run_is_extended_and_the_log_says_so(tmp_path: Path):
    data = trees_of(tmp_path)
    train(config(data, steps=4), tmp_path / "run")
    train(config(data, steps=8), tmp_path / "run")
    assert (
        checkpoints.last_step(tmp_path / "run") == 8
        and runs.read_config(tmp_path / "run/config.json", TrainConfig).steps == 8
    )
    lines = training.logged(tmp_path / "run")
    assert {"step": 4, "steps": 8, "steps_before": 4} in lines
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    assert rates[4] == pytest.approx(0.1 * (1 - 3 / 4) ** 0.9)  # as it was trained
    assert rates[5] == pytest.approx(0.1 * (1 - 4 / 8) ** 0.9)  # as the longer schedule says
    with pytest.raises(InputError, match="is at step 8: give --steps of 8 or more"):
        train(config(data, steps=6), tmp_path / "run")


# ---------------------------------------------------------------------------------- exit codes and messages


def test_a_defect_is_told_with_its_traceback_and_a_code_of_its_own(tmp_path: Path, monkeypatch, capsys):
    def broken(config, out):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("segshift.town.writer.town", broken)
    assert main(["town", str(tmp_path / "out")]) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told and "ZeroDivisionError" in told and "defect of segshift" in told


def too_much(config, out):
    raise MemoryError


def too_much_for_torch(config, out):
    torch.empty(2**60)


def full(config, out):
    raise OSError(errno.ENOSPC, "No space left on device", "/data/prior.log")


def test_a_full_disk_is_no_defect(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("segshift.town.writer.town", full)
    refused(
        ["town", str(tmp_path / "out")], capsys, "disk full", "/data/prior.log", "free some space and run"
    )


def too_much_for_a_worker(config, out):
    raise BrokenProcessPool("a process was terminated abruptly")


@pytest.mark.parametrize("stage", [too_much, too_much_for_torch, too_much_for_a_worker])
def test_too_little_memory_is_no_defect(stage, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("segshift.town.writer.town", stage)
    refused(["town", str(tmp_path / "out")], capsys, "too little memory", "take smaller pictures")


def test_code_of_the_users_that_ends_the_process_is_no_success(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("segshift.town.writer.town", lambda config, out: sys.exit(0))
    refused(["town", str(tmp_path / "out")], capsys, "your own code ended the process (SystemExit: 0 in")


def test_debug_shows_where_a_wrong_input_was_found(tmp_path: Path, capsys):
    assert main(["town", str(tmp_path), "--height", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["town", str(tmp_path), "--height", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version_and_unknown_commands_and_options(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("segshift ")
    assert main(["--help"]) == 0 and "transfer" in capsys.readouterr().out
    assert main(["transfr"]) == 2 and "no command 'transfr'" in capsys.readouterr().err
    assert main(["evaluate", "out", "--predictons", "x"]) == 2
    told = "".join(capsys.readouterr())
    assert "--predictions" in told and "segshift train" not in told


def test_messages_are_one_short_line_without_escape_codes(tmp_path: Path, capsys):
    assert main(["check", "--data", "cityscapes:" + "\x1b[31m" + "x" * 600]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and len(told.strip()) <= 320 and told.count("\n") == 1


def test_warnings_carry_the_word_and_are_said_once(tmp_path: Path, capsys):
    import logging

    from rich.console import Console

    from segshift.commands import _warnings_to

    _warnings_to(Console(stderr=True))
    for _ in range(2):
        logging.getLogger("segshift.data.frames").warning("%d frames left out", 3)
    assert capsys.readouterr().err.count("warning 3 frames left out") == 1


def test_every_command_says_where_its_results_are(tmp_path: Path, capsys):
    small = (
        "--height 32 --width 64 --source-train 1 --source-val 1 --target-train 0 --target-val 0 --workers 1"
    )
    assert main(["town", str(tmp_path / "town"), *small.split()]) == 0
    assert f"results: {tmp_path / 'town'}" in capsys.readouterr().out


def test_recipes_are_listed_without_torch():
    code = (
        "import sys; from segshift.__main__ import main; assert main(['recipes']) == 0; assert 'torch' "
        "not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def begun(command: list[str], folder: Path) -> subprocess.Popen:
    """The command in a process of its own, which has said that it runs. Modules in `folder` come first."""
    code = (
        "import sys; from segshift.__main__ import script; print('begun', flush=True); sys.argv[0] = "
        "'segshift'; script()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


INTERRUPTED = "interrupted: run the same command again to continue"
TOWN = ["town", "--source-train", "5000", "--workers", "2"]
TRAIN = ["train", "--method", "source_only", "--source", "cityscapes:/nowhere", "--select", "last"]


@pytest.mark.parametrize(
    ("command", "after"), [(TOWN, 0.05), (TOWN, 0.4), (TOWN, None), (TRAIN, 0.3), (TRAIN, 0.6)]
)
def test_ctrl_c_is_one_line_and_exit_code_130_whenever_it_comes(command, after: float | None, tmp_path: Path):
    """Also while `train` imports torch. after: seconds; None waits for the first picture."""
    process = begun([command[0], str(tmp_path / "out"), *command[1:]], tmp_path)
    while after is None and process.poll() is None and not any((tmp_path / "out").rglob("[!.]*.png")):
        time.sleep(0.03)
    time.sleep(after or 0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers included
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.strip() == INTERRUPTED


def test_ctrl_c_in_an_import_raises_nothing_there(tmp_path: Path):
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "finally:\n    print('left by an exception', flush=True)\n"
    )
    process = begun([TRAIN[0], str(tmp_path / "out"), *TRAIN[1:]], tmp_path)
    assert process.communicate(timeout=120) == ("", INTERRUPTED + "\n") and process.returncode == 130


def test_what_a_killed_prediction_left_is_removed_by_the_next(run: Path, tmp_path: Path):
    from segshift.stages.predict import predict

    settings = PredictConfig(run=str(run), data=f"cityscapes:{run.parent}/day:val", device="cpu")
    out = predict(settings, tmp_path / "out")
    left = out / "leftImg8bit/val/ulm/.tmp-0123.png"
    left.write_bytes(b"half")
    next(out.rglob("ulm*.png")).unlink()
    predict(settings, out)
    assert not left.exists() and list(out.rglob("ulm*.png"))
