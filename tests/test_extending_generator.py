"""The generator of docs/extending/generator.py, as a user adds it: from its file to transferred trees."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from transferring import IDS, manifest, pictures

from segshift import runs
from segshift.commands import run_command
from segshift.data import frames

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending" / "generator.py"
SIZE = (40, 50)


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    """`segshift transfer`, but for OUT, in a folder that holds the example."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "generator.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "work")
    monkeypatch.delitem(sys.modules, "generator", raising=False)
    source = trees.cityscapes(tmp_path / "cityscapes", IDS, SIZE)
    options = ["--source", f"cityscapes:{source}:train", "--to", "fog", "driving in a sandstorm"]
    return ["transfer", *options, "--generator", "generator:build"]


def transfer(command: list[str], out: Path, *more: str) -> Path:
    name, *options = command
    assert run_command([name, str(out), *options, *more]) == 0
    return out


def test_the_example_is_short():
    assert len([line for line in EXAMPLE.read_text().splitlines() if line.strip()]) <= 40


def test_the_example_transfers_resumes_and_runs_in_shards_to_the_same_bytes(command, tmp_path):
    whole = transfer(command, tmp_path / "whole")
    for line in manifest(whole, "fog"):
        assert line["model"] == "generator:build" and line["settings"]["working_size"] == list(SIZE)
        assert line["weights"] == {"module": runs.hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()}
    fog = frames.load(f"cityscapes:{whole}/fog:train")
    assert [frame.id for frame in fog.frames] == list(IDS)
    assert (
        frames.read_image(fog.frames[0].image).mean()
        > frames.read_image(frames.load(command[2]).frames[0].image).mean()
    )

    journal = whole / "journal" / "0-of-1.jsonl"
    killed = tmp_path / "killed"
    transfer(command, killed, "--shard", "0/2")
    assert len(manifest(killed, "fog")) == 3
    transfer(command, killed, "--batch-size", "1")  # goes on with the rest, one at a time
    parts = tmp_path / "parts"
    for shard in ("1/2", "0/2"):
        transfer(command, parts, "--shard", shard, "--batch-size", "3")
    for other in (killed, parts):
        assert pictures(other) == pictures(whole)
        assert manifest(other, "fog") == manifest(whole, "fog")
    before = journal.read_text()
    transfer(command, whole)
    assert journal.read_text() == before  # nothing was left to do


def test_another_generator_in_the_same_file_does_not_go_on_with_the_run(
    command, tmp_path, capsys, monkeypatch
):
    out = transfer(command, tmp_path / "out", "--shard", "0/2")
    Path("generator.py").write_text(EXAMPLE.read_text() + "\n# mended\n")
    monkeypatch.delitem(sys.modules, "generator")
    assert run_command([*command[:1], str(out), *command[1:]]) == 2
    assert "begun with other weights of 'generator:build': name a new folder" in " ".join(
        capsys.readouterr().err.split()
    )


def test_every_frame_and_domain_has_a_seed_of_its_own(command, tmp_path):
    Path("generator.py").write_text(
        "import numpy as np\n"
        "def build():\n"
        "    return lambda image, layout, domain, seed: np.full_like(image, seed % 256)\n"
    )
    out = transfer(command, tmp_path / "out")
    levels = {
        np.asarray(frames.read_image(out / path)).ravel()[0]
        for path in pictures(out)
        if "leftImg8bit" in path
    }
    assert len(levels) >= 8  # of ten pictures


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ("lambda *given: sys.exit(0)", "SystemExit: 0"),
        ("lambda image, *more: image[:4]", "an array of uint8"),
    ],
)
def test_a_generator_that_fails_on_a_frame_fails_no_other(
    built: str, message: str, command, tmp_path, capsys
):
    Path("generator.py").write_text(f"import sys\ndef build():\n    return {built}\n")
    name, *options = command
    assert run_command([name, str(tmp_path / "out"), *options]) == 1
    failed = runs.failures(tmp_path / "out")
    assert len(failed) == len(IDS) and all(message in line["error"] for line in failed)
    assert capsys.readouterr().err.count("failed ") == len(IDS)
    Path("generator.py").write_text(EXAMPLE.read_text())  # mended: nothing was made, so nothing is in the way
    sys.modules.pop("generator")
    transfer(command, tmp_path / "out")
    assert not runs.failures(tmp_path / "out")


def test_a_picture_that_is_too_narrow_for_the_short_side_is_listed(command, tmp_path):
    source = Path(command[2].split(":")[1])
    wide = trees.picture("wide", (2, 20_000))
    for path in source.rglob(f"*{IDS[0]}*"):
        trees.save(path, wide if "left" in path.name else wide[..., 0])
    name, *options = command
    assert run_command([name, str(tmp_path / "out"), *options, "--short-side", "64"]) == 1
    [line] = runs.failures(tmp_path / "out")
    assert line["id"] == IDS[0] and "20000x2 is 640000x64" in line["error"]
