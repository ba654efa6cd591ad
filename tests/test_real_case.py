"""benchmarks/real_case.py on tiny frames: predicted and true scores of a black box."""

from pathlib import Path

import numpy as np
import pytest
import real_case
import trees

from segshift import runs
from segshift.data import frames

MODULE = """
import numpy as np

def build(classes):
    return lambda image: (image[:, :, 0] // 12).clip(0, classes - 1)

def darker():
    return lambda image, layout, domain, seed: image if "daylight" in domain.prompt else image // 2
"""
"""A network that reads the classes off the red channel, and a generator under which it fails."""


def test_a_black_box_is_judged_beside_the_truth(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_case.py").write_text(MODULE)
    ids = [f"ulm_{i:06d}_000019" for i in range(6)]
    trees.cityscapes(tmp_path / "data" / "cityscapes", ids, (64, 128))
    rng = np.random.default_rng(0)
    for condition, count in (("normal", 5), ("fog", 2), ("night", 2)):
        for i in range(count):
            label = rng.integers(0, 19, (4, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            label[:2] = 255
            image = np.repeat(12 * (label % 19)[..., None], 3, 2).astype(np.uint8)
            folder = tmp_path / "data" / "acdc" / condition
            trees.save(
                folder / "images" / f"{condition}_{i}.png", image // (2 if condition == "night" else 1)
            )
            trees.save(folder / "labels" / f"{condition}_{i}.png", label)
    told = real_case.Benchmark(
        tmp_path / "data",
        tmp_path / "out",
        run="tiny_case:build",
        generator="tiny_case:darker",
        domains=("fog", "night"),
        draws=1,
    )
    real_case.main(told)
    found = runs.read_json(tmp_path / "out" / "real-case.json")
    assert found["frames"] == {"source": 11, "fog": 2, "night": 2}
    assert found["generator"] == "tiny_case:darker" and found["network"] == "tiny_case:build"
    source = frames.load(f"folder:{tmp_path}/out/frames:source")
    assert {frames.image_size(frame.image) for frame in source.frames} == {(32, 64)}
    fog, night = (real_case.read(pair) for pair in found["pairs"])
    assert fog.miou.true == pytest.approx(1) and fog.miou.value < 0.2 and fog.source > fog.miou.value
    assert night.miou.true < 0.2 and "car" in night.failed
    assert found["of_the_classes_in_the_truth"]["fog"]["count"] <= 19
    text = (tmp_path / "out" / "real-case.md").read_text()
    assert text == real_case.table(found) and text.startswith("| mIoU % | fog (2 frames) | night (2 frames)")
    assert "| true | 100.0 |" in text
