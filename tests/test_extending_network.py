"""The example of docs/extending: a network family, in one file and one line of the table."""

from pathlib import Path

import pytest
import timm
import torch
import trees
from safetensors.torch import save_file

from segshift import networks, runs
from segshift.commands import run_command

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending" / "network.py"


@pytest.fixture(autouse=True)
def line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linear_family.py").write_text(EXAMPLE.read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(networks, "NETWORKS", {"linear": "linear_family", **networks.NETWORKS})


def commands(tmp_path: Path, *more: str) -> list[int]:
    """Train and predict on a tiny tree; the exit codes."""
    data = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    train = [
        "train",
        str(tmp_path / "run"),
        "--source",
        data,
        "--network.name",
        "linear",
        "--select",
        "last",
        "--size",
        "32",
        "64",
        "--crop",
        "32",
        "32",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    predict = [
        "predict",
        str(tmp_path / "out"),
        "--run",
        str(tmp_path / "run"),
        "--data",
        data,
        "--device",
        "cpu",
    ]
    return [run_command([*train, *more]), run_command(predict)]


def test_the_example_trains_and_predicts_from_a_local_file_of_its_encoder(tmp_path: Path):
    torch.manual_seed(0)
    encoder = timm.create_model("test_resnet")
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    more = [
        "--method",
        "source_only",
        "--network.encoder",
        "test_resnet",
        "--network.weights",
        str(tmp_path / "encoder.safetensors"),
    ]
    assert commands(tmp_path, *more, "--lr", "0") == [0, 0]
    assert len(runs.read_lines(tmp_path / "out" / "predictions.jsonl")) == 3
    trained = networks.weights.read_tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert torch.equal(
        trained["segmenter.network.encoder.conv1.0.weight"], encoder.state_dict()["conv1.0.weight"]
    )


def test_the_example_has_features_for_zodi_and_refuses_an_unknown_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    moved = trees.mark_transferred(trees.cityscapes(tmp_path / "night"), trees.IDS)
    more = [
        "--transferred",
        f"cityscapes:{moved or tmp_path / 'night'}:train",
        "--network.no-pretrained",
        "--network.encoder",
    ]
    assert commands(tmp_path, *more, "test_resnet") == [0, 0]
    assert "similarity" in runs.read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert commands(tmp_path / "none", *more, "no_such_net")[0] == 2
    assert "timm makes no backbone 'no_such_net'" in capsys.readouterr().err
