"""Calibration and risk against coverage: equal to what the definitions give, pixel by pixel."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import trees

from segshift import runs
from segshift.config import EvaluateConfig
from segshift.data import frames
from segshift.runs import InputError
from segshift.scoring import calibration, predictions
from segshift.stages.evaluate import evaluate

CLASSES = (0, 1, 2)


def made(seed: int = 0, size: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that say something about the errors, labels with void, predictions."""
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array([0, 1, 2, 7, 255], np.uint8), size)
    values = rng.integers(0, 65536, size).astype(np.uint16)
    pred = np.where(rng.random(size) < values / 65535, label, (label + 1) % 3).astype(np.uint8)
    return values, label, pred


def test_reliability_is_its_definition():
    values, label, pred = made()
    found = calibration.reliability(calibration.histogram(values, label, pred, CLASSES))
    inside = label < 3
    v, right = values[inside] / 65535, (pred == label)[inside]
    bins = np.minimum(values[inside].astype(int) * 20 // 65536, 19)
    error = 0.0
    for b in range(20):
        here = bins == b
        assert found["count"][b] == here.sum()
        assert found["accuracy"][b] == pytest.approx(right[here].mean(), abs=1e-12)
        assert found["confidence"][b] == pytest.approx(v[here].mean(), abs=1e-12)
        error += here.mean() * abs(right[here].mean() - v[here].mean())
    assert found["ece"] == pytest.approx(error, abs=1e-12) and 0.0 < found["ece"] < 0.2


def test_risk_against_coverage_is_the_error_of_the_most_certain():
    rng = np.random.default_rng(1)
    values = (rng.permutation(1000) * 65.536 + 20).astype(np.uint16).reshape(1, -1)  # no ties
    label = np.zeros((1, 1000), np.uint8)
    pred = (rng.random((1, 1000)) > values / 65535).astype(np.uint8)
    found = calibration.risk_coverage(calibration.histogram(values, label, pred, CLASSES), confidence=True)
    wrong = (pred != label)[0][np.argsort(-values[0].astype(int))]
    expected = np.cumsum(wrong) / np.arange(1, 1001)
    np.testing.assert_allclose(found["risk"], expected[9::10], atol=1e-6)
    assert found["area"] == pytest.approx(expected.mean(), abs=2e-3)
    turned = calibration.risk_coverage(calibration.histogram(65535 - values, label, pred, CLASSES))
    assert turned["area"] == pytest.approx(found["area"], abs=1e-3)


def test_area_is_least_for_a_perfect_ranking_and_the_error_rate_without_one():
    label = np.zeros((10, 100), np.uint8)
    pred = label.copy()
    pred[:3] = 1  # r = 0.3
    perfect = np.where(pred == label, 0, 60000).astype(np.uint16)
    r = 0.3
    area = calibration.risk_coverage(calibration.histogram(perfect, label, pred, CLASSES))["area"]
    assert area == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-12)
    flat = calibration.risk_coverage(calibration.histogram(np.zeros_like(perfect), label, pred, CLASSES))
    assert flat["area"] == pytest.approx(r) and set(flat["risk"]) == {r}


def test_a_map_of_few_small_values_ranks_as_its_magnification_does():
    values, label, pred = made()
    small = values // 4096  # 16 values in all, the largest 15 / 65535
    one, other = (
        calibration.risk_coverage(calibration.histogram(v, label, pred, CLASSES), confidence=True)
        for v in (small, small * 4096)
    )
    assert one == other
    rate = (pred != label)[label < 3].mean()
    assert one["area"] < 0.8 * rate


def test_histograms_of_frames_add_up():
    a, b = made(1), made(2)
    together = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    parts = calibration.histogram(*a, CLASSES) + calibration.histogram(*b, CLASSES)
    np.testing.assert_array_equal(parts, calibration.histogram(*together, CLASSES))


def test_nothing_labelled_gives_nothing():
    values, _, pred = made()
    empty = calibration.histogram(values, np.full_like(pred, 255), pred, CLASSES)
    assert calibration.reliability(empty) is None and calibration.risk_coverage(empty) is None


def predicted(tmp_path: Path) -> tuple[frames.Dataset, Path]:
    """Predictions with maps: surest where they are right."""
    data, folder = frames.load(f"acdc:{trees.acdc(tmp_path / 'acdc')}:night/val"), tmp_path / "pred"
    for frame in data.frames:
        label = frames.read_label(frame, data.space)
        right = np.random.default_rng(0).random(label.shape) < 0.7
        predictions.write(
            frames.place(data, frame, folder), np.where(right, label, (label + 1) % 19), data.space
        )
        for name, value in (
            ("confidence", np.where(right, 0.9, 0.3)),
            ("entropy", np.where(right, 0.1, 0.8)),
        ):
            file = frames.place(data, frame, folder / "uncertainty" / name)
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), (65535 * value).astype(np.uint16))
    return data, folder


@pytest.mark.parametrize("protocol", ["native", "as-published"])
def test_evaluate_reads_the_maps(tmp_path: Path, protocol: str):
    data, folder = predicted(tmp_path)
    evaluate(EvaluateConfig(str(folder), data.name, protocol=protocol), tmp_path / "out")
    result = runs.read_json(tmp_path / "out/metrics.json")
    accuracy = result["pixel_accuracy"]
    assert set(result["risk_coverage"]) == {"confidence", "entropy"}
    assert result["calibration"]["ece"] == pytest.approx(accuracy * 0.1 + (1 - accuracy) * 0.3, abs=1e-4)
    r = 1 - accuracy
    for curve in result["risk_coverage"].values():
        assert curve["area"] == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-9)
        assert curve["risk"][-1] == pytest.approx(r, abs=1e-6) and curve["risk"][0] == 0
    assert result["domains"]["night"]["calibration"] == result["calibration"]


def test_a_map_that_is_missing_or_of_another_size_is_refused(tmp_path: Path):
    data, folder = predicted(tmp_path)
    file = frames.place(data, data.frames[0], folder / "uncertainty/entropy")
    cv2.imwrite(str(file), np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match=r"map .*entropy.* is no picture of 64x32 with one channel of 16"):
        evaluate(EvaluateConfig(str(folder), data.name), tmp_path / "out")
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*entropy"):
        evaluate(EvaluateConfig(str(folder), data.name), tmp_path / "out")
