"""Diffusion models of a few thousand random weights, in the hub's own folder layout."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ControlNetModel,
    ControlNetUnionModel,
    CosmosControlNetModel,
    CosmosTransformer3DModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    PNDMScheduler,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

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


def vae(channels: int = 4, halvings: int = 3, **more) -> AutoencoderKL:
    blocks = halvings + 1
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **more,
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


def flux_transformer(guidance: bool = True, width: int = 16, **more) -> FluxTransformer2DModel:
    """Of the latents of `vae()` in packs of four."""
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        **{"attention_head_dim": 8} | more,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )


def flux_controlnet(of: FluxTransformer2DModel, **more) -> FluxControlNetModel:
    """Whose layout acts."""
    told = {
        name: of.config[name]
        for name in inspect.signature(FluxControlNetModel).parameters
        if name in of.config
    }
    made = FluxControlNetModel(**told | more)
    hint = made.input_hint_block
    blocks = (*made.controlnet_blocks, *made.controlnet_single_blocks, made.controlnet_x_embedder)
    for layer in (*blocks, hint.conv_out) if hint else blocks:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return made


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


def flux(folder: Path, guidance: bool = True, shards: str = "10KB", **more) -> Path:
    """As the hub's FLUX.1: flow, packed latents, CLIP's summary beside T5's text, the large parts in several
    files. guidance: as an input ([dev]), or not at all ([schnell]). more: of the ControlNet."""
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    net = flux_transformer(guidance)
    net.save_pretrained(folder / "transformer", max_shard_size=shards)
    vae(
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159
    ).save_pretrained(folder / "vae")
    flux_controlnet(net, **more).save_pretrained(folder / "controlnet")
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if guidance else {"shift": 1.0}
    schedule = FlowMatchEulerDiscreteScheduler(
        **shift, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    schedule.save_pretrained(folder / "scheduler")
    text(folder)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=64,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    encoder.save_pretrained(folder / "text_encoder_2", max_shard_size=shards)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=48).save_pretrained(
        folder / "tokenizer_2"
    )
    index(folder, "FluxPipeline")
    return folder


def qwen_transformer(**more) -> QwenImageTransformer2DModel:
    """Of latents of 4 channels in packs of four."""
    told = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    return QwenImageTransformer2DModel(**told | more)


def qwen_controlnet(of: QwenImageTransformer2DModel, **more) -> QwenImageControlNetModel:
    """Whose layout acts."""
    shared = inspect.signature(QwenImageControlNetModel).parameters.keys() & of.config.keys()
    made = QwenImageControlNetModel(**{name: of.config[name] for name in shared} | more)
    for layer in (*made.controlnet_blocks, made.controlnet_x_embedder):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def qwen_vae(channels: int = 4) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.1 * i for i in range(channels)],
    )


def mode_of(vae):
    """In place of `vae.encode`, which diffusers' pipelines draw the layout's latent from: its mode."""
    encode = vae.encode
    return lambda images: SimpleNamespace(latents=encode(images).latent_dist.mode())


def qwen_image(folder: Path) -> Path:
    """As the hub's Qwen-Image: flow, a VAE of videos, the text of a language model that sees, the large parts
    in several files."""
    torch.manual_seed(4)
    folder.mkdir(parents=True)
    net = qwen_transformer()
    net.save_pretrained(folder / "transformer", max_shard_size="10KB")
    qwen_vae().save_pretrained(folder / "vae")
    qwen_controlnet(net).save_pretrained(folder / "controlnet")
    schedule = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    schedule.save_pretrained(folder / "scheduler")
    language_model(folder)
    index(folder, "QwenImagePipeline")
    return folder


def language_model(folder: Path, layers: int = 1, **more) -> None:
    """text_encoder/, a language model that sees, in several files, and tokenizer/: a letter a token."""
    letters = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate([*letters, *special])}, merges=[], **more
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 128,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="10KB")


def cosmos_transformer(**more) -> CosmosTransformer3DModel:
    """Of latents of 4 channels; reads two layers of a language model of width 16, side by side."""
    told = {
        "in_channels": 5,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "mlp_ratio": 1.0,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
        "rope_scale": (1.0, 3.0, 3.0),
        "extra_pos_embed_type": None,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": 32,
        "encoder_hidden_states_channels": 8,
        "controlnet_block_every_n": 2,
        "img_context_dim_in": 8,
        "img_context_num_tokens": 4,
        "img_context_dim_out": 32,
    }
    return CosmosTransformer3DModel(**told | more)


def cosmos_controlnet(of: CosmosTransformer3DModel, **more) -> CosmosControlNetModel:
    shared = inspect.signature(CosmosControlNetModel).parameters.keys() & of.config.keys() - {"in_channels"}
    told = {"n_controlnet_blocks": 2, "in_channels": 10, "latent_channels": 6, "model_channels": 32}
    return CosmosControlNetModel(**{name: of.config[name] for name in shared} | told | more)


def wan_vae(channels: int = 4) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.1 * i for i in range(channels)],
    )


def cosmos_transfer(folder: Path, **more) -> Path:
    """As the hub's Cosmos-Transfer2.5: flow on Karras' schedule, a VAE of videos, all layers of a language
    model as text. more: of the transformer."""
    torch.manual_seed(5)
    folder.mkdir(parents=True)
    net = cosmos_transformer(**more)
    net.save_pretrained(folder / "transformer", max_shard_size="10KB")
    wan_vae().save_pretrained(folder / "vae")
    cosmos_controlnet(net).save_pretrained(folder / "controlnet")
    schedule = UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )
    schedule.save_pretrained(folder / "scheduler")
    language_model(folder, layers=2, pad_token="<|endoftext|>", chat_template=CHAT)
    index(folder, "Cosmos2_5_TransferPipeline")
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""What Qwen2.5-VL's template makes of two messages of text."""
