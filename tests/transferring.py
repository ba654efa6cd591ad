"""What the tests of image transfer share: a tiny model, a tiny source, and how results are compared.

Test modules import the fixtures by name.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_diffusion
import torch
import trees

from segshift import generators, runs
from segshift.config import DiffusionConfig, TransferConfig
from segshift.engine import making
from segshift.generators import loading, stable_diffusion

torch.set_num_threads(1)  # these networks are too small to share
SIZE = (64, 64)
IDS = (
    "aachen_000000_000019",
    "aachen_000001_000019",
    "bochum_000000_000313",
    "ulm_000000_000019",
    "ulm_000001_000019",
)


_loaded = {}


def load_once(monkeypatch) -> None:
    """The stage loads a folder's model only once: that takes as long as to transfer a few frames."""
    monkeypatch.setattr(making, "generators", SimpleNamespace(load=loaded))


def loaded(config: TransferConfig) -> generators.Generator | generators.DiffusionFamily:
    """The model, the same for the same files and options; to be left as it is."""
    town, place = config.diffusion.model == "town", Path(config.diffusion.model)
    files = sorted((loading.home(config.diffusion, {}, ()) if town else place).rglob("*.*"))
    if config.generator is not None or not files:
        return generators.load(config)
    key = repr((config.diffusion, config.control, [(str(file), file.stat().st_mtime_ns) for file in files]))
    if key not in _loaded:
        _loaded[key] = generators.load(config)
    return _loaded[key]


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    return tiny_diffusion.prior(tmp_path_factory.mktemp("models") / "prior")


@pytest.fixture(scope="session")
def model(prior) -> stable_diffusion.StableDiffusion:
    return stable_diffusion.load_model(DiffusionConfig(model=str(prior), device="cpu"))


@pytest.fixture
def source(tmp_path) -> Path:
    return trees.cityscapes(tmp_path / "cityscapes", IDS, SIZE)


@pytest.fixture
def config(source, prior, monkeypatch) -> TransferConfig:
    load_once(monkeypatch)
    where = DiffusionConfig(model=str(prior), device="cpu")
    return TransferConfig(source=f"cityscapes:{source}:train", batch_size=2, diffusion=where)


@pytest.fixture
def quick(source, prior, monkeypatch) -> TransferConfig:
    """The same in fewer batches and steps; to be imported as `config`."""
    load_once(monkeypatch)
    where = DiffusionConfig(model=str(prior), device="cpu")
    return TransferConfig(source=f"cityscapes:{source}:train", batch_size=3, steps=3, diffusion=where)


def pictures(out: Path) -> dict[str, bytes]:
    """Every picture under OUT, by its path there."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def manifest(out: Path, slug: str = "night") -> list[dict]:
    """Its lines but for the time they took."""
    return [line | {"seconds": None} for line in runs.read_lines(out / slug / "manifest.jsonl")]


def grey_levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
