"""docs/first-steps.ipynb runs from top to bottom, offline, and is kept without its outputs."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALLER = {
    "source_train=8": "source_train=3",
    "target_val=6": "target_val=3",
    'to=("night",))': 'to=("night",), steps=5)',
    '"steps": 35': '"steps": 2',
    'encoder="resnet18"': 'encoder="tu-test_resnet"',
}
"""The test runs every cell, with fewer frames and steps and a smaller network than a reader."""
NOTEBOOK = Path(__file__).parent.parent / "docs" / "first-steps.ipynb"


def test_the_notebook_is_kept_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


def test_the_notebook_runs_and_shows_its_pictures(tmp_path: Path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it writes
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for long, short in SMALLER.items():
        [cell] = [cell for cell in notebook.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if "data" in output]
    shown = [part["image/png"] for part in data if "image/png" in part]
    assert len(shown) == 3  # days and labels; days and nights; nights, truths, predictions
    days, nights = np.split(np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[1]))), np.float32), 2)
    assert nights.mean() < days.mean()
    [scores] = [part["text/plain"] for part in data if "source-only" in part["text/plain"]]
    assert "zodi" in scores
