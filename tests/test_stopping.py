"""SIGTERM: what is in hand is finished, the exit code is 143, the next start goes on to the same bytes."""

import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import trees
from test_experiments import small
from test_outputs import begun
from test_predict import trained
from training import config as training
from training import in_two_processes, last, logged, same, trees_of
from transferring import config, manifest, pictures, prior, source  # noqa: F401

from segshift import execution, runs
from segshift.__main__ import _leave, main
from segshift.config import EvaluateConfig, PredictConfig
from segshift.engine import making
from segshift.methods.base import Method
from segshift.methods.zodi.adaptation import ZoDi
from segshift.recipes import runner
from segshift.scoring import predictions
from segshift.stages import check as checking
from segshift.stages import evaluate as evaluating
from segshift.stages import export as exporting
from segshift.stages import transfer as transferring
from segshift.stages.evaluate import evaluate
from segshift.stages.predict import predict
from segshift.stages.train import train
from segshift.town import writer
from segshift.training import checkpoints, session


@pytest.fixture
def stopped():
    """The code that SIGTERM leaves with, of the block that it stops."""
    found = pytest.raises(SystemExit)
    yield found
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def asked_after(monkeypatch, where, name: str, calls: int) -> None:
    """SIGTERM comes while `where.name` is called for the `calls`-th time."""
    whole, count = getattr(where, name), []

    def function(*arguments, **named):
        count.append(1)
        if len(count) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **named)

    monkeypatch.setattr(where, name, function)


def test_a_block_ends_by_itself_and_then_the_process(stopped):
    done = []
    with stopped as told, execution.draining() as asked:
        assert not asked()
        for _ in range(2):  # a second one, as of Slurm and of torchrun, changes nothing
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(asked())
    assert done == [True] and told.value.code == execution.STOPPED == 143


def test_in_a_thread_nothing_is_asked():
    def block() -> None:
        with execution.draining() as asked:
            found.append(asked())

    found: list[bool] = []
    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_transfer_finishes_its_batch(config, tmp_path, monkeypatch, stopped):  # noqa: F811
    config = replace(config, to=("night", "fog"))
    whole = transferring.transfer(config, tmp_path / "whole")
    asked_after(monkeypatch, making, "_write", 1)
    out = tmp_path / "out"
    with stopped as told:
        transferring.transfer(config, out)
    assert told.value.code == 143
    assert len(manifest(out, "night")) == 2 and not manifest(out, "fog")  # two images, one domain: in hand
    transferring.transfer(config, out)
    assert pictures(out) == pictures(whole)
    assert manifest(out, "fog") == manifest(whole, "fog")


def test_a_prediction_finishes_its_batch(tmp_path: Path, monkeypatch, stopped):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    settings = PredictConfig(str(trained(tmp_path / "run", day)), day, batch_size=2, device="cpu")
    whole = predict(settings, tmp_path / "whole")
    asked_after(monkeypatch, predictions, "write", 1)
    out = tmp_path / "out"
    with stopped:
        predict(settings, out)
    assert len(runs.read_lines(out / "predictions.jsonl")) == 2
    predict(settings, out)
    assert pictures(out) == pictures(whole)
    assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_a_training_saves_the_step_in_hand(tmp_path: Path, monkeypatch, stopped):
    settings = training(trees_of(tmp_path), steps=6, checkpoint_every=100, validate_every=2)
    whole = train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        asked_after(patch, ZoDi, "losses", 3)
        with stopped:
            train(settings, tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 3
    train(settings, tmp_path / "run")
    assert same(whole, tmp_path / "run") and logged(whole) == logged(tmp_path / "run")


def test_processes_end_after_the_same_step_whichever_is_asked(tmp_path: Path, monkeypatch):
    settings = training(trees_of(tmp_path), steps=4, checkpoint_every=100)
    whole = in_two_processes(settings, tmp_path / "whole")
    plain = Method.after_step

    def after_step(self, step):
        if step == 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ZoDi, "after_step", after_step)
        in_two_processes(settings, tmp_path / "run", 143)
    assert checkpoints.last_step(tmp_path / "run") == 2
    in_two_processes(settings, tmp_path / "run")
    assert same(whole, tmp_path / "run")


def test_an_experiment_ends_with_the_stage_in_hand_and_continues(tmp_path: Path, prior, monkeypatch, stopped):  # noqa: F811
    experiment = small(prior)
    whole = runner.run_experiment(experiment, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        asked_after(patch, checkpoints, "save", 1)  # of the first row
        with stopped:
            runner.run_experiment(experiment, out)
    assert not (out / "scores.json").exists() and last(out / "seed-0" / "source-only")
    runner.run_experiment(experiment, out)
    assert (out / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


SMALL_TOWN = (
    "--height 32 --width 64 --source-train 2 --source-val 0 --target-train 0 --target-val 0 --workers 1"
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """data/, a run/ on it, its predictions/ and their evaluation/."""
    home = tmp_path_factory.mktemp("stages")
    data = f"cityscapes:{trees.cityscapes(home / 'data')}:train"
    run = trained(home / "run", data)
    predict(PredictConfig(str(run), data, device="cpu"), home / "predictions")
    evaluate(EvaluateConfig(str(home / "predictions"), data), home / "evaluation")
    return home


@pytest.mark.parametrize(
    ("command", "where", "name"),
    [
        ("town OUT " + SMALL_TOWN, writer, "_save"),
        ("check --data cityscapes:HOME/data:train --workers 1 --out OUT", checking, "_inspect"),
        (
            "evaluate OUT --predictions HOME/predictions --data cityscapes:HOME/data:train --workers 1",
            evaluating,
            "_matrix",
        ),
        ("report OUT --runs HOME/evaluation", runs, "atomic"),
        ("export OUT/net.pt2 --run HOME/run", exporting, "_write"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_short_stage_ends_at_once_and_leaves_nothing_half_written(
    command, where, name, evaluated: Path, tmp_path: Path, monkeypatch, capsys
):
    words = command.replace("HOME", str(evaluated)).replace("OUT", str(tmp_path / "out")).split()
    with monkeypatch.context() as patch:
        asked_after(patch, where, name, 1 if where is exporting else 2)
        before = signal.signal(signal.SIGTERM, _leave)  # as the installed command does
        try:
            assert main(words) == 143
        finally:
            signal.signal(signal.SIGTERM, before)
    assert "asked to end: run the same command again to continue" in capsys.readouterr().err
    assert not list(tmp_path.rglob(f"{runs.TEMPORARY}*"))
    assert main(words) == 0


def test_data_workers_leave_sigterm_to_the_training(tmp_path: Path):
    process = get_context("fork").Process(target=_worker, args=(session._data_worker, tmp_path / "told"))
    process.start()
    process.join(timeout=60)
    assert (tmp_path / "told").read_text() == "still here"


def _worker(init, told: Path) -> None:
    init(0)
    os.kill(os.getpid(), signal.SIGTERM)
    told.write_text("still here")


def test_the_command_leaves_with_143_and_one_line(tmp_path: Path):
    data = trees.cityscapes(tmp_path / "day")
    command = [
        "train",
        str(tmp_path / "out"),
        "--method",
        "source_only",
        "--source",
        f"cityscapes:{data}:train",
    ]
    command += ["--select", "last", "--network.encoder", "tu-test_resnet", "--network.no-pretrained"]
    command += ["--size", "32", "64", "--crop", "32", "64", "--device", "cpu", "--steps", "100000"]
    process = begun(command, tmp_path)
    log = tmp_path / "out" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does, data workers included
    _, told = process.communicate(timeout=120)
    assert (
        process.returncode == 143 and told.strip() == "asked to end: run the same command again to continue"
    )
    assert checkpoints.last_step(tmp_path / "out") == runs.read_lines(log)[-1]["step"]
