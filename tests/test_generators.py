"""Generators: the noise formulas, ZoDi's walk over a family that knows the answer, and what users' own may do
wrong."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from test_transfer_gate import reference
from torch import Tensor
from transferring import IDS, SIZE, manifest, pictures

from segshift import runs
from segshift.config import DiffusionConfig, EstimateConfig, GateConfig, TransferConfig
from segshift.data.labels import CITYSCAPES
from segshift.generators import schedule
from segshift.generators.base import Defaults, DiffusionFamily, Record
from segshift.generators.schedule import Point, PredictionType
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage

# ------------------------------------------------------------------------------------------- noise formulas


def point(prediction: PredictionType, b: float) -> Point:
    return Point(1000 * b, 1 - b if prediction == "flow" else (1 - b * b) ** 0.5, b)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_every_prediction_gives_back_the_noise_and_the_image_it_stands_for(prediction):
    x0, n = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for b in (0.1, 0.5, 0.95):
        p = point(prediction, b)
        o = {"epsilon": n, "v_prediction": p.a * n - p.b * x0, "flow": n - x0}[prediction]
        eps, clean = schedule.eps_and_x0(prediction, o, schedule.noised(x0, n, p), p)
        assert torch.allclose(eps, n, atol=1e-5) and torch.allclose(clean, x0, atol=1e-4)


def test_on_a_sphere_the_step_is_ddims():
    for eta in (0.0, 0.5, 1.0):
        for now, then in ((0.1, 0.3), (0.5, 0.9), (0.99, 1.0)):
            here, there = (Point(0, abar**0.5, (1 - abar) ** 0.5) for abar in (now, then))
            ddim = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
            assert schedule.sigma(here, there, eta) == pytest.approx(ddim, abs=1e-12)
            one = torch.ones(1, dtype=torch.float64)
            z = schedule.step(0 * one, one, there, ddim, None)
            assert float(z) == pytest.approx((1 - then - ddim**2) ** 0.5, abs=1e-8)


class Oracle(DiffusionFamily):
    """Knows the image that every latent comes from."""

    name, hashes, defaults, most_steps = "oracle", {}, Defaults(), 999
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction: PredictionType, z0: Tensor) -> None:
        self.prediction, self.z0 = prediction, z0

    def grid(self, steps: int, size: tuple[int, int]) -> list[Point]:
        return [point(self.prediction, i / steps * 0.98) for i in range(steps, -1, -1)]

    def point(self, share: float, size: tuple[int, int]) -> Point:
        return point(self.prediction, 0.98 * share)

    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        z0 = self.z0.repeat(len(z) // len(self.z0), 1, 1, 1)
        n = (z - point.a * z0) / point.b
        return {"epsilon": n, "v_prediction": point.a * n - point.b * z0, "flow": n - z0}[self.prediction]

    encode = decode = embed = hint = None  # the walk needs none of them


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("inversion", ["stochastic", "none"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_walk_over_an_oracle_returns_the_image(prediction, inversion, eta):
    z0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    family, text = Oracle(prediction, z0), {"text": torch.zeros(1, 1, 1)}
    sampling = zodi.Sampling(0.8, steps=10, guidance=7.5, eta=eta, inversion=inversion)
    noises = zodi.published_noise(3, z0.shape)
    assert len(list(pairwise(zodi.walk(family, z0, sampling)))) == sampling.walked == 8
    start = zodi.invert(family, z0, text, None, sampling, noises)
    assert (start - z0).abs().max() > 0.5
    assert torch.allclose(zodi.denoise(family, start, text, text, None, sampling, noises), z0, atol=1e-4)


def test_guidance_in_an_interval_saves_the_passes_outside_it_and_changes_nothing_inside():
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text, start = {"text": torch.zeros(1, 1, 1)}, torch.randn(1, 4, 8, 8)

    class Counting(Oracle):
        def output(self, z, point, *args):
            passes.append((point.b / point.a, len(z)))
            return (
                super().output(z, point, *args)
                + len(passes) * (torch.arange(len(z)) % 2)[:, None, None, None]
            )

    def walked(guided, negative=True):
        passes.clear()
        model = Counting("epsilon", z0)
        model.reads_negative = negative
        sampling = zodi.Sampling(1.0, steps=10, guidance=2.0, eta=0.0, guided=guided)
        return zodi.denoise(model, start, text, text, None, sampling, None)

    passes: list[tuple[float, int]] = []
    everywhere = walked(None)
    assert {rows for _, rows in passes} == {2}
    assert torch.equal(walked((0, 1e9)), everywhere) and torch.equal(walked(zodi.GUIDED, False), everywhere)
    assert not torch.equal(walked((0.3, 1.0)), everywhere)
    assert [rows for _, rows in passes] == [2 if 0.3 < ratio <= 1 else 1 for ratio, _ in passes]
    assert {rows for _, rows in passes} == {1, 2}


# ------------------------------------------------------------------------------------------- users' own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module `mine` and gives the configuration of a transfer by `mine:build`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = trees.cityscapes(tmp_path / "cityscapes", IDS, SIZE)

    def write(body: str, name: str = "mine:build", **more) -> TransferConfig:
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        Path("mine.py").write_text(f"import numpy as np\nimport torch\n{body}\n")
        sys.path_importer_cache.clear()
        return TransferConfig(
            **{"source": f"cityscapes:{source}:train", "batch_size": 3, "generator": name, **more}
        )

    yield write
    sys.modules.pop("mine", None)


INVERTED = "def build():\n    return lambda image, layout, domain, seed: 255 - image"


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        (INVERTED, "mine.py:build", "'mine.py:build' is no <module>:<factory>: write it with dots"),
        (INVERTED, "nowhere:build", r"cannot import generator 'nowhere:build' \(ModuleNotFoundError"),
        (INVERTED, "mine:make", r"cannot import generator 'mine:make' \(AttributeError"),
        (
            "def build(:",
            "mine:build",
            r"cannot import generator 'mine:build' \(SyntaxError: .* in .*mine\.py, line 3",
        ),
        (
            "def build():\n    return {}['weights']",
            "mine:build",
            r"fails when it is built \(KeyError: .*mine\.py, line 4",
        ),
        ("def build():\n    pass", "mine:build", "made a NoneType: make build.. return what is called as"),
        (INVERTED, "sdxl", "--generator is 'sdxl': expected diffusion, editor or <module>:<factory>"),
        (INVERTED, "custom", "--generator is 'custom': expected diffusion, editor or"),
    ],
)
def test_what_is_no_generator_is_refused_and_leaves_no_folder(own, tmp_path, body, name, message):
    with pytest.raises(InputError, match=message):
        stage.transfer(own(body, name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "1 / 0",
            r"generator 'mine:build' fails on bochum.* \(ZeroDivisionError: division by zero in .*mine",
        ),
        ("None", "made a NoneType of bochum.*: expected a NumPy array of uint8 .64, 64, 3."),
        ("image[:32]", r"made an array of uint8 \[32, 64, 3\]"),
        ("image / np.float32(0)", r"made an array of float32 \[64, 64, 3\], not finite, of bochum"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_frame_that_fails_is_listed_the_others_finish_and_it_is_made_when_mended(
    own, tmp_path, expression, message
):
    marked = "int(image[0, 0, 0])"
    whole = stage.transfer(own(INVERTED, to=("night", "fog")), tmp_path / "whole")
    data = stage.frames.load(own(INVERTED).source)
    bad = next(frame for frame in data.frames if frame.id.startswith("bochum"))
    first = int(stage.frames.read_image(bad.image)[0, 0, 0])
    body = (
        "def one(image, layout, domain, seed):\n"
        f"    if {marked} == {first} and domain.slug == 'fog':\n"
        f"        return {expression}\n"
        "    return 255 - image\n"
        "def build():\n    return one"
    )
    out = stage.transfer(own(body, to=("night", "fog")), tmp_path / "out")
    failed = runs.failures(out)
    assert {line["id"] for line in failed} >= {bad.id} and all(
        "mine:build" in line["error"] for line in failed
    )
    assert not runs.failures(out / "night") and runs.failures(out / "fog") == failed
    [error] = [line["error"] for line in failed if line["id"] == bad.id]
    assert re.search(message, error) and len(error) < 400
    made = {path for path in pictures(out) if "leftImg8bit" in path}
    assert len(made) == 2 * len(IDS) - len(failed)
    assert pictures(out).items() <= pictures(whole).items()


def test_a_transfer_in_memory_raises_what_a_frame_fails_of(own):
    image = trees.picture("a", SIZE)
    (made,) = stage.transfer_images(own(INVERTED), [image], None)["night"]
    assert np.array_equal(made, 255 - image)
    with pytest.raises(InputError, match="fails on 0"):
        stage.transfer_images(own("def build():\n    return lambda *a: 1 / 0"), [image], None)


def test_images_without_labels_are_transferred_and_layouts_come_where_asked_for(own, tmp_path):
    bare = trees.cityscapes(tmp_path / "bare", IDS[:2], SIZE, split="test", labelled=False)
    config = own(INVERTED, source=f"cityscapes:{bare}:test")
    assert len(manifest(stage.transfer(config, tmp_path / "out"))) == 2
    asking = (
        "class Asking:\n    needs_layouts = True\n    def __call__(self, image, layout, domain, seed):\n"
        "        assert layout.shape == image.shape[:2] and layout.dtype == np.uint8\n"
        "        return np.repeat(layout[..., None], 3, 2)\n"
        "build = Asking"
    )
    with pytest.raises(InputError, match=r"no frame of .* has a label"):
        stage.transfer(own(asking, source=f"cityscapes:{bare}:test"), tmp_path / "asked")
    config = own(asking, short_side=32, output_size="source")
    out = stage.transfer(config, tmp_path / "asked")
    assert manifest(out)[0]["settings"] == {"working_size": [32, 32], "output_size": "source"}
    assert not runs.failures(out)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "reference"},
        {"inversion": "none"},
        {"control": False},
        {"steps": 4},
        {"guidance": 2.0},
        {"eta": 0.0},
        {"control_strength": 0.5},
        {"speed": "fast"},
        {"diffusion": DiffusionConfig(dtype="float16")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_of_the_diffusion_model_are_refused_beside_ones_own_generator(change):
    [name] = change
    with pytest.raises(
        InputError, match=f"--{name.replace('_', '-')} is for a diffusion model, and --generator a:b"
    ):
        TransferConfig(source="cityscapes:/data", generator="a:b", **change)
    TransferConfig(source="cityscapes:/data", **change)


def test_memory_that_runs_out_in_ones_own_generator_halves_the_batch(own, tmp_path):
    body = (
        "calls = []\n"
        "def one(image, layout, domain, seed):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "    return 255 - image\n"
        "def build():\n    return one"
    )
    out = stage.transfer(own(body), tmp_path / "out")
    assert len(manifest(out)) == len(IDS) and not runs.failures(out)


def test_the_gate_judges_and_redraws_ones_own_generator(own, tmp_path):
    config = own("def build():\n    return lambda image, layout, domain, seed: 255 - image")
    run = reference(tmp_path / "run", config.source)
    gated = replace(config, gate=GateConfig(str(run)))
    lines = manifest(stage.transfer(gated, tmp_path / "out"))
    assert len(lines) == len(IDS) and all(line["gate"]["movement"] is None for line in lines)
    assert lines[0]["gate"]["draws"][0]["seed"] == 42 and lines[0]["weights"].keys() == {"module"}
    with pytest.raises(
        InputError, match=r"--gate\.require-movement needs a diffusion model, and mine:build is none"
    ):
        stage.transfer(replace(gated, gate=replace(gated.gate, require_movement=True)), tmp_path / "moved")


def test_the_estimate_takes_ones_own_generator(own, tmp_path):
    from segshift.stages.estimate import estimate

    ids = tuple(f"ulm_{i:06d}_000019" for i in range(10))
    root = trees.cityscapes(tmp_path / "val", ids, SIZE, split="val")
    told = own(INVERTED)
    run = reference(tmp_path / "run", told.source, CITYSCAPES)
    config = EstimateConfig(
        run=str(run),
        source=f"cityscapes:{root}:val",
        draws=1,
        resamples=100,
        generator="mine:build",
        checkpoint="best",
        batch_size=5,
    )
    out = estimate(config, tmp_path / "estimate")
    night = runs.read_json(out / "estimate.json")["domains"]["night"]
    assert (
        night["target_draws"][0]["model"] == "mine:build" and night["corrected"]["miou"]["value"] is not None
    )
    with pytest.raises(InputError, match="--steps is for a diffusion model"):
        estimate(replace(config, steps=3), tmp_path / "other")
    assert not (tmp_path / "other").exists()
