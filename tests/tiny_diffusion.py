"""Diffusion models of a few thousand random weights, in the hub's own folder layout."""

import inspect
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TOKENS = 32
WIDTH = 64  # ControlNetModel.from_unet gives the pooled text 64 heads, whatever the UNet has
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def unet(channels: int = 4, width: int | None = None, **more) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width or WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def vae(channels: int = 4, halvings: int = 3) -> AutoencoderKL:
    blocks = halvings + 1
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )


def controlnet(of: UNet2DConditionModel, halvings: int = 3) -> ControlNetModel:
    """With zero convolutions that are not zero, so that the layout acts."""
    return acting(ControlNetModel.from_unet(of, conditioning_embedding_out_channels=(4,) * (halvings + 1)))


def union(of: UNet2DConditionModel, halvings: int = 3) -> ControlNetUnionModel:
    """The same of several kinds of pictures."""
    shared = inspect.signature(ControlNetUnionModel).parameters.keys() & of.config.keys()
    made = ControlNetUnionModel(
        **{name: of.config[name] for name in shared},
        conditioning_embedding_out_channels=(4,) * (halvings + 1),
        num_trans_channel=8,  # that of the first block, as num_proj_channel
        num_trans_head=2,
        num_proj_channel=8,
    )
    torch.nn.init.normal_(made.spatial_ch_projs.weight, std=0.3)
    return acting(made)


def acting(made):
    zeros = (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out)
    for convolution in zeros:
        torch.nn.init.normal_(convolution.weight, std=0.3)
    return made


def text(folder: Path, kind=CLIPTextModel, suffix: str = "", **more) -> None:
    """text_encoder/ with keys as in the hub's Stable Diffusion (transformers 5 writes them without the
    prefix), and tokenizer/: a letter a token."""
    config = CLIPTextConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=32,
        **{"num_hidden_layers": 1} | more,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoder = kind(config)
    weights = {
        key if key.startswith("text_projection") else f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in encoder.state_dict().items()
    }
    encoder.save_pretrained(folder / f"text_encoder{suffix}", state_dict=weights)
    tokenizer = folder / f"tokenizer{suffix}"
    tokenizer.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz,."
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (tokenizer / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    told = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(told))


def index(folder: Path, name: str) -> None:
    """model_index.json of a pipeline; the libraries read its parts, segshift its `_class_name`."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "unet": ["diffusers", "..."]}))


def stable_diffusion(folder: Path) -> Path:
    """As the hub's Stable Diffusion 1.5: epsilon, 4 channels, 8x, a scheduler that is not DDIM, fp16 beside
    fp32.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    net = unet()
    for part, name in ((net, "unet"), (vae(), "vae"), (controlnet(net), "controlnet")):
        part.save_pretrained(folder / name)
        part.half().save_pretrained(folder / name, variant="fp16")
    PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False).save_pretrained(
        folder / "scheduler"
    )
    text(folder)
    index(folder, "StableDiffusionPipeline")
    return folder


def prior(folder: Path) -> Path:
    """As the embedded prior: v-prediction, 8 channels, 4x, pooled text in the time embedding, defaults of its
    own.
    """
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    net = unet(8, addition_embed_type="text", addition_embed_type_num_heads=4)
    for part, name in ((net, "unet"), (vae(8, 2), "vae"), (controlnet(net, 2), "controlnet")):
        part.half().save_pretrained(folder / name)
    schedule = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, prediction_type="v_prediction")
    schedule.save_pretrained(folder / "scheduler")
    told = {"guidance": 2.0, "steps": 4, "eta": 1.0, "short_side": 64, "palette": "cityscapes"}
    (folder / "segshift.json").write_text(json.dumps(told))
    text(folder)
    index(folder, "StableDiffusionControlNetPipeline")
    return folder


def stable_diffusion_xl(folder: Path, control=controlnet) -> Path:
    """As the hub's SDXL: two text encoders, pooled text and sizes in the time embedding, epsilon. control:
    makes the ControlNet."""
    torch.manual_seed(2)
    folder.mkdir(parents=True)
    net = unet(
        width=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    for part, name in ((net, "unet"), (vae(), "vae"), (control(net), "controlnet")):
        part.save_pretrained(folder / name)
    schedule = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading")
    schedule.save_pretrained(folder / "scheduler")
    (folder / "segshift.json").write_text(json.dumps({"steps": 4, "short_side": 64}))
    text(folder, num_hidden_layers=2)
    text(folder, CLIPTextModelWithProjection, "_2", num_hidden_layers=2, projection_dim=16)
    index(folder, "StableDiffusionXLPipeline")
    return folder
