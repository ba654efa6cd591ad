# ruff: noqa: F811 (fixtures are imported by name)
"""Families of diffusion models: which one a folder is of, and what holds for every one of them."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_diffusion
import torch
import torchvision
import transferring
import trees
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    Cosmos2_5_TransferPipeline,
    DDIMScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    QwenImageControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from transferring import IDS, SIZE, config, grey_levels_apart, manifest, pictures, prior, source  # noqa: F401

from segshift import generators, runs
from segshift.__main__ import main
from segshift.config import DiffusionConfig, TransferConfig
from segshift.data.labels import CITYSCAPES
from segshift.generators import (
    cosmos_transfer,
    flow,
    flux,
    loading,
    offload,
    qwen_image,
    schedule,
    stable_diffusion,
    stable_diffusion_xl,
)
from segshift.generators.base import STRENGTHS, Defaults
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
        ("StableDiffusionXLPipeline", stable_diffusion_xl),
        ("StableDiffusionXLImg2ImgPipeline", stable_diffusion_xl),
        ("StableDiffusionXLControlNetPipeline", stable_diffusion_xl),
        ("StableDiffusionXLControlNetUnionPipeline", stable_diffusion_xl),
        ("FluxPipeline", flux),
        ("FluxControlNetPipeline", flux),
        ("FluxImg2ImgPipeline", flux),
        ("QwenImagePipeline", qwen_image),
        ("QwenImageControlNetPipeline", qwen_image),
        ("Cosmos2_5_TransferPipeline", cosmos_transfer),
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
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusion3Pipeline",
        "FluxFillPipeline",
        "FluxKontextPipeline",
        "FluxControlPipeline",
        "Flux2Pipeline",
        "QwenImageEditPipeline",
        "QwenImageLayeredPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "CosmosVideoToWorldPipeline",
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


# ------------------------------------------------------------------------------- what holds for every one

MODELS = {
    "StableDiffusion": tiny_diffusion.stable_diffusion,
    "StableDiffusionXL": tiny_diffusion.stable_diffusion_xl,
    "StableDiffusionXL of a union": lambda folder: tiny_diffusion.stable_diffusion_xl(
        folder, tiny_diffusion.union
    ),
    "QwenImage": tiny_diffusion.qwen_image,
    "Cosmos2_5_Transfer": tiny_diffusion.cosmos_transfer,
    "Flux": tiny_diffusion.flux,
    "Flux of a union": lambda folder: tiny_diffusion.flux(folder, num_mode=4),
    "Flux without guidance": lambda folder: tiny_diffusion.flux(folder, guidance=False),
    "Flux of pictures": lambda folder: tiny_diffusion.flux(
        folder, conditioning_embedding_channels=4, patch_size=2
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def home(request, tmp_path_factory) -> Path:
    """The folder of a tiny model of each family."""
    made = MODELS[request.param](tmp_path_factory.mktemp("models") / "m")
    (made / "segshift.json").write_text(json.dumps({"steps": 4, "short_side": 64}))
    return made


@pytest.fixture
def family_config(home, config):
    return replace(config, diffusion=DiffusionConfig(model=str(home), device="cpu"))


@pytest.fixture(scope="module")
def loaded(home):
    """The model of `home`, for tests that leave it as it is: to load one takes longer than most of them."""
    return transferring.loaded(
        TransferConfig(source="none", diffusion=DiffusionConfig(model=str(home), device="cpu"))
    )


def test_every_family_has_a_tiny_model():
    assert {name.split()[0] for name in MODELS} == generators.FAMILIES.keys()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_walk_over_an_oracle_returns_the_image(loaded, monkeypatch, eta):
    model = loaded
    z0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def oracle(z, point, text, hint, control_strength):
        x0 = z0.repeat(len(z) // 2, 1, 1, 1)
        n = (z - point.a * x0) / point.b
        return n - x0 if model.prediction == "flow" else n

    grid = model.grid  # Stable Diffusion's ends at abar_0, and here at no noise at all
    monkeypatch.setattr(
        model, "grid", lambda steps, size: [*grid(steps, size)[:-1], schedule.Point(0, 1.0, 0.0)]
    )
    monkeypatch.setattr(model, "output", oracle)
    text = model.embed(["night"])
    for strength in model.card.strengths.values():
        sampling = zodi.Sampling(strength, steps=20, guidance=7.5, eta=eta)
        noises = zodi.published_noise(3, z0.shape)
        start = zodi.invert(model, z0, text, None, sampling, noises)
        assert (start - z0).abs().max() > 0.5
        end = zodi.denoise(model, start, text, text, None, sampling, noises)
        assert torch.allclose(end, z0, atol=1e-5)


def test_default_strengths_have_the_noise_to_signal_ratio_of_stable_diffusion(loaded):
    model, betas = loaded, np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    assert model.card.strengths.keys() == STRENGTHS.keys()
    for name, strength in STRENGTHS.items():
        published = abar[int(1000 * strength)]
        for size in ((64, 128), (96, 192), (16, 16)):
            point = model.point(model.share(model.card.strengths[name], size), size)
            assert point.b / point.a == pytest.approx((1 / published - 1) ** 0.5, rel=0.02)


def test_text_layout_and_strength_of_the_layout_act(family_config, loaded):
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)

    def drawn(**more):
        told = replace(family_config, **more)
        model = loaded if told.control else None
        [pictures] = stage.transfer_images(told, [image], [label], model=model).values()
        return pictures[0]

    plain = drawn()
    for more in ({"control": False}, {"control_strength": 0.5}, {"to": ("fog",), "strength": 0.9}):
        assert grey_levels_apart(plain, drawn(**more)) > 3


def test_a_picture_does_not_depend_on_its_neighbours_and_hardly_on_the_batch_size(family_config, loaded):
    images = [trees.picture(id, SIZE) for id in IDS[:4]]
    labels = [trees.train_ids(id, SIZE) for id in IDS[:4]]

    def made(order, **more):
        ids, told = [IDS[i] for i in order], replace(family_config, **more)
        pictures = stage.transfer_images(
            told, [images[i] for i in order], [labels[i] for i in order], ids=ids, model=loaded
        )["night"]
        return dict(zip(ids, pictures, strict=True))

    whole, turned, single = made([0, 1, 2, 3]), made([3, 1, 0, 2]), made([2, 0], batch_size=1)
    assert all(np.array_equal(whole[id], turned[id]) for id in whole)
    assert all(grey_levels_apart(whole[id], single[id]) <= 1 for id in single)


def test_a_tree_is_written_resumed_and_read_by_torchvision(family_config, loaded, tmp_path, monkeypatch):
    whole = stage.transfer(family_config, tmp_path / "whole")
    read = torchvision.datasets.Cityscapes(str(whole / "night"), split="train", target_type="semantic")
    assert len(read) == len(IDS) and read[0][0].size == read[0][1].size == SIZE
    decode, calls = type(loaded).decode, []

    def killed(model, z):
        calls.append(len(z))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(model, z)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(loaded), "decode", killed)
        stage.transfer(family_config, tmp_path / "out")
    assert 0 < len(pictures(tmp_path / "out")) < len(pictures(whole))
    out = stage.transfer(family_config, tmp_path / "out")
    assert pictures(out) == pictures(whole) and manifest(out) == manifest(whole)
    weights = manifest(out)[0]["weights"]
    assert weights.keys() == {*loaded.parts, "controlnet"}


def test_out_of_memory_halves_the_batch(family_config, loaded, tmp_path, monkeypatch):
    kind = type(loaded)
    encode = kind.encode

    def small(model, images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, images)

    monkeypatch.setattr(kind, "encode", small)
    out = stage.transfer(family_config, tmp_path / "out")
    assert not runs.failures(out) and len(manifest(out)) == len(IDS)


def test_fast_leaves_guidance_out_where_a_family_has_a_negative_prompt(family_config, loaded):
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    made = {}
    for speed in ("exact", "fast"):
        told = replace(family_config, speed=speed, guidance=7.0, strength=0.99, steps=10)
        [made[speed]] = stage.transfer_images(told, [image], [label], model=loaded)["night"]
    assert np.array_equal(made["exact"], made["fast"]) != loaded.reads_negative


@pytest.mark.parametrize("way", ["parts", "layers"])
def test_weights_that_wait_on_the_cpu_change_no_picture(family_config, loaded, way):
    images = [trees.picture(id, SIZE) for id in IDS[:2]]
    labels = [trees.train_ids(id, SIZE) for id in IDS[:2]]
    waiting = replace(family_config, diffusion=replace(family_config.diffusion, offload=way))
    ours = stage.transfer_images(family_config, images, labels, model=loaded)["night"]
    theirs = stage.transfer_images(waiting, images, labels)["night"]
    assert np.array_equal(ours, theirs)


@torch.inference_mode()
def test_every_tensor_is_made_where_the_networks_compute(family_config):
    model = generators.load(family_config)
    modules = [getattr(model, part) for part in (*model.parts, "controlnet", "embed_layout")]
    for module in modules:
        if module is not None:
            module.to("meta")  # which refuses to compute with what lies on the CPU
    model._where = torch.device("meta")
    text = model.embed(["night", "fog"])
    picture = torch.zeros(2, 3, 64, 64, device="meta")
    z, hint = model.encode(picture), model.hint(picture)
    out = model.output(z, model.point(0.5, (8, 8)), text, hint, 1.0)
    assert {t.device.type for t in (*text.values(), *hint.values(), z, out)} == {"meta"}
    assert out.shape == z.shape


@pytest.mark.parametrize("part", ["walks", "vae", "text_encoder", "controlnet"])
def test_pickled_weights_are_refused_and_missing_parts_named(home, tmp_path, config, part):
    folder = Path(shutil.copytree(home, tmp_path / "m"))
    told = replace(config, diffusion=DiffusionConfig(model=str(folder), device="cpu"))
    if part == "walks":
        part = "unet" if (folder / "unet").exists() else "transformer"
    for file in (folder / part).glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    for file in (folder / part).glob("*.index.json"):
        file.unlink()
    with pytest.raises(InputError, match=rf"{part} holds .*\.bin.*safetensors only"):
        generators.load(told)
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=rf"no folder {folder / part}: "):
        generators.load(told)


def test_parts_are_on_the_gpu_only_while_they_are_used(family_config, monkeypatch):
    model = generators.load(family_config)
    where = {part: "cpu" for part in (*model.parts, "controlnet")}
    parts = {part: getattr(model, part) for part in where}
    names = {id(module): part for part, module in parts.items()}
    for part in parts.values():
        part.to = lambda device, part=part: where.update({names[id(part)]: str(device)})
    offload.place("m", parts, torch.device("cpu:0"), "parts")
    resting = {part: "cpu" for part in where} | {"vae": "cpu:0"}
    assert where == resting
    text = model.embed(["night"])
    there = {part for part, device in where.items() if device != "cpu"}
    assert len(there) == 2 and there - {"vae"} <= {"text_encoder", "text_encoder_2"}
    z, hint = torch.zeros(1, 4, 8, 8), model.hint(torch.zeros(1, 3, 64, 64))
    model.output(z, model.point(0.5, (8, 8)), text, hint, 1.0)
    assert where == resting | {model.walks: "cpu:0", "controlnet": "cpu:0"}


def test_a_model_larger_than_the_gpu_is_refused_with_what_would_fit(home, monkeypatch):
    told = DiffusionConfig(model=str(home), device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(offload, "room", lambda device: 1000)
        with pytest.raises(InputError) as caught:
            generators.family(told).load_model(told)
    said = str(caught.value)
    assert f"the weights of {home} take 0.0 GiB on cpu, which has 0.0 GiB free: take" in said
    assert "--diffusion.offload parts (0.0 GiB), --diffusion.offload layers (0.0 GiB) or a smaller" in said

    def full(module, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    modules = {"vae": torch.nn.Linear(1, 1), "unet": torch.nn.Linear(1, 1)}
    monkeypatch.setattr(torch.nn.Module, "to", full)  # although nobody could tell before
    with pytest.raises(InputError, match=r"on cpu, which has less free: take a smaller --diffusion\.dtype"):
        offload.place("m", modules, torch.device("cpu"), "layers")


def test_what_is_on_the_gpu_at_once():
    sizes = {"vae": 1, "transformer": 20, "text_encoder": 2, "text_encoder_2": 30, "controlnet": 5}
    assert [offload.held(sizes, way) for way in offload.WAYS] == [58, 31, 1]
    assert offload.held(sizes | {"transformer": 40}, "parts") == 46


def test_where_weights_wait_is_no_part_of_a_run(config, tmp_path):
    out = stage.transfer(config, tmp_path / "out")
    made = manifest(out)
    next((out / "night").rglob("*leftImg8bit.png")).unlink()
    waiting = replace(config, diffusion=replace(config.diffusion, offload="parts"))
    assert manifest(stage.transfer(waiting, out)) == made


# ------------------------------------------------------------------------------------------- segshift models


def test_models_lists_every_family_with_what_it_takes(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    for stem in generators.FAMILIES:
        assert f"({stem}Pipeline)" in said
    families = (stable_diffusion, stable_diffusion_xl, flux, qwen_image, cosmos_transfer)
    for card in (family.CARD for family in families):
        told = card.title, *card.models, *card.controlnets, card.layouts, card.licence
        for text in told:
            assert text in said
    assert "2.66 GiB in float16 or bfloat16, 5.33 GiB in float32" in said  # 1.43 billion


def test_models_computes_the_memory_of_a_folder_from_its_configurations(home, loaded, capsys):
    model = loaded
    parts = [getattr(model, part) for part in (*model.parts, "controlnet", "embed_layout")]
    count = sum(weight.numel() for part in parts if part for weight in part.parameters())
    assert main(["models", str(home)]) == 0
    said = capsys.readouterr().out
    assert f"{2 * count / 2**20:.3g} MiB in float16 or bfloat16" in said
    assert (f"colours ({model.defaults.palette})" if model.defaults.layout == "colours" else "edges") in said
    assert all(part in said for part in (*model.parts, "controlnet"))
    assert all(f"--diffusion.offload {way} " in said for way in offload.WAYS)


def test_models_fetches_no_weights(home, monkeypatch):
    asked = []

    def fetch(name, *, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(home)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    monkeypatch.setattr(loading.hub, "access", nullcontext)
    assert "MiB in float16" in generators.describe(DiffusionConfig(model="some/model"))
    assert {"model_index.json", "vae/config.json", "text_encoder/config.json"} <= set(asked)
    assert all(pattern.endswith(".json") for pattern in asked)


def test_models_refuses_what_it_cannot_read(tmp_path, capsys):
    folder = tiny_diffusion.stable_diffusion(tmp_path / "m")
    (folder / "unet" / "config.json").unlink()
    assert main(["models", str(folder)]) == 2 and "unet/config.json" in capsys.readouterr().err
    pipeline(folder, "AudioLDM2Pipeline")
    assert main(["models", str(folder)]) == 2 and "StableDiffusionXLPipeline" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- Stable Diffusion XL


@pytest.mark.parametrize("union", [False, True])
@torch.inference_mode()
def test_text_sizes_and_layout_act_as_in_diffusers(tmp_path, union):
    control = tiny_diffusion.union if union else tiny_diffusion.controlnet
    folder = tiny_diffusion.stable_diffusion_xl(tmp_path / "m", control)
    model = stable_diffusion_xl.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    kinds = (
        (StableDiffusionXLControlNetUnionPipeline, ControlNetUnionModel)
        if union
        else (StableDiffusionXLControlNetPipeline, ControlNetModel)
    )
    theirs = kinds[0](
        vae=model.vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        unet=model.unet,
        controlnet=kinds[1].from_pretrained(folder / "controlnet"),
        scheduler=DDIMScheduler.from_config(model.scheduler.config, clip_sample=False),
        add_watermarker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    assert type(model.controlnet) is kinds[1]
    z = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    given = {"control_image": [picture], "control_mode": [5]} if union else {"image": picture}
    expected = theirs(
        "fog",
        negative_prompt="bad",
        latents=z,
        num_inference_steps=4,
        guidance_scale=5.0,
        height=64,
        width=128,
        output_type="latent",
        **given,
    ).images
    ours = zodi.denoise(
        model,
        z,
        model.embed(["fog"]),
        model.embed(["bad"]),
        model.hint(picture),
        zodi.Sampling(1, steps=4, guidance=5.0, eta=0),
        None,
    )
    assert torch.allclose(ours, expected, atol=1e-4), (ours - expected).abs().max()


def test_a_union_is_told_what_it_is_given(tmp_path):
    folder = tiny_diffusion.stable_diffusion_xl(tmp_path / "m", tiny_diffusion.union)
    path = folder / "controlnet" / "config.json"  # as published ones may call it
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "ControlNetModel"}))
    for layout, index in (("colours", 5), ("edges", 3)):
        (folder / "controlnet" / "segshift.json").write_text(json.dumps({"layout": layout}))
        model = stable_diffusion_xl.load_model(DiffusionConfig(model=str(folder), device="cpu"))
        told = model._layout(torch.zeros(2, 8, 8, 8))
        assert told["control_type"].argmax(1).tolist() == [index] * 2 and told["control_type_idx"] == [index]
        assert told["control_type"].sum() == 2


def test_half_precision_keeps_a_vae_whole_that_overflows(tmp_path):
    folder = tiny_diffusion.stable_diffusion_xl(tmp_path / "m")
    told = DiffusionConfig(model=str(folder), dtype="float16", device="cpu")
    model = stable_diffusion_xl.load_model(told)
    assert (model.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert model.decode(model.encode(torch.rand(1, 3, 64, 64))).shape == (1, 3, 64, 64)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": False}))
    assert stable_diffusion_xl.load_model(told).vae.dtype == torch.float16


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path):
    folder = tiny_diffusion.stable_diffusion_xl(tmp_path / "m")
    other = tiny_diffusion.stable_diffusion(tmp_path / "sd")
    told = DiffusionConfig(model=str(folder), device="cpu")
    with pytest.raises(InputError, match=r"ControlNet reads text of width 64 and the UNet of .* 128"):
        stable_diffusion_xl.load_model(replace(told, controlnet=str(other / "controlnet")))
    plain = tiny_diffusion.controlnet(tiny_diffusion.unet(width=128))
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"reads no summary of the prompt and the UNet of .* a summary of 16"
    ):
        stable_diffusion_xl.load_model(replace(told, controlnet=str(tmp_path / "plain")))
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(InputError, match=r"cannot read .*tokenizer_2"):
        stable_diffusion_xl.load_model(told)
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(InputError, match=r"no folder .*text_encoder_2: a model of Stable Diffusion XL has"):
        stable_diffusion_xl.load_model(told)
    more = {"num_hidden_layers": 2, "projection_dim": 32}
    tiny_diffusion.text(folder, tiny_diffusion.CLIPTextModelWithProjection, "_2", **more)
    with pytest.raises(
        InputError, match=r"reads a summary of 16 and its text_encoder_2 writes a summary of 32"
    ):
        stable_diffusion_xl.load_model(told)


# --------------------------------------------------------------------------------------------------- FLUX.1


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("Flux")])
@torch.inference_mode()
def test_flux_is_called_as_in_diffusers(tmp_path, name):
    folder = MODELS[name](tmp_path / "m")
    model = flux.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    theirs = FluxControlNetPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        transformer=model.transformer,
        controlnet=FluxControlNetModel.from_pretrained(folder / "controlnet"),
        scheduler=model.scheduler,
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.vae.encode = tiny_diffusion.mode_of(model.vae)
    z = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    expected = theirs(
        "fog",
        latents=flow.pack(z),
        num_inference_steps=4,
        guidance_scale=3.5,
        height=64,
        width=128,
        control_image=2 * picture - 1,
        control_mode=0 if model.controlnet.union else None,
        max_sequence_length=48,
        output_type="latent",
    ).images
    del model.vae.encode
    ours = zodi.denoise(
        model,
        z,
        model.embed(["fog"]),
        model.embed(["bad"]),
        model.hint(picture),
        zodi.Sampling(1, steps=4, guidance=1.0 if model.reads_negative else 3.5, eta=0),
        None,
    )
    assert torch.allclose(flow.pack(ours), expected, atol=1e-4), (flow.pack(ours) - expected).abs().max()


def test_packs_keep_every_latent():
    z = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = flow.pack(z)
    assert packed.shape == (2, 6, 12) and torch.equal(flow.unpack(packed, (4, 6)), z)
    assert torch.equal(packed[0, 1], z[0, :, :2, 2:4].flatten())


def test_the_grid_and_the_noise_of_flux_depend_on_the_size_and_a_strength_does_not(tmp_path):
    model = flux.load_model(DiffusionConfig(model=str(tiny_diffusion.flux(tmp_path / "m")), device="cpu"))
    small, large = ((point.b for point in model.grid(4, size)) for size in ((64, 64), (128, 128)))
    assert next(small) == next(large) == 1
    assert all(a < b for a, b in zip(list(small)[:-1], list(large)[:-1], strict=True))
    assert model.grid(4, (64, 64))[-1] == (0, 1, 0)
    starts = [model.point(model.share(0.5, size), size).b for size in ((64, 64), (128, 128), (16, 32))]
    assert starts == pytest.approx([starts[0]] * 3) and model.share(0.5, (256, 256)) < 0.5
    assert model.share(1.0, (16, 16)) == 1


def test_a_strength_that_walks_no_step_at_a_frames_size_is_told(tmp_path, config):
    folder = tiny_diffusion.flux(tmp_path / "m")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_shift": 3.0}))
    (folder / "segshift.json").write_text(json.dumps({"steps": 4, "short_side": 64}))
    told = replace(config, diffusion=DiffusionConfig(model=str(folder), device="cpu"), strength=0.3)
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    with pytest.raises(
        InputError, match=r"strength 0\.3 walks none of 4 steps for a picture of 64x64: give a"
    ):
        stage.transfer_images(told, [image], [label])


def test_guidance_is_an_input_of_flux_and_its_manifest_has_no_negative_prompt(tmp_path, config):
    folder = tiny_diffusion.flux(tmp_path / "m")
    (folder / "segshift.json").write_text(json.dumps({"steps": 4, "short_side": 64}))
    told = replace(config, diffusion=DiffusionConfig(model=str(folder), device="cpu"))
    model = generators.load(told)
    rows, run = [], model.transformer.forward
    model.transformer.forward = lambda hidden_states, guidance, **more: (
        rows.append((len(hidden_states), guidance.tolist())),
        run(hidden_states=hidden_states, guidance=guidance, **more),
    )[1]
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    stage.transfer_images(told, [image], [label], model=model)
    assert rows == [(1, [1.0])] + [(1, [3.5])] * (len(rows) - 1) and len(rows) > 2
    assert {line["negative_prompt"] for line in manifest(stage.transfer(told, tmp_path / "out"))} == {None}
    schnell = flux.load_model(
        DiffusionConfig(model=str(tiny_diffusion.flux(tmp_path / "s", guidance=False)), device="cpu")
    )
    assert (schnell.defaults.guidance, schnell.defaults.steps, schnell.reads_negative) == (1.0, 4, True)


def test_a_long_prompt_is_read_by_t5_and_only_its_beginning_by_clip(tmp_path):
    model = flux.load_model(DiffusionConfig(model=str(tiny_diffusion.flux(tmp_path / "m")), device="cpu"))
    long = "abcdefgh" * 5
    first, second = model.embed([long]), model.embed([long + "zz"])
    assert torch.equal(first["pooled"], second["pooled"]) and not torch.equal(first["text"], second["text"])
    with pytest.raises(InputError, match=r"has 50 tokens, and the text encoder of .* reads 48: shorten it"):
        model.embed(["abcdefgh" * 6])


def test_weights_in_several_files_are_read_hashed_and_asked_for(tmp_path, monkeypatch):
    folder = tiny_diffusion.flux(tmp_path / "m")
    whole = tiny_diffusion.flux(tmp_path / "whole", shards="10GB")
    told = DiffusionConfig(model=str(folder), device="cpu")
    model = flux.load_model(told)
    theirs = flux.load_model(replace(told, model=str(whole)))
    for part in ("transformer", "text_encoder_2"):
        ours, other = (getattr(m, part).state_dict() for m in (model, theirs))
        assert len(list((folder / part).glob("*.safetensors"))) > 1
        assert all(torch.equal(ours[key], other[key]) for key in ours) and ours.keys() == other.keys()
        assert model.hashes[part] != theirs.hashes[part] and len(model.hashes[part]) == 64
    asked = []

    def fetch(name, *, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder)

    with monkeypatch.context() as patched:
        patched.setattr(loading, "snapshot_download", fetch)
        patched.setattr(loading.hub, "access", nullcontext)
        flux.load_model(replace(told, model="some/model"))
    for file in (folder / "transformer").iterdir():
        assert any(fnmatch(f"transformer/{file.name}", pattern) for pattern in asked)
    lost = sorted((folder / "text_encoder_2").glob("*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(InputError, match=rf"index\.json lists {lost.name}, and .* holds no such file"):
        flux.load_model(told)


def test_parts_of_flux_that_do_not_fit_each_other_are_refused(tmp_path):
    folder = tiny_diffusion.flux(tmp_path / "m")
    told = DiffusionConfig(model=str(folder), device="cpu")
    for more, message in (
        (
            {"joint_attention_dim": 32},
            "the ControlNet has joint_attention_dim 32 and the transformer of .* 16",
        ),
        ({"attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}, "has attention_head_dim 16"),
        ({"pooled_projection_dim": 32}, "the controlnet reads a summary of 32 and the text_encoder .* 64"),
    ):
        other = tiny_diffusion.flux_controlnet(tiny_diffusion.flux_transformer(), **more)
        other.save_pretrained(tmp_path / "c")
        with pytest.raises(InputError, match=message):
            flux.load_model(replace(told, controlnet=str(tmp_path / "c")))
    union = tiny_diffusion.flux(tmp_path / "union", num_mode=4)
    (union / "segshift.json").write_text('{"layout": "colours"}')
    with pytest.raises(InputError, match="none of which has classes in colours: take `edges`"):
        flux.load_model(replace(told, model=str(union)))
    with pytest.raises(InputError, match="holds a ControlNetModel: expected a FluxControlNetModel"):
        other = tiny_diffusion.stable_diffusion(tmp_path / "sd")
        flux.load_model(replace(told, controlnet=str(other / "controlnet")))
    tiny_diffusion.flux_transformer(width=32).save_pretrained(folder / "wide")
    shutil.rmtree(folder / "transformer")
    (folder / "wide").rename(folder / "transformer")
    with pytest.raises(InputError, match=r"reads text of width 32 and its text encoder writes 16"):
        flux.load_model(told, control=False)
    shutil.rmtree(folder / "vae")
    tiny_diffusion.vae(8).save_pretrained(folder / "vae")
    with pytest.raises(InputError, match=r"takes 16 channels and its VAE makes 8, in packs of four 32"):
        flux.load_model(told, control=False)


# ------------------------------------------------------------------------------------------------ Qwen-Image


@torch.inference_mode()
def test_qwen_image_is_called_as_in_diffusers(tmp_path):
    folder = tiny_diffusion.qwen_image(tmp_path / "m")
    model = qwen_image.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    theirs = QwenImageControlNetPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        transformer=model.transformer,
        controlnet=model.controlnet,
        scheduler=model.scheduler,
    )
    theirs.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))

    def expected(prompt: str, **more) -> torch.Tensor:
        theirs.vae.encode = tiny_diffusion.mode_of(model.vae)
        made = theirs(
            prompt,
            latents=flow.pack(z),
            num_inference_steps=4,
            height=64,
            width=128,
            control_image=2 * picture - 1,
            output_type="latent",
            **more,
        ).images
        del model.vae.encode
        return flow.unpack(made, (8, 16))

    text, hint, sampling = model.embed(["fog"]), model.hint(picture), zodi.Sampling(1, steps=4, eta=0)
    ours = zodi.denoise(model, z, text, text, hint, replace(sampling, guidance=1.0), None)
    assert torch.allclose(ours, expected("fog", true_cfg_scale=1.0), atol=1e-4)
    # with guidance they give the negative pass the residuals of the prompt: without a layout we agree
    negative = model.embed(["bad and long"])
    without = zodi.denoise(model, z, text, negative, None, replace(sampling, guidance=4.0), None)
    their = expected(
        "fog", negative_prompt="bad and long", true_cfg_scale=4.0, controlnet_conditioning_scale=0.0
    )
    assert torch.allclose(without, their, atol=1e-4), (without - their).abs().max()
    decoded = model.decode(ours)
    latents = ours * torch.tensor(model.vae.config.latents_std)[None, :, None, None]
    latents = latents + torch.tensor(model.vae.config.latents_mean)[None, :, None, None]
    video = model.vae.decode(latents[:, :, None]).sample
    assert torch.equal(decoded, (video[:, :, 0] * 127.5 + 127.5).clamp(0, 255).to(torch.uint8))
    again = model.encode(decoded / 255)
    assert again.shape == z.shape and again.dtype == torch.float32


@torch.inference_mode()
def test_padding_of_a_prompt_acts_on_nothing(tmp_path):
    folder = tiny_diffusion.qwen_image(tmp_path / "m")
    model = qwen_image.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text, point = model.embed(["fog"]), model.point(0.5, (8, 8))
    assert text["text"].shape[1] == qwen_image.TOKENS > text["mask"].sum() > 100
    hint = model.hint(torch.rand(1, 3, 64, 64))
    out = model.output(z, point, text, hint, 1.0)
    filled = text["text"] + 9 * (1 - text["mask"])[..., None]
    assert torch.allclose(model.output(z, point, text | {"text": filled}, hint, 1.0), out, atol=1e-5)
    assert not torch.allclose(model.output(z, point, model.embed(["night"]), hint, 1.0), out, atol=1e-3)
    with pytest.raises(InputError, match=r"has 4\d\d tokens with the words around it, and .* reads 256"):
        model.embed(["abcdefgh" * 40])


def test_guidance_of_qwen_image_keeps_the_length_of_each_pack(tmp_path):
    model = qwen_image.load_model(
        DiffusionConfig(model=str(tiny_diffusion.qwen_image(tmp_path / "m")), device="cpu")
    )
    first, second = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = flow.pack(model.combined(first, second, 4.0))
    assert torch.allclose(guided.norm(dim=-1), flow.pack(second).norm(dim=-1), atol=1e-5)
    plain = flow.pack(first + 4 * (second - first))
    assert torch.allclose(torch.cosine_similarity(guided, plain, dim=-1), torch.ones(1, 16), atol=1e-5)


def test_a_schedule_with_an_end_is_stretched_to_it(tmp_path):
    folder = tiny_diffusion.qwen_image(tmp_path / "m")
    model = qwen_image.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    for size in ((8, 16), (96, 192)):
        m = model._shift(size)
        model.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=float(np.log(m)))
        assert [p.b for p in model.grid(30, size)] == pytest.approx(model.scheduler.sigmas.tolist(), abs=1e-6)
        assert model.grid(30, size)[-2].b == pytest.approx(0.02)
    assert [p.b for p in model.grid(1, (8, 16))] == [1, 0]


def test_parts_of_qwen_image_that_do_not_fit_each_other_are_refused(tmp_path):
    folder = tiny_diffusion.qwen_image(tmp_path / "m")
    told = DiffusionConfig(model=str(folder), device="cpu")
    for more, message in (
        (
            {"joint_attention_dim": 32},
            "the ControlNet has joint_attention_dim 32 and the transformer of .* 16",
        ),
        ({"extra_condition_channels": 4}, "takes a mask besides its picture, as for inpainting"),
    ):
        other = tiny_diffusion.qwen_controlnet(tiny_diffusion.qwen_transformer(), **more)
        other.save_pretrained(tmp_path / "c")
        with pytest.raises(InputError, match=message):
            qwen_image.load_model(replace(told, controlnet=str(tmp_path / "c")))
    with pytest.raises(InputError, match="holds a FluxControlNetModel: expected a QwenImageControlNetModel"):
        other = tiny_diffusion.flux(tmp_path / "flux")
        qwen_image.load_model(replace(told, controlnet=str(other / "controlnet")))
    shutil.rmtree(folder / "vae")
    tiny_diffusion.qwen_vae(8).save_pretrained(folder / "vae")
    with pytest.raises(InputError, match=r"takes 16 channels and its VAE makes 8, in packs of four 32"):
        qwen_image.load_model(told, control=False)


# ---------------------------------------------------------------------------------------- Cosmos-Transfer2.5


class Unguarded:
    """In place of NVIDIA's guardrail, which diffusers' pipeline insists on."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True


@pytest.mark.parametrize("image_context", [True, False])
@torch.inference_mode()
def test_cosmos_transfer_is_called_as_in_diffusers(tmp_path, image_context):
    folder = tiny_diffusion.cosmos_transfer(
        tmp_path / "m", **({} if image_context else {"img_context_dim_in": None})
    )
    model = cosmos_transfer.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    theirs = Cosmos2_5_TransferPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        transformer=model.transformer,
        controlnet=model.controlnet,
        # the pipeline with a sampler of one step back, as ours
        scheduler=type(model.scheduler).from_config(model.scheduler.config, solver_order=1, solver_p=None),
        safety_checker=Unguarded(),
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.check_inputs = lambda *args, **more: 1  # frames of a chunk, of which it asks for five
    z = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    encode, calls = model.vae.encode, []
    model.vae.encode = lambda video: SimpleNamespace(latents=encode(video).latent_dist.mode())
    network = model.transformer.forward

    def noted(*args, **given):
        out = network(*args, **given)
        calls.append((given, out[0]))
        return out

    model.transformer.forward = noted
    theirs(
        controls=(picture)[0][None],
        prompt="fog",
        negative_prompt="bad and long",
        latents=z[:, :, None],
        num_inference_steps=3,
        guidance_scale=3.0,
        height=64,
        width=128,
        num_frames=1,
        num_ar_conditional_frames=0,
        output_type="latent",
    )
    del model.vae.encode, model.transformer.forward
    grid, hint = model.grid(3, (8, 16)), model.hint(picture)
    assert len(calls) == 6  # of every step the prompt, then the negative prompt
    for i, (given, out) in enumerate(calls):
        latents = given["hidden_states"][:, :, 0]
        text = model.embed(["bad and long" if i % 2 else "fog"])
        assert float(given["timestep"].max()) == pytest.approx(grid[i // 2].b, abs=1e-6)
        ours = model.output(latents, grid[i // 2], text, hint, 1.0)
        assert torch.allclose(ours, out[:, :, 0], atol=1e-4), (ours - out[:, :, 0]).abs().max()
    theirs_guided = calls[0][1] + 3.0 * (calls[0][1] - calls[1][1])
    ours_guided = model.combined(calls[1][1], calls[0][1], model.card.usual.guidance)
    assert torch.allclose(ours_guided, theirs_guided, atol=1e-5)
    again = model.encode(model.decode(z) / 255)
    assert again.shape == z.shape and again.dtype == torch.float32


def test_the_schedule_of_cosmos_transfer_is_that_of_its_scheduler(tmp_path):
    folder = tiny_diffusion.cosmos_transfer(tmp_path / "m")
    model = cosmos_transfer.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    for steps in (1, 2, 36):
        model.scheduler.set_timesteps(steps)
        ours = [point.b for point in model.grid(steps, (8, 8))]
        assert ours == pytest.approx(model.scheduler.sigmas.tolist(), abs=1e-6)
    model.scheduler.register_to_config(sigma_max=80.0)
    for strength in model.card.strengths.values():
        usual, ours = (cosmos_transfer._ratio(strength, cosmos_transfer.USUAL_RANGE), None)
        ours = model.point(model.share(strength, (8, 8)), (8, 8))
        assert ours.b / ours.a == pytest.approx(usual)
    assert model.share(1.0, (8, 8)) == 1.0


def test_prompts_of_cosmos_transfer_are_read_in_full_or_refused(tmp_path):
    folder = tiny_diffusion.cosmos_transfer(tmp_path / "m")
    model = cosmos_transfer.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    text = model.embed(["fog"])["text"]
    assert text.shape == (1, cosmos_transfer.TOKENS, 32)
    halves = text.view(1, cosmos_transfer.TOKENS, 2, 16)
    assert torch.allclose(halves.mean(-1), torch.zeros(1, 1, 1), atol=1e-5)
    assert torch.allclose(halves.std(-1), torch.ones(1, 1, 1), atol=1e-4)
    with pytest.raises(InputError, match=r"has 6\d\d tokens with the words around it, and .* reads 512"):
        model.embed(["abcdefgh" * 60])


def test_parts_of_cosmos_transfer_that_do_not_fit_each_other_are_refused(tmp_path):
    folder = tiny_diffusion.cosmos_transfer(tmp_path / "m")
    told = DiffusionConfig(model=str(folder), device="cpu")
    for more, message in (
        ({"n_controlnet_blocks": 1}, "the ControlNet has n_controlnet_blocks 1 and the transformer of .* 2"),
        ({"latent_channels": 7}, "has latent_channels 7 and the transformer of .* asks for 6"),
        ({"crossattn_proj_in_channels": 16}, "has width of text 16 and the transformer of .* asks for 32"),
        ({"img_context_dim_in": None}, "has img_context_dim_in None and the transformer of .* asks for 8"),
        ({"model_channels": 64, "num_attention_heads": 4}, "has model_channels 64 and the transformer"),
    ):
        other = tiny_diffusion.cosmos_controlnet(tiny_diffusion.cosmos_transformer(), **more)
        other.save_pretrained(tmp_path / "c")
        with pytest.raises(InputError, match=message):
            cosmos_transfer.load_model(replace(told, controlnet=str(tmp_path / "c")))
    with pytest.raises(InputError, match="holds a QwenImageControlNetModel: expected a CosmosControlNetMod"):
        other = tiny_diffusion.qwen_image(tmp_path / "qwen")
        cosmos_transfer.load_model(replace(told, controlnet=str(other / "controlnet")))
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule | {"sigma_max": None}))
    with pytest.raises(InputError, match="scheduler has no range of noise"):
        cosmos_transfer.load_model(told)
    for more, message in (
        ({"controlnet_block_every_n": None}, "a ControlNet acts on none of its blocks: expected a Cosmos-Tr"),
        (
            {"crossattn_proj_in_channels": 16},
            "reads text of width 16 and the layers of its text .* 32",
        ),
        ({"in_channels": 4}, "takes 4 channels, its VAE makes 4"),
    ):
        shutil.rmtree(folder / "transformer")
        tiny_diffusion.cosmos_transformer(**more).save_pretrained(folder / "transformer")
        with pytest.raises(InputError, match=message):
            cosmos_transfer.load_model(told, control=False)


def test_the_branches_of_cosmos_transfer_are_known(monkeypatch, tmp_path):
    folder, asked = tiny_diffusion.cosmos_transfer(tmp_path / "m"), []

    def fetch(name, *, revision, allow_patterns):
        asked.append(revision)
        return str(folder / "controlnet" if "controlnet" in revision else folder)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    monkeypatch.setattr(loading.hub, "access", nullcontext)
    shutil.copytree(folder / "controlnet", tmp_path / "c")
    [name] = cosmos_transfer.CARD.models
    told = DiffusionConfig(model=name, controlnet=name, device="cpu")
    assert generators.family(told) is cosmos_transfer
    cosmos_transfer.load_model(told)
    assert set(asked) == {"diffusers/general", "diffusers/controlnet/general/seg"}
