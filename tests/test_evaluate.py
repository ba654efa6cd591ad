"""Evaluation: equal to cityscapesScripts on the same PNGs, the protocols, and wrong input."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import trees
from PIL import Image

from segshift import runs
from segshift.config import EvaluateConfig
from segshift.data import frames, labels
from segshift.runs import InputError
from segshift.scoring import metrics, predictions
from segshift.stages.evaluate import evaluate

IDS = np.array(labels.CITYSCAPES.ids, np.uint8)


def cityscapes(root: Path, ids: dict[str, np.ndarray]) -> frames.Dataset:
    """A Cityscapes tree whose frames carry these label ids [H, W]; returns it loaded."""
    for name, label in ids.items():
        image = root / f"leftImg8bit/val/ulm/{name}_leftImg8bit.png"
        truth = root / f"gtFine/val/ulm/{name}_gtFine_labelIds.png"
        for file, array in ((image, np.zeros((*label.shape, 3), np.uint8)), (truth, label)):
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), array)
    return frames.load(f"cityscapes:{root}:val")


def acdc(root: Path, sizes: dict[str, tuple[int, int]]) -> frames.Dataset:
    """An ACDC tree with one frame a condition, of these heights and widths, all road."""
    for condition, size in sizes.items():
        image = root / f"rgb_anon/{condition}/val/GP01/{condition}_frame_000001_rgb_anon.png"
        truth = root / f"gt/{condition}/val/GP01/{condition}_frame_000001_gt_labelIds.png"
        for file, array in ((image, np.zeros((*size, 3), np.uint8)), (truth, np.full(size, 7, np.uint8))):
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), array)
    return frames.load(f"acdc:{root}:val")


def put(folder: Path, data: frames.Dataset, index: int, ids: np.ndarray) -> Path:
    """Write ids as they are (not train ids) where the prediction of a frame is looked for."""
    file = frames.place(data, data.frames[index], folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), ids)
    return file


def score(data: frames.Dataset, folder: Path, out: Path, **options) -> dict:
    evaluate(EvaluateConfig(str(folder), data.name, **options), out)
    return runs.read_json(out / "metrics.json")


def test_equal_to_cityscapesscripts_with_absent_classes_and_void(tmp_path: Path):
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    rng = np.random.default_rng(0)
    # Truth: void ids among the classes, 'train' (31) nowhere. Prediction: void on labelled pixels, classes on
    # void, 'bus' (28) predicted on void only.
    truth = {
        f"ulm_00000{i}_000019": rng.choice([*IDS[IDS < 28], 32, 33, 0, 3, 9, 29], (24, 40)) for i in range(3)
    }
    truth = {name: label.astype(np.uint8) for name, label in truth.items()}
    data = cityscapes(tmp_path / "data", truth)
    for i, label in enumerate(truth.values()):
        ids = np.where(
            rng.random(label.shape) < 0.6, label, rng.choice([*IDS[IDS < 28], 32, 33, 4, 30], label.shape)
        )
        ids[label == 9] = 28
        put(tmp_path / "pred", data, i, ids.astype(np.uint8))

    args = official.args
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    args.predictionPath, args.predictionWalk = str(tmp_path / "pred"), None
    files = [str(frame.label) for frame in data.frames]
    theirs = official.evaluateImgLists([official.getPrediction(args, file) for file in files], files, args)

    ours = score(data, tmp_path / "pred", tmp_path / "out")
    assert ours["iou"]["train"] is None and ours["iou"]["bus"] is None
    assert sum(value is None for value in ours["iou"].values()) == 2
    for name, value in ours["iou"].items():
        np.testing.assert_allclose(
            np.nan if value is None else value, theirs["classScores"][name], rtol=0, atol=1e-12
        )
    assert abs(ours["miou"] - theirs["averageScoreClasses"]) <= 1e-12
    matrix = np.array(theirs["confMatrix"])
    np.testing.assert_array_equal(np.array(ours["confusion"])[:, :19], matrix[np.ix_(IDS, IDS)])
    np.testing.assert_array_equal(np.array(ours["confusion"]).sum(1), matrix[IDS].sum(1))


@pytest.mark.parametrize("classes", [16, 13])
def test_class_sets_are_a_mean_over_their_own_classes(tmp_path: Path, classes: int):
    label = IDS[None].repeat(3, 0)
    ids = label.copy()
    ids[0, 9] = 21  # terrain taken for vegetation: outside both sets, counts nowhere
    ids[:2, 13] = 27  # car taken for truck, which is outside: two thirds of car are missed
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": label})
    put(tmp_path / "pred", data, 0, ids)
    result = score(data, tmp_path / "pred", tmp_path / "out", classes=classes)
    assert len(result["classes"]) == classes and "terrain" not in result["classes"]
    assert result["iou"]["vegetation"] == 1 and result["iou"]["car"] == pytest.approx(1 / 3)
    assert result["miou"] == pytest.approx((classes - 2 / 3) / classes)
    assert f"{classes} classes" in result["protocol"]


def test_conditions_are_scored_apart_and_together_from_summed_matrices(tmp_path: Path):
    data = acdc(tmp_path / "data", {"night": (8, 16), "snow": (8, 16)})
    night = [frame.domain for frame in data.frames].index("night")
    ids = np.full((8, 16), 7, np.uint8)
    put(tmp_path / "pred", data, 1 - night, ids)
    ids = ids.copy()
    ids[:4] = 8
    put(tmp_path / "pred", data, night, ids)
    result = score(data, tmp_path / "pred", tmp_path / "out")
    assert result["domains"]["night"]["iou"]["road"] == 0.5 and result["domains"]["snow"]["iou"]["road"] == 1
    assert result["iou"]["road"] == 0.75 and result["miou"] == 0.375
    assert {frame["domain"]: frame["miou"] for frame in result["frames"]} == {"night": 0.25, "snow": 1.0}
    assert result["protocol"].startswith("acdc val; 2 frames; 19 classes; label's native size")


def test_as_published_resizes_and_leaves_out_fog_of_another_size(tmp_path: Path):
    data = acdc(tmp_path / "data", {"fog": (1084, 1920), "night": (1080, 1920)})
    fog, night = (next(i for i, f in enumerate(data.frames) if f.domain == d) for d in ("fog", "night"))
    put(tmp_path / "pred", data, fog, np.full((1084, 1920), 8, np.uint8))
    ids = np.where(np.random.default_rng(0).random((1080, 1920)) < 0.5, 7, 8).astype(np.uint8)
    put(tmp_path / "pred", data, night, ids)
    result = score(data, tmp_path / "pred", tmp_path / "out", protocol="as-published")
    assert [frame["id"] for frame in result["left_out"]] == [data.frames[fog].id]
    resized = np.array(Image.fromarray(ids).resize((1024, 512), Image.NEAREST))
    assert result["confusion"][0][:2] == [(resized == 7).sum(), (resized == 8).sum()]
    assert "512x1024" in result["protocol"] and "1 fog frames" in result["protocol"]
    assert len(score(data, tmp_path / "pred", tmp_path / "native")["frames"]) == 2

    put(tmp_path / "small", data, fog, np.zeros((512, 1024), np.uint8))
    put(tmp_path / "small", data, night, resized)  # predicted at the published size: taken as it is
    small = score(data, tmp_path / "small", tmp_path / "out_small", protocol="as-published")
    assert small["confusion"] == result["confusion"]


def test_labels_and_predictions_of_every_kind_of_file_count_the_same(tmp_path: Path):
    rng = np.random.default_rng(0)
    truth, pred = (trees.train_ids(name) for name in ("00001", "a prediction"))
    expected = metrics.confusion_matrix(pred, truth, 19).tolist()
    for layout in ("cityscapes", "gta5", "synthia"):  # grey, indexed colours, 16 bits in three channels
        spec = f"{layout}:{getattr(trees, layout)(tmp_path / layout, ids=['00001'])}"
        data = frames.load(spec)
        folder = tmp_path / f"{layout}-pred"
        predictions.write(frames.place(data, data.frames[0], folder), pred, data.space)
        assert score(data, folder, tmp_path / f"{layout}-out")["confusion"] == expected
        indexed = Image.fromarray(data.space.to_file(pred))  # the same ids, drawn in colours
        indexed.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
        indexed.save(frames.place(data, data.frames[0], folder))
        assert score(data, folder, tmp_path / f"{layout}-out")["confusion"] == expected


def test_a_result_is_never_older_than_its_pngs(tmp_path: Path):
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": np.full((4, 4), 7, np.uint8)})
    put(tmp_path / "pred", data, 0, np.full((4, 4), 8, np.uint8))
    assert score(data, tmp_path / "pred", tmp_path / "out")["miou"] == 0
    put(tmp_path / "pred", data, 0, np.full((4, 4), 7, np.uint8))
    assert score(data, tmp_path / "pred", tmp_path / "out", workers=1)["miou"] == 1


def test_missing_predictions_are_refused_with_their_path(tmp_path: Path):
    data = cityscapes(
        tmp_path / "data", {f"ulm_00000{i}_000019": np.full((4, 4), 7, np.uint8) for i in range(2)}
    )
    with pytest.raises(InputError, match=r"no folder of predictions .*run segshift predict"):
        score(data, tmp_path / "nowhere", tmp_path / "out")
    put(tmp_path / "pred", data, 0, np.full((4, 4), 7, np.uint8))
    with pytest.raises(InputError, match=r"1 of 2 frames .*ulm_000001_000019.*run segshift predict"):
        score(data, tmp_path / "pred", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((4, 5), 7, np.uint8), r"5x4, its label .* is 4x4"),
        (np.full((4, 4, 3), 7, np.uint8), "3 channels"),
        (np.full((4, 4), 200, np.uint8), r"holds \[200\].*official ids"),
    ],
)
def test_predictions_that_are_no_label_maps_of_the_frame_are_refused(
    tmp_path: Path, ids: np.ndarray, message: str
):
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": np.full((4, 4), 7, np.uint8)})
    put(tmp_path / "pred", data, 0, ids)
    with pytest.raises(InputError, match=message):
        score(data, tmp_path / "pred", tmp_path / "out")


def test_a_truncated_prediction_is_refused(tmp_path: Path):
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": np.full((4, 4), 7, np.uint8)})
    file = put(tmp_path / "pred", data, 0, np.full((4, 4), 7, np.uint8))
    whole = file.read_bytes()
    for length in (0, 30, len(whole) - 25):
        file.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=f"cannot read {file} .*: delete it and run segshift predict again"
        ):
            score(data, tmp_path / "pred", tmp_path / "out")


def test_a_prediction_in_colours_is_refused(tmp_path: Path):
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": np.full((4, 4), 7, np.uint8)})
    file = put(tmp_path / "pred", data, 0, np.full((4, 4, 3), 7, np.uint8))
    with pytest.raises(
        InputError, match=f"the prediction {file} has 3 channels, expected one holding cityscapes ids"
    ):
        score(data, tmp_path / "pred", tmp_path / "out")


def test_data_without_labels_cannot_be_evaluated(tmp_path: Path):
    data = cityscapes(tmp_path / "data", {"ulm_000000_000019": np.full((4, 4), 7, np.uint8)})
    put(tmp_path / "pred", data, 0, np.full((4, 4), 7, np.uint8))
    (tmp_path / "data/leftImg8bit/val").rename(tmp_path / "data/leftImg8bit/test")
    with pytest.raises(
        InputError, match=r"no frame of .*:test has a label, .* or name a subset that has labels"
    ):
        evaluate(EvaluateConfig(str(tmp_path / "pred"), f"cityscapes:{tmp_path}/data:test"), tmp_path / "out")
