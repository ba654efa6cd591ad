"""Black boxes, networks that only predict: through every command, and the example of docs/extending."""

import importlib.util
import sys
from pathlib import Path

import cv2
import networks
import numpy as np
import pytest
import torch
import trees

from segshift import runs
from segshift.commands import run_command
from segshift.config import EstimateConfig, PredictConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.networks.custom import BlackBox
from segshift.scoring import predictions
from segshift.stages.estimate import estimate
from segshift.stages.predict import predict

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "extending" / "black_box.py"
SHARED = ROOT.parent / "shared"
NETWORK = SHARED / "models" / "deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite"


@pytest.fixture
def day(tmp_path: Path) -> str:
    ids = [f"ulm_{i:06d}_000019" for i in range(10)]
    return f"cityscapes:{trees.cityscapes(tmp_path / 'day', ids)}:train"


def test_train_ids_are_predicted_as_they_are_and_scores_by_their_largest(tmp_path: Path, day: str):
    data = frames.load(day)
    for name, confidence in (("seeing", (0.99, 1.0)), ("scoring", (0.05, 0.9))):
        config = PredictConfig(f"networks:{name}", day, size=(32, 64), device="cpu")
        out = predict(config, tmp_path / name)
        for frame in data.frames:
            expected = networks.seeing(19)(frames.read_image(frame.image))
            found = predictions.read(frames.place(data, frame, out), data.space)
            # every second pixel was seen; resizing keeps the ids in the corners
            assert (
                found.shape == (32, 64)
                and found[0, 0] == expected[0, 0]
                and found[-1, -1] == expected[-1, -1]
            )
        lines = runs.read_lines(out / "predictions.jsonl")
        assert all(confidence[0] < line["confidence"] <= confidence[1] for line in lines)


def test_a_black_box_reaches_every_command_as_run(tmp_path: Path, day: str, capsys, monkeypatch):
    (tmp_path / "box_of_mine.py").write_text(
        "def build(classes):\n    return lambda image: image[:, :, 0] * 0 + 10\n"
        "def filter():\n    return lambda image, layout, domain, seed: image // 2\n"
    )
    monkeypatch.chdir(tmp_path)
    out, box = str(tmp_path / "out"), ["--run", "box_of_mine:build"]
    assert run_command(["predict", out, *box, "--data", day, "--device", "cpu"]) == 0
    assert run_command(["evaluate", str(tmp_path / "score"), "--predictions", out, "--data", day]) == 0
    scores = runs.read_json(tmp_path / "score" / "metrics.json")
    assert scores["iou"]["sky"] > 0 == scores["iou"]["road"]
    assert scores["protocol"].endswith("; network box_of_mine:build")
    assert scores["model"]["run"] == f"{tmp_path}/box_of_mine:build"  # found again from anywhere
    config = EstimateConfig(
        "box_of_mine:build", day, draws=1, resamples=100, device="cpu", generator="box_of_mine:filter"
    )
    estimated = estimate(config, tmp_path / "estimate")
    assert runs.read_json(estimated / "estimate.json")["domains"]["night"]["corrected"]["miou"]["value"] > 0
    train = ["train", str(tmp_path / "run"), "--source", day, "--method", "source_only", "--select", "last"]
    train += ["--network.name", "box_of_mine:build", "--size", "32", "64", "--device", "cpu"]
    assert run_command(train) == 2
    assert "only predicts and cannot be trained" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "run").glob("[!.]*"))
    assert run_command(["predict", f"{out}-2", *box, "--network.name", "unet", "--data", day]) == 2
    assert "names a network already" in capsys.readouterr().err


def test_another_black_box_in_the_same_file_does_not_go_on(tmp_path: Path, day: str, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["predict", str(tmp_path / "out"), "--run", "changing_box:build", "--data", day]
    for value, code in ((1, 0), (2, 2)):
        text = f"def build(classes):\n    return lambda image: image[:, :, 0] * 0 + {value}\n"
        (tmp_path / "changing_box.py").write_text(text)
        sys.modules.pop("changing_box", None)
        assert run_command([*command, "--device", "cpu"]) == code
    assert "holds predictions of other weights" in " ".join(capsys.readouterr().err.split())


def test_a_trained_module_of_yours_predicts_as_run_too(tmp_path: Path, day: str):
    out = predict(PredictConfig("networks:two_convs", day, size=(32, 64), device="cpu"), tmp_path / "out")
    assert len(runs.read_lines(out / "predictions.jsonl")) == 10


def test_a_folder_whose_name_looks_like_a_factory_is_a_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night:one").mkdir()
    config = PredictConfig("night:one", "cityscapes:nowhere")
    assert config.run == str(tmp_path / "night:one")


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, as the extra `test` has it")
    if not NETWORK.exists():
        pytest.skip(f"no network in {NETWORK}")
    monkeypatch.setenv("NETWORK", str(NETWORK))
    spec = importlib.util.spec_from_file_location("black_box", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_sees_a_real_street(tmp_path: Path, example):
    data = SHARED / "data" / "real" / "cityscapes"
    if not data.is_dir():
        pytest.skip(f"no frames in {data}")
    dataset = frames.load(f"cityscapes:{data}:val")
    picture = cv2.resize(frames.read_image(dataset.frames[0].image), (1024, 512))
    box = BlackBox("black_box:build", EXAMPLE, example.build(19), 19)
    images = np.ascontiguousarray(picture.transpose(2, 0, 1))[None]
    found = box(torch.from_numpy(images) / 255).argmax(1)[0].numpy()
    truth = cv2.resize(
        frames.read_label(dataset.frames[0], CITYSCAPES), (1024, 512), interpolation=cv2.INTER_NEAREST
    )
    assert (found == truth)[truth != 255].mean() > 0.85


def test_the_example_says_which_classes_it_has(example):
    with pytest.raises(ValueError, match="Cityscapes' 19 classes"):
        example.build(11)
