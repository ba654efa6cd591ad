"""Files that segshift wrote, broken by hand: the command that reads one goes on, or names it in one
sentence."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tiny_diffusion
import trees
from training import config as training_config

from segshift import records, runs
from segshift.config import (
    CheckConfig,
    DiffusionConfig,
    EstimateConfig,
    EvaluateConfig,
    GateConfig,
    ICCLDConfig,
    PredictConfig,
    ReportConfig,
    TransferConfig,
)
from segshift.generators import stable_diffusion
from segshift.recipes import runner
from segshift.runs import InputError
from segshift.stages.check import check
from segshift.stages.estimate import estimate
from segshift.stages.evaluate import evaluate
from segshift.stages.predict import predict
from segshift.stages.report import report
from segshift.stages.train import train
from segshift.stages.transfer import transfer

SIZE = (32, 32)
IDS = tuple(f"ulm_{i:06d}_000019" for i in range(10))
WHOLE, INSIDE = 2, 3
"""Of the ways to break a file as a whole, and of the changes within it, how many are tried."""
Command = Callable[["World"], Any]


class World:
    """Folders of every stage, and a copy of them all."""

    def __init__(self, root: Path) -> None:
        self.root, self.copy = root / "world", root / "copy"
        at = self.root
        trees.cityscapes(at / "day", IDS, SIZE)
        trees.cityscapes(at / "broken", IDS[:3], SIZE)
        broken = next((at / "broken").rglob(f"{IDS[0]}*.png"))
        broken.write_bytes(broken.read_bytes()[:60])
        model = DiffusionConfig(model=str(tiny_diffusion.prior(at / "prior")), device="cpu")
        day = f"cityscapes:{at}/day:train"

        check(CheckConfig(day, workers=1), at / "check")
        self.training = training_config(
            at,
            source=day,
            transferred=(),
            validation=day,
            method="source_only",
            size=SIZE,
            crop=(16, 32),
            steps=2,
            validate_every=1,
            rare_classes=str(at / "check"),
        )
        train(self.training, at / "run")
        self.predicting = PredictConfig(str(at / "run"), day, uncertainty=True, device="cpu")
        predict(self.predicting, at / "predicted")
        self.evaluating = EvaluateConfig(str(at / "predicted"), day)
        evaluate(self.evaluating, at / "evaluated")
        gate = GateConfig(str(at / "run"), tries=1, sample=2)
        moving = TransferConfig(f"cityscapes:{at}/broken:train", steps=2, batch_size=4, diffusion=model)
        self.gated, self.moving = replace(moving, gate=gate), moving
        transfer(self.gated, at / "gated")
        next((at / "gated").rglob(f"{IDS[1]}*leftImg8bit.png")).unlink(
            missing_ok=True
        )  # so that there is something to do
        transfer(moving, at / "moved")
        self.adapting = replace(
            self.training,
            source=moving.source,
            transferred=(f"cityscapes:{at}/moved/night:train",),
            method="zodi",
            validation=None,
            select="last",
            iccld=ICCLDConfig(),
        )
        self.scored = f"cityscapes:{at}/moved/night:train"
        predict(replace(self.predicting, data=self.scored), at / "on_moved")
        evaluate(EvaluateConfig(str(at / "on_moved"), self.scored), at / "of_moved")
        self.estimating = EstimateConfig(
            run=str(at / "run"),
            source=day,
            steps=2,
            draws=1,
            resamples=100,
            batch_size=10,
            device="cpu",
            diffusion=model,
        )
        estimate(self.estimating, at / "estimate")
        shutil.copytree(at / "run", at / "again")
        both = (str(at / "run"), str(at / "again"))
        shared = str(at / "estimate" / "transferred")
        estimate(replace(self.estimating, run=both, transferred=shared), at / "ranked")
        shutil.copytree(at, self.copy, symlinks=True)
        self.held = contents(self.copy)

    def restore(self) -> None:
        """Bring back the files that were changed, and delete those that were added."""
        now = contents(self.root)
        wrong = {name for name in now.keys() | self.held.keys() if now.get(name, 0) != self.held.get(name, 0)}
        for name in sorted(wrong & now.keys(), reverse=True):  # what is in a folder before the folder
            path = self.root / name
            path.rmdir() if now[name] is None else path.unlink()
        for name in sorted(wrong & self.held.keys()):
            path = self.root / name
            if self.held[name] is None:
                path.mkdir()
            else:
                shutil.copy2(self.copy / name, path, follow_symlinks=False)


def contents(root: Path) -> dict[str, int | None]:
    """When each file below `root` was changed; None for a folder."""
    found: dict[str, int | None] = {}
    folders = [str(root)]
    while folders:
        for entry in os.scandir(folders.pop()):
            folder = entry.is_dir(follow_symlinks=False)
            if folder:
                folders.append(entry.path)
            name = entry.path[len(str(root)) + 1 :]
            found[name] = None if folder else entry.stat(follow_symlinks=False).st_mtime_ns
    return found


def report_on(*names: str) -> Command:
    return lambda w: report(ReportConfig(tuple(str(w.root / name) for name in names)), w.root / "page")


def train_longer(w: World) -> None:
    train(replace(w.training, steps=3), w.root / "run")


def adapt(w: World) -> None:
    train(w.adapting, w.root / "adapted")


def predict_again(w: World) -> None:
    predict(w.predicting, w.root / "predicted")


def evaluate_again(w: World) -> None:
    evaluate(w.evaluating, w.root / "evaluated")


def transfer_again(w: World) -> None:
    transfer(w.moving, w.root / "moved")


def gate_again(w: World) -> None:
    transfer(w.gated, w.root / "gated")


def estimate_again(w: World) -> None:
    estimate(w.estimating, w.root / "estimate")


def load_model(w: World) -> None:
    stable_diffusion.load_model(DiffusionConfig(model=str(w.root / "prior"), device="cpu"), control=False)


READERS: dict[str, tuple[Command, ...]] = {
    "check/config.json": (lambda w: check(CheckConfig(w.training.source, workers=1), w.root / "check"),),
    "check/classes.jsonl": (train_longer,),
    "run/config.json": (report_on("run"), train_longer, predict_again),
    "run/metrics.jsonl": (report_on("run"), train_longer),
    "run/labels.json": (report_on("run"), predict_again),
    "run/environment.json": (report_on("run"),),
    "predicted/config.json": (
        report_on("predicted"),
        predict_again,
        lambda w: runner.run(str(w.root / "predicted/config.json")),
    ),
    "predicted/model.json": (predict_again, evaluate_again),
    "predicted/predictions.jsonl": (report_on("predicted"), predict_again),
    "evaluated/config.json": (report_on("evaluated"), evaluate_again),
    "evaluated/metrics.json": (report_on("evaluated"), report_on("evaluated", "estimate"), evaluate_again),
    "evaluated/frames.npz": (report_on("evaluated"), evaluate_again),
    "moved/config.json": (report_on("moved"), report_on("of_moved"), transfer_again),
    "moved/failures.jsonl": (lambda w: runs.failures(w.root / "moved"), transfer_again),
    "moved/night/failures.jsonl": (adapt, transfer_again),
    "moved/night/manifest.jsonl": (report_on("moved"), report_on("of_moved"), adapt, transfer_again),
    "gated/journal/0-of-1.jsonl": (gate_again,),
    "gated/night/manifest.jsonl": (report_on("gated"),),
    "gated/gate.json": (gate_again,),
    "estimate/config.json": (report_on("estimate"), estimate_again),
    "estimate/estimate.json": (report_on("evaluated", "estimate"),),
    "estimate/source/predictions/predictions.jsonl": (estimate_again,),
    "ranked/ranking.json": (report_on("ranked"),),
    "prior/segshift.json": (load_model,),
}
"""The commands that read each file."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("own"))


def whole_files(content: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    """Ways to break any file as a whole."""
    for text in ("", "null", "[]", "{}", '"text"', "5", "NaN", "[" * 5000, '{"id": "a"}'):
        yield text[:8] or "empty", text.encode()
    yield "truncated", content[: len(content) // 2]
    yield "random", random.randbytes(100)
    yield "random inside", content[: len(content) // 2] + random.randbytes(20) + content[len(content) // 2 :]
    yield "not UTF-8", content.replace(b'": "', b'": "\xff', 1)


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where dicts and lists hold something, nested ones too; of a list, the first and the last."""
    if path:
        yield path
    keys = (
        list(value)
        if isinstance(value, dict)
        else sorted({0, len(value) - 1})
        if isinstance(value, list) and value
        else []
    )
    for key in keys:
        yield from places(value[key], *path, key)


GONE = object()
VALUES = (GONE, None, "text", float("nan"), 1e999, [], {}, -1, True, ["text"])


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at `path`, or none."""
    value = json.loads(json.dumps(value))
    *before, last = path
    inner = value
    for key in before:
        inner = inner[key]
    if new is GONE:
        del inner[last]
    else:
        inner[last] = new
    return value


def json_files(content: bytes, lines: bool, random: Random) -> Iterator[tuple[str, bytes]]:
    """Ways to break one value in a file of JSON, or in the first or last line of a file of JSON lines."""
    text = [line for line in content.decode().split("\n") if line] if lines else [content.decode()]
    values = {i: json.loads(text[i]) for i in (0, len(text) - 1)}
    ways = [(i, path, new) for i, value in values.items() for path in places(value) for new in VALUES]
    for i, path, new in random.sample(ways, min(INSIDE, len(ways))):
        made = json.dumps(changed(values[i], path, new))
        what = f"{'.'.join(map(str, path))} is {'gone' if new is GONE else new}"
        yield what, "\n".join([*text[:i], made, *text[i + 1 :]]).encode()


def archives(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways to break frames.npz."""
    with np.load(BytesIO(content)) as found:
        ids, confusion = found["ids"], found["confusion"]
    for what, arrays in {
        "no ids": {"confusion": confusion},
        "no confusion": {"ids": ids},
        "fewer": {"ids": ids[1:], "confusion": confusion[1:]},
        "uneven": {"ids": ids[1:], "confusion": confusion},
        "floats": {"ids": ids, "confusion": confusion + 0.5},
        "flat": {"ids": ids, "confusion": confusion.ravel()},
        "square": {"ids": ids, "confusion": confusion[..., 1:]},
        "numbers": {"ids": np.arange(len(ids)), "confusion": confusion},
        "negative": {"ids": ids, "confusion": -confusion - 1},
        "objects": {"ids": ids.astype(object), "confusion": confusion},
        "scalar": {"ids": np.array("a"), "confusion": confusion},
    }.items():
        file = BytesIO()
        np.savez(file, **arrays)
        yield what, file.getvalue()
    for at in range(0, len(content), len(content) // 12):
        yield f"byte {at}", content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
    file = BytesIO()
    np.save(file, confusion)
    yield "one array", file.getvalue()


@pytest.mark.parametrize("name", READERS)
def test_a_file_broken_by_hand_is_named(world: World, name: str):
    path, random, wrong = world.root / name, Random(name), []
    content, lines = path.read_bytes(), path.suffix == ".jsonl"
    ways: list[tuple[str, bytes | None]] = random.sample(
        [("folder", None), *whole_files(content, random)], WHOLE
    )
    if path.suffix == ".npz":
        ways += random.sample(list(archives(content)), INSIDE)
    else:
        ways += json_files(content, lines, random)
    for i, (what, broken) in enumerate(ways):
        path.unlink()
        path.mkdir() if broken is None else path.write_bytes(broken)
        command = READERS[name][i % len(READERS[name])]
        try:
            command(world)
        except InputError as error:
            text = str(error)  # where the file is as it may be, but of something else, the folder is named
            if not any(str(there) in text for there in (path, path.parent)) or "pickle" in text:
                wrong.append(f"{what}, {i}: {error}")
        except Exception as error:
            wrong.append(f"{what}, {i}: {type(error).__name__}: {error}")
        world.restore()
    assert not wrong, "\n".join(wrong)


def test_what_a_type_does_not_name_is_kept_and_numbers_are_numbers(tmp_path: Path):
    file, line = (
        tmp_path / "predictions.jsonl",
        {
            "more": [1],
            "id": "a",
            "confidence": 1,
            "file": "a.png",
            "confidences": [2],
            "nuclear_norm": 0.5,
            "last": None,
        },
    )
    runs.write_lines(file, [line])
    [found] = runs.read_lines(file, records.Prediction)
    assert json.dumps(found) == json.dumps(line)  # in the order of the file
    for wrong in ("0.5", True, None, 1.5, float("nan"), [0.5]):
        runs.write_lines(file, [line, line | {"confidence": wrong}])
        with pytest.raises(InputError, match=f"{file}, line 2, is not as segshift wrote it .confidence: "):
            runs.read_lines(file, records.Prediction)
