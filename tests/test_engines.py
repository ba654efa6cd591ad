"""The stages on an engine that does the items in any order, with copies of the job, and loses workers."""

from dataclasses import replace
from pathlib import Path

import pytest
import reversing
import trees
from test_experiments import small
from test_predict import bytes_of, trained
from transferring import IDS, load_once, manifest, pictures, prior, source  # noqa: F401
from transferring import quick as config  # noqa: F401

from segshift import execution, runs
from segshift.config import EngineConfig, EstimateConfig, PredictConfig
from segshift.config.running import RayConfig
from segshift.recipes import runner
from segshift.runs import InputError
from segshift.stages.estimate import estimate
from segshift.stages.predict import predict
from segshift.stages.transfer import transfer


@pytest.fixture
def engine(monkeypatch) -> EngineConfig:
    monkeypatch.setitem(execution.ENGINES, "ray", "reversing")
    monkeypatch.setattr(reversing, "deadly", set())
    load_once(monkeypatch)  # each item goes to a new worker
    return EngineConfig("ray")


def test_a_transfer_is_the_same_on_an_engine(config, tmp_path, engine):  # noqa: F811
    config = replace(config, to=("night", "fog"))
    alone = transfer(config, tmp_path / "alone")
    there = transfer(replace(config, where=engine), tmp_path / "there")
    assert pictures(there) == pictures(alone)
    assert [manifest(there, slug) == manifest(alone, slug) for slug in ("night", "fog")] == [True, True]
    assert (there / "config.json").read_bytes() == (alone / "config.json").read_bytes()
    next((there / "fog").rglob("*leftImg8bit.png")).unlink()
    transfer(config, there)  # and goes on on another one
    assert pictures(there) == pictures(alone)


def test_a_frame_that_kills_workers_is_recorded_once_and_the_others_are_made(config, tmp_path, engine):  # noqa: F811
    reversing.deadly.add(IDS[1])
    out = transfer(replace(config, where=engine), tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == IDS[1] and "its worker died 3 times" in failed["error"]
    assert len(manifest(out)) == len(IDS) - 1
    reversing.deadly.clear()
    transfer(replace(config, where=engine), out)
    assert len(manifest(out)) == len(IDS) and not runs.failures(out)


def test_a_prediction_is_the_same_on_an_engine(tmp_path: Path, engine):
    root = trees.cityscapes(tmp_path / "day")
    broken = next(root.rglob("*19_leftImg8bit.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    day = f"cityscapes:{root}:train"
    settings = PredictConfig(
        str(trained(tmp_path / "run", day)), day, batch_size=2, uncertainty=True, device="cpu"
    )
    alone = predict(settings, tmp_path / "alone")
    assert bytes_of(predict(replace(settings, where=engine), tmp_path / "there")) == bytes_of(alone)
    reversing.deadly.add("bochum")
    out = predict(replace(settings, where=engine), tmp_path / "lost")
    assert [line["id"] for line in runs.failures(out)] == sorted([broken.stem[:20], "bochum_000000_000313"])


def test_an_estimate_is_the_same_on_an_engine(tmp_path: Path, prior, engine):  # noqa: F811
    ids = [f"aachen_{i:06d}_000019" for i in range(10)]
    data = f"cityscapes:{trees.cityscapes(tmp_path / 'day', ids, (64, 64))}:train"
    run = trained(tmp_path / "run", data)
    settings = EstimateConfig(
        run=(str(run),), source=data, draws=1, steps=2, resamples=100, batch_size=4, device="cpu"
    )
    settings = replace(settings, diffusion=replace(settings.diffusion, model=str(prior), device="cpu"))
    alone = estimate(settings, tmp_path / "alone")
    there = estimate(replace(settings, where=engine), tmp_path / "there")
    told = [(out / "estimate.json").read_text().replace(str(out), "") for out in (alone, there)]
    assert told[0] == told[1]


def test_an_experiment_is_the_same_on_an_engine(tmp_path: Path, prior, engine, capsys):  # noqa: F811
    experiment = replace(small(prior), seeds=2)
    alone = runner.run_experiment(experiment, tmp_path / "alone")
    there = runner.run_experiment(experiment, tmp_path / "there", engine)
    assert (there / "scores.json").read_bytes() == (alone / "scores.json").read_bytes()
    runner.run(str(there / "config.json"), where=engine)
    reversing.deadly.add("(1, 0)")
    with pytest.raises(InputError, match="row 'source only', seed 1: its worker died"):
        runner.run(str(there / "config.json"), where=engine)


def test_rows_wait_for_the_rows_that_they_start_from():
    from segshift.recipes import RECIPES

    e = RECIPES["iccld-town-night-ablations"]
    job = runner.Trainings(runner.fill(e, {"out": "/out"}, keep=("rows",)), Path("/out"))
    todo = [(seed, i) for seed in range(2) for i in range(len(e.rows))]
    after = job.after(todo)
    starts = [i for i, row in enumerate(e.rows) if row.train.from_run]
    assert starts and all(after[i] and after[i + len(e.rows)] for i in starts)
    for i, before in enumerate(after):
        assert all(j < i and todo[j][0] == todo[i][0] for j in before)


def test_what_an_engine_cannot_do_is_refused(config, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(InputError, match=r"--ray.address is of --engine ray"):
        EngineConfig("local", RayConfig("auto"))
    with pytest.raises(InputError, match="divides the frames by itself"):
        transfer(replace(config, where=EngineConfig("ray"), shard="0/2"), tmp_path / "out")
    monkeypatch.setitem(execution.ENGINES, "ray", "no_such_package")
    with pytest.raises(InputError, match=r"needs no_such_package: pip install 'segshift\[ray\]'"):
        transfer(replace(config, where=EngineConfig("ray")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
