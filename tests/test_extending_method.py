"""The example of docs/extending: a method, in one file and one line of the table, in a copy of the
package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import trees

import segshift
from segshift import runs

PACKAGE = Path(segshift.__file__).parent
EXAMPLE = Path(__file__).parents[1] / "docs" / "extending" / "method.py"
COMMANDS = """
import sys
from segshift.commands import run_command
run, data, target = sys.argv[1:]
try:
    run_command(["train", "--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules
train = ["train", run, "--source", data, "--method", "minent", "--select", "last", "--network.name",
         "networks:two_convs", "--size", "32", "64", "--crop", "32", "32", "--steps", "2",
         "--batch-size", "2", "--workers", "0", "--device", "cpu", "--minent.weight", "0.5"]
assert run_command(train) == 2
assert run_command([*train, "--target", target]) == 0
assert run_command(["predict", run + "-out", "--run", run, "--data", data, "--device", "cpu"]) == 0
"""


def extended(home: Path) -> Path:
    """A copy of the package with the example and its line; returns the folder to import it from."""
    shutil.copytree(
        PACKAGE, home / "segshift", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
    )
    (home / "segshift" / "methods" / "minent.py").write_text(EXAMPLE.read_text())
    table = home / "segshift" / "methods" / "__init__.py"
    text = table.read_text()
    table.unlink()  # a link to ours
    start = "from segshift.methods.source_only"
    text = text.replace(start, f"from segshift.methods.minent import MinEntConfig\n{start}")
    line = "    minent: MinEntConfig = field(default_factory=MinEntConfig)\n"
    assert line.strip() in EXAMPLE.read_text()
    end = "\n\nMETHODS"
    assert text.count(start) == text.count(end) == 1
    table.write_text(text.replace(end, line + end))
    return home


def test_the_example_trains_and_predicts_with_its_own_options(tmp_path: Path):
    data, target = (f"cityscapes:{trees.cityscapes(tmp_path / name)}:train" for name in ("day", "dusk"))
    path = os.pathsep.join([str(extended(tmp_path / "src")), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(tmp_path / "run"), data, target],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "method minent needs an unlabelled target data set" in done.stderr
        and "minent: source images" in " ".join(done.stdout.split())
    )
    assert {"source", "entropy"} <= runs.read_lines(tmp_path / "run" / "metrics.jsonl")[1].keys()
    assert runs.read_json(tmp_path / "run" / "config.json")["config"]["minent"] == {"weight": 0.5}
