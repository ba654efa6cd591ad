# ruff: noqa: F811 (fixtures are imported by name)
"""Families of diffusion models: which one a folder is of, and what holds for every one of them."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
import trees
from transferring import IDS, SIZE, config, grey_levels_apart, manifest, pictures, prior, source  # noqa: F401

from segshift import generators
from segshift.config import DiffusionConfig
from segshift.data.labels import CITYSCAPES
from segshift.generators import loading, stable_diffusion
from segshift.generators.base import Defaults
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage


def pipeline(folder: Path, name) -> DiffusionConfig:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return DiffusionConfig(model=str(folder), device="cpu")


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("StableDiffusionPipeline", stable_diffusion),
        ("StableDiffusionControlNetPipeline", stable_diffusion),
        ("StableDiffusionImg2ImgPipeline", stable_diffusion),
    ],
)
def test_a_family_is_chosen_by_the_folders_index(tmp_path, name, module):
    assert generators.family(pipeline(tmp_path / "m", name)) is module


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionUpscalePipeline",
        "StableDiffusion3Pipeline",
        "StableVideoDiffusionPipeline",
        "AudioLDM2Pipeline",
    ],
)
def test_another_kind_of_pipeline_is_refused_before_a_folder_is_made(tmp_path, config, name):
    model = pipeline(tmp_path / "m", name)
    with pytest.raises(InputError) as caught:
        stage.transfer(replace(config, diffusion=model), tmp_path / "out")
    assert f"is of a {name}: expected a text-to-image model of one of the families" in str(caught.value)
    assert all(f"{stem}Pipeline" in str(caught.value) for stem in generators.FAMILIES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [["my_pipeline", "MyPipeline"], None, 3])
def test_a_pipeline_that_brings_its_own_code_is_refused(tmp_path, name):
    with pytest.raises(
        InputError, match=r"names as `_class_name` .*code that comes with a model is never run"
    ):
        generators.family(pipeline(tmp_path / "m", name))


def test_a_folder_without_index_is_no_pipeline(tmp_path):
    with pytest.raises(InputError, match=r"no file .*model_index\.json: expected the folder of a diffusers"):
        generators.family(DiffusionConfig(model=str(tmp_path)))


def test_of_a_hub_name_the_index_alone_is_fetched(tmp_path, monkeypatch):
    asked = []
    pipeline(tmp_path, "StableDiffusionPipeline")

    def fetch(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    monkeypatch.setattr(loading.hub, "access", nullcontext)
    [name] = stable_diffusion.CARD.models
    assert generators.family(DiffusionConfig(model=name)) is stable_diffusion
    assert asked == [(name, loading.REVISIONS[name], ["model_index.json", "segshift.json"])]


def test_the_embedded_prior_is_a_stable_diffusion():
    assert generators.family(DiffusionConfig()) is stable_diffusion


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_part_with_code_of_its_own_is_refused(tmp_path, part):
    folder = tiny_diffusion.stable_diffusion(tmp_path / "m")
    path = folder / part / ("config.json" if part == "text_encoder" else "tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "mine.Mine"}}))
    with pytest.raises(InputError, match=rf"{path} asks for code of its own \(auto_map\)"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


def test_a_part_of_another_class_is_refused(tmp_path):
    folder = tiny_diffusion.stable_diffusion(tmp_path / "m")
    path = folder / "controlnet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "FluxControlNetModel"}))
    with pytest.raises(
        InputError, match="controlnet holds a FluxControlNetModel: expected a ControlNetModel"
    ):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


# ------------------------------------------------------------------------------------------- layout pictures


def test_edges_are_the_borders_of_classes_one_or_two_pixels_wide():
    label = np.zeros((64, 64), np.uint8)
    label[16:48, 16:48] = 13
    label[:, 56:] = 255
    drawn = zodi.edges(label, (64, 64))
    assert drawn.shape == (64, 64, 3) and set(np.unique(drawn)) == {0, 255}
    line = drawn[..., 0] > 0
    assert np.flatnonzero(line[32]).tolist() == [15, 47, 55]
    assert np.flatnonzero(line[:, 32]).tolist() == [15, 47]
    slope = np.tri(64, dtype=np.uint8)
    assert set((zodi.edges(slope, (64, 64))[:-1, :-1, 0] > 0).sum(1)[1:]) <= {1, 2}
    assert not zodi.edges(np.full((8, 8), 255, np.uint8), (64, 64)).any()


@pytest.mark.parametrize("place", ["", "controlnet"])
def test_segshift_json_says_that_the_controlnet_takes_edges(tmp_path, config, monkeypatch, place, caplog):
    folder = tiny_diffusion.stable_diffusion(tmp_path / "m")
    (folder / "segshift.json").write_text(json.dumps({"steps": 4, "short_side": 64}))
    (folder / place / "segshift.json").write_text(
        json.dumps({"steps": 4, "short_side": 64, "layout": "edges"})
    )
    seen, hint = [], stable_diffusion.StableDiffusion.hint
    monkeypatch.setattr(
        stable_diffusion.StableDiffusion, "hint", lambda self, p: (seen.append(p), hint(self, p))[1]
    )
    unknown = replace(CITYSCAPES, names=tuple(f"class {i}" for i in range(19)))  # edges need no colours
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    told = replace(config, diffusion=DiffusionConfig(model=str(folder), device="cpu"))
    stage.transfer_images(told, [image], [label], space=unknown)
    expected = zodi.edges(label, SIZE).transpose(2, 0, 1)
    assert np.array_equal((255 * seen[0][0]).round().numpy().astype(np.uint8), expected)
    assert not caplog.records
    with pytest.raises(InputError, match="--mode reference draws the layout in colours, and the ControlNet"):
        stage.transfer_images(replace(told, mode="reference"), [image], [label])
    out = stage.transfer(told, tmp_path / "out")
    assert {(m["settings"]["layout"], m["settings"]["palette"]) for m in manifest(out)} == {("edges", None)}


def test_a_layout_that_nobody_draws_is_refused(tmp_path):
    (tmp_path / "segshift.json").write_text('{"layout": "depth"}')
    with pytest.raises(InputError, match=r"segshift\.json.*layout.*colours.*edges"):
        loading.defaults(Defaults(), tmp_path)
