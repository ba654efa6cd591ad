"""Training of a ControlNet: the noise in latents of labelled images, predicted from their label maps.

Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543.

| symbol | meaning | shape |
|---|---|---|
| x, y | source image, its label map in the palette's colours | [B,3,H,W] in [0, 1] |
| z0, n | latent of x, Gaussian noise | [B,C,h,w] |
| t | time step, uniform in 0 .. T-1, one for each image | [B] |
| z_t = a z0 + b n | noised latent | like z0 |
| c | the source's own prompt, or none in one of ten | |

    L = mean of (o(z_t, t, c, y) - target)^2, target as the model predicts: n or v

Only the ControlNet learns. n, t and whether c is left out are functions of (seed, sample) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor, nn

from segshift.data import samples, transforms
from segshift.data.labels import LabelSpace
from segshift.data.samples import Batch
from segshift.generators import schedule
from segshift.generators.base import take
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.methods.base import Method
from segshift.methods.zodi import transfer as zodi
from segshift.networks import adapters
from segshift.runs import InputError

EMPTY = 0.1
"""Share of samples without the prompt: guidance compares with and without."""
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""Ends of the names of the linear layers that get adapters."""
NEW = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
"""Parts of a ControlNet that its model has not; they learn beside adapters."""


def palette_of(space: LabelSpace) -> zodi.Palette:
    """The data set's own colours as segshift.json has them. Raises: InputError where two classes look or are
    called alike, or one looks like void."""
    if space.colours == zodi.CITYSCAPES.colours and space.names == zodi.CITYSCAPES.names:
        return "cityscapes"
    names = [zodi.plain(name) for name in space.names]
    for kind, values in (("name", names), ("colour", [*space.colours, (0, 0, 0)])):
        seen: dict[Any, str] = {}
        for value, name in zip(values, [*space.names, "void"], strict=False):
            if value in seen:
                raise InputError(
                    f"classes '{seen[value]}' and '{name}' of '{space.name}' have one {kind} "
                    f"({value}), and the ControlNet could not tell them apart: change one in dataset.yaml"
                )
            seen[value] = name
    return dict(zip(names, space.colours, strict=True))


class Samples(samples.Samples):
    """Images and labels as a training of a segmentation network draws them, each with a seed."""

    def __getitem__(self, k: int) -> Batch | InputError:
        """source [3, h, w], label [h, w], seed []."""
        sample = super().__getitem__(k)
        if isinstance(sample, InputError):
            return sample
        return sample | {"seed": torch.tensor(transforms.key_seed(self.seed, "noise", k))}


class ControlNetTraining(Method):
    """One player, one term."""

    def __init__(self, model: StableDiffusion, controlnet: ControlNetModel, prompt: str, colours: Any):
        """model: frozen, which uses the `controlnet`. colours: [256, 3] uint8 by train id."""
        super().__init__()
        self.controlnet = controlnet
        self.model = model  # no module: what does not learn is in no checkpoint
        self.texts = {name: rows.clone() for name, rows in model.embed([prompt, ""]).items()}
        self.colours = (torch.from_numpy(colours).float() / 255).to(model.device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"controlnet": self.controlnet}

    def checkpoint_gradients(self) -> None:
        self.controlnet.enable_gradient_checkpointing()
        self.model.unet.enable_gradient_checkpointing()

    def adapt(self, rank: int) -> None:
        """Train adapters, and what is new in the ControlNet. Raises: InputError."""
        layers = adapters.linear_layers(self.controlnet, ATTENTION)
        if not layers:
            raise InputError("--lora adapts attention layers, and the ControlNet has none: leave it out")
        adapters.inject(self.controlnet, layers, rank, "--lora")
        for name in NEW:
            self.controlnet.get_submodule(name).requires_grad_(True)

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """batch: source [B, 3, H, W], label [B, H, W], seed [B]."""
        with torch.autocast(self.model.device.type, enabled=False):
            z0 = self.model.encode(batch["source"]).clone()  # for gradients, out of inference mode
        draws = [self._draw(seed, z0.shape[1:]) for seed in batch["seed"].tolist()]
        steps, noises, empty = zip(*draws, strict=True)
        layout = self.colours[batch["label"].long()].permute(0, 3, 1, 2).contiguous()
        t, n = torch.stack(steps).to(z0.device), torch.stack(noises).to(z0.device)
        return {"z0": z0, "n": n, "t": t, "text": take(self.texts, list(empty)), "layout": layout}

    def _draw(self, seed: int, shape: Sequence[int]) -> tuple[Tensor, Tensor, int]:
        """t [], n, and which text of a sample."""
        rng = torch.Generator().manual_seed(seed)
        t = torch.randint(self.model.most_steps + 1, (), generator=rng)
        return t, torch.randn(tuple(shape), generator=rng), int(torch.rand((), generator=rng) < EMPTY)

    def losses(self, player: str, prepared: dict[str, Any], step: int) -> dict[str, Tensor]:
        z0, n, t = (prepared[name] for name in ("z0", "n", "t"))
        points = self.model.points(t)
        z = schedule.noised(z0, n, points)
        o = self.model.predict(z, t, prepared["text"], prepared["layout"], 1.0)
        return {"noise": F.mse_loss(o, schedule.target(self.model.prediction, z0, n, points))}
