"""Did a picture move towards its prompt? A diffusion model tells (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from segshift.generators import schedule
from segshift.generators.base import DiffusionFamily, Record

TIME = 0.5
"""Where the gap is measured, as a share of the schedule: there the prompt decides on the look, not on the
grain."""


@torch.inference_mode()
def denoising_gap(
    model: DiffusionFamily,
    z0: Tensor,
    text: Record,
    empty: Record,
    hint: Record | None,
    n: Tensor,
    control_strength: float,
) -> Tensor:
    """G = ||eps(z_t, t, empty, y) - n||^2 - ||eps(z_t, t, c, y) - n||^2, the mean over latent elements, [B].

    The diffusion model as a classifier between two prompts (Li et al., "Your Diffusion Model is Secretly a
    Zero-Shot Classifier", ICCV 2023), at one time step and with the same noise n for both, and for x and x'.
    z0, n [B,C,h,w]; text, empty of one row; hint of B rows. Cost: two evaluations of the networks.
    """
    point = model.point(TIME, (z0.shape[-2], z0.shape[-1]))
    z = schedule.noised(z0, n, point)
    per_row = tuple(range(1, z0.ndim))
    without, with_prompt = (
        (model.denoise(z, point, c, hint, control_strength)[0] - n).square().mean(per_row)
        for c in (empty, text)
    )
    return without - with_prompt
