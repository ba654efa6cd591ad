"""The faults of a cluster, on machines in this process: memory, disks, clocks, drivers. Ray itself is in
test_ray.py."""

# ruff: noqa: F811 (fixtures are imported by name)

import errno
import os
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import trees
from test_transfer import _hold
from transferring import IDS, SIZE, manifest, model, pictures, prior  # noqa: F401

from segshift import execution, outputs, runs
from segshift.config import DiffusionConfig, EngineConfig, TransferConfig
from segshift.engine import making
from segshift.engine.journal import Journal
from segshift.runs import InputError
from segshift.stages.transfer import transfer

pytest.importorskip("ray", reason="Ray is an extra: pip install 'segshift[ray]'")
from machines import Machines
from ray.exceptions import ActorDiedError, OutOfMemoryError

from segshift.execution import ray as engine

HOURS = 5 * 3600


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def alone(home: Path, prior: Path) -> TransferConfig:
    """One process, a frame after the other."""
    source = trees.cityscapes(home / "cityscapes", IDS, SIZE)
    where = DiffusionConfig(model=str(prior), device="cpu")
    return TransferConfig(source=f"cityscapes:{source}:train", batch_size=1, diffusion=where)


@pytest.fixture(scope="module")
def whole(alone: TransferConfig, home: Path) -> Path:
    return transfer(alone, home / "whole")


@pytest.fixture
def there(alone: TransferConfig) -> TransferConfig:
    return replace(alone, where=EngineConfig("ray"))


@pytest.fixture(autouse=True)
def loaded(monkeypatch, model) -> None:
    monkeypatch.setattr(making.generators, "load", lambda *a, **k: model)


@pytest.fixture
def cluster(monkeypatch) -> Machines:
    made = Machines()
    monkeypatch.setattr(engine, "ray", made)
    return made


def equal(out: Path, whole: Path) -> bool:
    return pictures(out) == pictures(whole) and manifest(out) == manifest(whole)


def left_half(out: Path) -> list[Path]:
    return list(out.rglob(f"{runs.TEMPORARY}*"))


def journalled(out: Path) -> list[str]:
    lines = [line for path in (out / "journal").iterdir() for line in runs.read_lines(path)]
    return [line["id"] for line in lines if "domain" in line]


def test_a_worker_killed_for_its_memory_costs_what_it_held(cluster, there, whole, tmp_path):
    died = []

    def fault(machine, item):
        if machine == "1" and not died:
            died.append(item)
            raise OutOfMemoryError("the memory monitor killed it")

    cluster.fault = fault
    out = transfer(there, tmp_path / "out")
    assert died and equal(out, whole) and not runs.failures(out)
    assert sorted(journalled(out)) == sorted(IDS)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError("more than the threshold 0.95"), "threshold 0.95"),
        (ActorDiedError(), "died unexpectedly"),
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 3 TiB"), "Unable to allocate 3 TiB"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_frame_that_takes_all_memory_is_recorded_once_and_the_others_are_made(
    cluster, there, whole, tmp_path, error, told
):
    def fault(machine, item):
        if IDS[1] in repr(item):
            raise error

    cluster.fault = fault
    out = transfer(replace(there, batch_size=2), tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == IDS[1] and f"{IDS[1]}_leftImg8bit.png: its worker died 3 times" in failed["error"]
    assert told in failed["error"]
    assert [line["id"] for line in manifest(out)] == [id for id in IDS if id != IDS[1]]
    assert sum(IDS[1] in repr(item) for _, item in cluster.given) == 6  # with its neighbour, and alone
    cluster.fault = lambda machine, item: None
    transfer(there, out)
    assert len(manifest(out)) == len(IDS) and not runs.failures(out)


def test_a_full_disk_on_one_machine_keeps_what_the_others_have_in_hand(
    cluster, there, whole, tmp_path, monkeypatch
):
    replaced = os.replace

    def full(source, target):
        if cluster.at == "0" and str(target).endswith("leftImg8bit.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(
            InputError, match=rf"^disk full while writing {out}/.*png: free some space and run"
        ):
            transfer(there, out)
    assert {machine for machine, _ in cluster.given} == {"0", "1"} and len(cluster.given) == 2
    assert journalled(out) == [IDS[1]] == [line["id"] for line in manifest(out)]  # of the other machine
    assert not left_half(out) and len(pictures(out)) < len(pictures(whole))
    transfer(there, out)
    assert equal(out, whole)


@pytest.mark.parametrize("what", ["a folder", "a link", "the journal"])
def test_a_full_disk_is_one_sentence_wherever_it_is_met(alone, whole, tmp_path, monkeypatch, what):
    out, opened, mkdir, symlink = tmp_path / "out", Path.open, Path.mkdir, Path.symlink_to
    begun: list[Path] = []

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def open_(path, mode="r", *arguments, **named):
        if mode == "ab":
            begun.append(path)
        return opened(
            Path("/dev/full") if mode == "ab" and len(begun) > 2 else path, mode, *arguments, **named
        )

    broken = {
        "a folder": ("mkdir", lambda path, *a, **k: (full if path.name == "ulm" else mkdir)(path, *a, **k)),
        "a link": ("symlink_to", lambda path, *a: (full if "ulm" in str(path) else symlink)(path, *a)),
        "the journal": ("open", open_),
    }
    with monkeypatch.context() as patch:
        patch.setattr(Path, *broken[what])
        with pytest.raises(InputError, match=rf"{out}/.*: free some space and run the same command again"):
            transfer(alone, out)
    assert not left_half(out)
    transfer(alone, out)
    assert equal(out, whole)


@pytest.mark.parametrize("hours", [HOURS, -HOURS], ids=["ahead", "behind"])
def test_clocks_that_differ_change_nothing(cluster, there, whole, tmp_path, monkeypatch, hours):
    """One machine's clock and the times of all that it writes are hours off, and so is the next driver's."""
    now, now_ns, replaced, driver = time.time, time.time_ns, os.replace, []

    def off() -> int:
        return hours if cluster.at == "1" or driver else 0

    def dated(source, target):
        replaced(source, target)
        if not os.path.islink(target):
            os.utime(target, (time.time(), time.time()))

    monkeypatch.setattr(time, "time", lambda: now() + off())
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + off() * 10**9)
    monkeypatch.setattr(os, "replace", dated)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            transfer(there, out)
    dates = [path.stat().st_mtime for path in out.rglob("*leftImg8bit.png") if not path.is_symlink()]
    assert max(dates) - min(dates) > HOURS - 600
    cluster.given.clear()
    driver.append(True)
    transfer(there, out)
    assert len(cluster.given) == 2 and equal(out, whole) and sorted(journalled(out)) == sorted(IDS)
    cluster.given.clear()
    driver.clear()
    transfer(there, out)
    assert not cluster.given and equal(out, whole)


def stopped_after(patch, lines: int) -> None:
    """The driver ends as by a kill before it writes that line of the journal; its workers are in the middle
    of something."""
    add, added = Journal.add, []

    def stopping(journal, line):
        added.append(line)
        if len(added) > lines:
            raise KeyboardInterrupt
        add(journal, line)

    patch.setattr(Journal, "add", stopping)


def test_a_driver_that_was_killed_is_started_again(cluster, there, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            transfer(there, out)
    half = out / "night" / f"{runs.TEMPORARY}0123.png"
    half.write_bytes(b"half")
    cluster.given.clear()
    transfer(there, out)
    assert len(cluster.given) == 3 and equal(out, whole) and not left_half(out)
    assert sorted(journalled(out)) == sorted(IDS)


def test_a_second_driver_is_refused_before_it_waits_for_workers_that_the_first_has(
    cluster, there, tmp_path, monkeypatch
):
    def none_free():
        raise AssertionError("waits for workers")

    monkeypatch.setattr(outputs, "PATIENCE", 0.0)
    monkeypatch.setattr(cluster, "cluster_resources", none_free)
    out = tmp_path / "out"
    other = get_context("fork").Process(target=_hold, args=(out, (0, 1), tmp_path / "held"))
    other.start()
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        os.utime(out / outputs.LOCK, (0, 0))  # by whatever clock
        with pytest.raises(InputError, match=f"another process works in {out}"):
            transfer(replace(there, diffusion=replace(there.diffusion, device="auto")), out)
    finally:
        other.kill()
        other.join()


def test_asked_to_end_the_driver_asks_its_workers(cluster, there, tmp_path):
    with execution.workers(there.where, _Doubling(), "cpu") as workers:
        results = []
        for result in workers.map("double", [1, 2, 3, 4, 5], lambda: bool(results)):
            results.append(result)
    assert results == [2, 4, 6][: len(results)] and len(results) == len(cluster.given) < 5
    assert len(cluster.ended) == 1  # the one that has something in hand


class _Doubling:
    def double(self, items, asked):
        for item in items:
            yield 2 * item
