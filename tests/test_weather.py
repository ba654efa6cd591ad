"""The weather filter of benchmarks/, a custom generator."""

from pathlib import Path

import numpy as np
import pytest
import trees
from transferring import IDS, manifest, pictures

pytest.importorskip(
    "albumentations", reason="albumentations is not installed: pip install 'segshift[benchmarks]'"
)

import weather

from segshift.commands import run_command
from segshift.generators import Domain
from segshift.methods.zodi.transfer import DOMAINS, QUALITY

SIZE = (64, 96)


def drawn(name: str, image: np.ndarray, seed: int) -> np.ndarray:
    prompt, strength = DOMAINS.get(name, (name, 0.75))
    return weather.weather(image, None, Domain(name, prompt + QUALITY, strength), seed)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_published_domain_has_its_weather_by_seed(name):
    image = trees.picture("a", SIZE)
    first = drawn(name, image, 1)
    assert first.dtype == np.uint8 and first.shape == image.shape
    assert np.array_equal(first, drawn(name, image, 1)) and np.abs(first.astype(int) - image).mean() > 3
    assert np.array_equal(first, drawn(name, image, 2)) == (name == "game")


def test_night_is_dark_and_fair_weather_is_the_image_itself():
    image = trees.picture("a", SIZE)
    assert drawn("night", image, 0).mean() < 0.5 * image.mean()
    assert np.array_equal(drawn("driving in daylight", image, 0), image)
    assert np.array_equal(drawn("driving at night in snow", image, 0), drawn("in snow at night", image, 0))
    with pytest.raises(
        ValueError, match="no weather in 'a locust swarm, best quality': name some of fog, rain"
    ):
        drawn("a locust swarm", image, 0)


def test_it_transfers_from_the_command_line_in_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(weather.__file__).parent)
    source = trees.cityscapes(tmp_path / "cityscapes", IDS, SIZE)
    options = [
        "--source",
        f"cityscapes:{source}:train",
        "--to",
        "fog",
        "rain",
        "snow",
        "--generator",
        "weather:build",
    ]
    assert run_command(["transfer", str(tmp_path / "whole"), *options]) == 0
    for shard in ("1/2", "0/2"):
        parts = ["transfer", str(tmp_path / "parts"), *options, "--shard", shard, "--batch-size", "1"]
        assert run_command(parts) == 0
    assert pictures(tmp_path / "parts") == pictures(tmp_path / "whole")
    for slug in ("fog", "rain", "snow"):
        assert manifest(tmp_path / "parts", slug) == manifest(tmp_path / "whole", slug)
        assert len(manifest(tmp_path / "whole", slug)) == len(IDS)
