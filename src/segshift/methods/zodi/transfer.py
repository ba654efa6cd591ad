"""ZoDi: zero-shot domain adaptation with diffusion-based image transfer.

Azuma, Matsui, Maki, "ZoDi: Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer", arXiv 2403.13652
(ECCV 2024 workshops). Published code: azuma164/ZoDi (MIT). The order below is the paper's.

| symbol | meaning |
|---|---|
| x, y | source image and its label map, drawn in colours: the layout |
| x' | transferred image: the look of the target domain, the layout of x |
| E, D | VAE encoder and decoder; z0 = scale E(x), scale = 0.18215 in Stable Diffusion |
| abar_t | cumulative alpha of the noise schedule at time step t in 0 .. T-1, T = 1000 |
| z_t = a z0 + b n | a = sqrt(abar_t), b = sqrt(1 - abar_t); other families have other a and b |
| eps(z, t, c, y) | noise predicted under the prompt c, with the ControlNet on y |
| n | Gaussian noise |
| s, t, k | noise strength in (0, 1], t = int(s T), k = int(s N) |
| N, eta, w | DDIM steps over the whole schedule, DDIM's eta in [0, 1], guidance scale |

The model is any `DiffusionFamily` (segshift.generators.base); the formulas are in
segshift.generators.schedule. Shapes: B images, H x W pixels at the working size, C latent channels at h x w
(Stable Diffusion: 4, H/8 x W/8), text of one row, hint of B rows. Latents are float32 whatever the networks
compute in.

Where this differs from the paper's text or the published code:
- s = 1 asks for t = T, which does not exist (the published code stops there): t = T - 1 is taken.
- z0 is the mode of E's posterior, as in the recorded runs; the code as published draws a sample of it.
- The two passes of classifier-free guidance run as one batch of 2B, and only the conditional one when w = 1.
- The ControlNet's embedding of the layout is computed once per image, not at every step.
- Void pixels are black in the layout. Only the reference mode paints those of Cityscapes' label files in the
  colours of their own ids (a tunnel, a trailer), which is what the published layouts show.
- The published code asks for a bilinear resize of the layout, but only after the image's rule (area, Lanczos)
  has made it that size already; so area and Lanczos is what happens, and what the reference mode does.
- The walk starts at the grid point of step k (851 for s = 0.9, N = 20) although z_t holds the noise of t =
  900. This is kept, in both modes: it is how the published results were made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from segshift.config import TransferConfig
from segshift.data.labels import (
    ADE20K_COLOURS,
    CITYSCAPES,
    CITYSCAPES_VOID_COLOURS,
    IGNORE,
    Colour,
    LabelSpace,
)
from segshift.generators import schedule
from segshift.generators.base import (
    STRENGTHS,
    DiffusionFamily,
    Domain,
    FrameError,
    Generator,
    Record,
    Source,
    resize,
    take,
    working_size,
)
from segshift.generators.movement import denoising_gap
from segshift.runs import InputError

_log = logging.getLogger(__name__)

# ----------------------------------------------------------------------- 3.1 zero-shot image transfer

DOMAINS: dict[str, tuple[str, float]] = {
    "night": ("driving at night", STRENGTHS["night"]),
    "snow": ("driving in snow", STRENGTHS["snow"]),
    "rain": ("driving under rain", STRENGTHS["rain"]),
    "fog": ("driving in fog", STRENGTHS["fog"]),
    "game": ("driving in a game", STRENGTHS["game"]),
}
"""Prompt and noise strength of the published target domains."""

QUALITY = ", best quality"
"""Follows every prompt."""

NEGATIVE_PROMPT = "lower quality, worst quality"

PALETTES: dict[str, dict[str, Colour]] = {
    "cityscapes": dict(zip(CITYSCAPES.names, CITYSCAPES.colours, strict=True)),
    "ade20k": ADE20K_COLOURS,
}
"""Colours of the layout by class name, for ControlNets trained on one or the other."""

_VOID = np.array([CITYSCAPES_VOID_COLOURS[i] for i in range(len(CITYSCAPES_VOID_COLOURS))], np.uint8)

GUIDED = (0.28, 5.42)
"""`Sampling.guided` of `--speed fast`: what Kynkaanniemi et al., "Applying Guidance in a Limited Interval",
arXiv 2404.07724, found best for the ImageNet model of 512 pixels; here nobody has measured it."""

Noise = Callable[[int], Tensor]
"""Noise [B,C,h,w]: 0 is the inversion's, i = 1 .. k that of the walk's i-th step; asked for in this order."""


@dataclass(frozen=True)
class Sampling:
    """How latents are noised and denoised."""

    strength: float
    """s in (0, 1], with int(s N) >= 1."""
    steps: int = 20
    """N, 1 to T - 1."""
    guidance: float = 9.0
    """w; 1 switches guidance off."""
    eta: float = 1.0
    """0 is DDIM, 1 adds as much noise as DDPM."""
    control_strength: float = 1.0
    """Factor on the ControlNet's residuals."""
    inversion: Literal["stochastic", "none", "ddim"] = "stochastic"
    """Start of the walk; `none` and `ddim` are the paper's ablations."""
    guided: tuple[float, float] | None = None
    """Noise-to-signal ratios b/a, the first left out, at which guidance acts; elsewhere w = 1, and a step
    costs one pass. None is everywhere; so it is for a model that takes guidance as a number."""

    @property
    def walked(self) -> int:
        """k, the number of grid points that are walked."""
        return int(self.strength * self.steps)


Palette = str | Mapping[str, Colour]
"""A key of PALETTES, or colours by class name as `plain` gives it."""


def plain(name: str) -> str:
    """A class name as palettes have it: in lower case, with spaces."""
    return name.lower().replace("_", " ")


def colour(name: str, palette: Palette) -> Colour | None:
    """The palette's colour of a class; None where it has none."""
    return (PALETTES[palette] if isinstance(palette, str) else palette).get(plain(name))


def colours(space: LabelSpace, palette: Palette) -> np.ndarray:
    """[256, 3] uint8 by train id. A class that the palette does not know is black, like void."""
    table = np.zeros((256, 3), np.uint8)
    for train_id, name in enumerate(space.names):
        table[train_id] = colour(name, palette) or (0, 0, 0)
    return table


def layout(
    label: np.ndarray,
    space: LabelSpace,
    size: tuple[int, int],
    palette: Palette,
    *,
    reference: bool = False,
    label_ids: np.ndarray | None = None,
) -> np.ndarray:
    """Train ids [H, W] uint8 as the picture [h, w, 3] uint8 that the ControlNet sees.

    Nearest neighbour by default, so no colour appears that stands for no class; `reference` resizes as
    published. label_ids: Cityscapes' `labelIds`
    [H, W], 0 to 34, that the train ids were made from; with them void pixels have Cityscapes' colours.
    """
    table = colours(space, palette)
    if reference:
        picture = table[label]
        if label_ids is not None:
            void = label == IGNORE
            picture[void] = _VOID[label_ids[void]]
        return resize(picture, size)
    return table[cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)]


def edges(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The borders between the classes of train ids [H, W] uint8 in white on black: [h, w, 3] uint8.

    Void is a class here. A pixel is white where the next one to the right or below is of another class, so
    lines are one pixel wide, and two where they run diagonally.
    """
    label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    border = np.zeros(label.shape, np.uint8)
    border[:, :-1] |= label[:, :-1] != label[:, 1:]
    border[:-1] |= label[:-1] != label[1:]
    return np.repeat(255 * border[..., None], 3, axis=2)


def noise(seed: int, frame_id: str, domain: str, step: int, shape: tuple[int, ...]) -> Tensor:
    """Gaussian noise of one frame and step: a function of these arguments alone, on every machine and
    device."""
    key = hashlib.sha256(repr((seed, frame_id, domain, step)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big"))
    return torch.randn(shape, generator=generator)


def published_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """Noise as published: every image starts at the same seed and draws its noises one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator)


def invert(
    model: DiffusionFamily,
    z0: Tensor,
    text: Record,
    hint: Record | None,
    sampling: Sampling,
    noises: Noise | None,
) -> Tensor:
    """z_t, the start of the walk [B,C,h,w].

    Stochastic inversion noises z0 with n, predicts the noise once without guidance, and noises z0 with that
    prediction: it carries the structure of the image, which n does not. Ablations: plain noise n (SDEdit),
    and DDIM inversion, which goes up the grid that the walk comes down. noises: None with `ddim`, which draws
    none.
    """
    if sampling.inversion == "ddim":
        z = z0
        for here, there in pairwise(reversed(walk(model, z0, sampling))):
            eps, _ = model.denoise(z, there, text, hint, sampling.control_strength)
            x0 = schedule.eps_and_x0("epsilon", eps, z, here)[1]
            z = schedule.noised(x0, eps, there)
        return z
    start = model.point(sampling.strength, _size(z0))
    assert noises is not None
    n = noises(0).to(z0)
    z_noisy = schedule.noised(z0, n, start)
    if sampling.inversion == "none":
        return z_noisy
    eps, _ = model.denoise(z_noisy, start, text, hint, sampling.control_strength)
    return schedule.noised(z0, eps, start)


def walk(model: DiffusionFamily, z: Tensor, sampling: Sampling) -> list[schedule.Point]:
    """The last k points of the grid, and the one without noise."""
    return model.grid(sampling.steps, _size(z))[-sampling.walked - 1 :]


def _size(z: Tensor) -> tuple[int, int]:
    height, width = z.shape[-2:]
    return height, width


def denoise(
    model: DiffusionFamily,
    z: Tensor,
    text: Record,
    negative: Record,
    hint: Record | None,
    sampling: Sampling,
    noises: Noise | None,
) -> Tensor:
    """Walk the last k points of the grid down from z [B,C,h,w] (DDIM, eq. 12 and 16). noises: None with eta
    0."""
    for i, (here, there) in enumerate(pairwise(walk(model, z, sampling)), start=1):
        w = sampling.guidance
        if sampling.guided is not None and model.reads_negative:
            low, high = sampling.guided
            w = w if low * here.a < here.b <= high * here.a else 1.0
        eps, x0 = model.denoise(z, here, text, hint, sampling.control_strength, negative=negative, guidance=w)
        s = schedule.sigma(here, there, sampling.eta)
        n = None
        if s > 0:
            assert noises is not None
            n = noises(i).to(z)
        z = schedule.step(x0, eps, there, s, n)
    return z


@torch.inference_mode()
def transfer(
    model: DiffusionFamily,
    z0: Tensor,
    text: Record,
    negative: Record,
    hint: Record | None,
    sampling: Sampling,
    noises: Noise,
) -> Tensor:
    """x' [B,3,H,W] uint8 from z0 [B,C,h,w] of one target domain: inversion, walk, decoding."""
    z = invert(model, z0, text, hint, sampling, noises)
    return model.decode(denoise(model, z, text, negative, hint, sampling, noises))


# ---------------------------------------------------------------------------------- batches of frames


@dataclass(frozen=True, eq=False)
class Encoded:
    """Sources of one working size, encoded once for all domains and draws; rows after the last one repeat it.

    All batches of one working size have the same number of rows, and so have those of redraws: a frame's
    picture does not depend on its neighbours.
    """

    sources: Sequence[Source]
    rows: int
    z0: Tensor
    """[rows,C,h,w]."""
    hint: Record | None
    """Of `rows`; None without the layout."""


class ZoDiGenerator(Generator):
    """A diffusion family that transfers images by ZoDi's walk."""

    measures_movement = True
    needs_layouts: bool
    short_side: int

    def __init__(
        self, model: DiffusionFamily, config: TransferConfig, space: LabelSpace, domains: Iterable[Domain]
    ) -> None:
        """Raises: InputError on settings that this model cannot follow."""
        default = model.defaults
        self.model, self.config, self.space = model, config, space
        self.name, self.hashes, self.device = model.name, model.hashes, model.device
        self.needs_layouts = config.control
        self.negative_prompt = NEGATIVE_PROMPT if model.reads_negative else None
        self.short_side = default.short_side if config.short_side is None else config.short_side
        self.palette: Palette = "cityscapes" if config.mode == "reference" else default.palette
        self.sampling = Sampling(
            strength=1,
            steps=default.steps if config.steps is None else config.steps,
            guidance=default.guidance if config.guidance is None else config.guidance,
            eta=default.eta if config.eta is None else config.eta,
            control_strength=config.control_strength,
            inversion=config.inversion,
            guided=GUIDED if config.speed == "fast" else None,
        )
        if not 1 <= self.sampling.steps <= model.most_steps:
            raise InputError(
                f"--steps is {self.sampling.steps}: expected 1 to {model.most_steps}, the time steps of "
                f"{model.name}"
            )
        if config.control and default.layout == "colours":
            self._check_palette()
        elif config.control and config.mode == "reference":
            raise InputError(
                f"--mode reference draws the layout in colours, and the ControlNet of {model.name} takes "
                "edges: take --mode default"
            )
        self.negative = model.embed([NEGATIVE_PROMPT])
        self.empty = model.embed([""]) if config.gate else None
        self.texts = {domain.slug: model.embed([domain.prompt]) for domain in domains}

    def _check_palette(self) -> None:
        names = [name for name in self.space.names if not colour(name, self.palette)]
        if len(names) == self.space.classes:
            raise InputError(
                f"no class of '{self.space.name}' ({', '.join(names[:4])}, ...) has a colour in the "
                f"ControlNet's palette{self._called}: map the classes onto cityscapes in dataset.yaml, "
                "train a ControlNet on them (segshift control train), or take --no-control"
            )
        if names:
            _log.warning("no colour in palette%s, drawn black: %s", self._called, ", ".join(names))

    @property
    def _called(self) -> str:
        """The name of a known palette in messages."""
        return f" '{self.palette}'" if isinstance(self.palette, str) else " of its own"

    def check(self, domain: Domain, draw: int) -> None:
        steps, strength = self.sampling.steps, domain.strength
        if replace(self.sampling, strength=strength).walked >= 1:
            return
        if draw == 0:
            raise InputError(
                f"--strength {strength} of {steps} steps walks none, and the image would be noise: give "
                f"{1 / steps:.3g} or more, or more --steps"
            )
        raise InputError(
            f"strength {strength:.3g}, of draw {draw + 1} of '{domain.slug}', walks none of {steps} steps: "
            "give fewer --gate.tries, a --gate.strength-factor nearer to 1, or more --steps"
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        return working_size(height, width, self.short_side)

    def prepare(self, sources: Sequence[Source], rows: int) -> Encoded:
        size = self.size(*sources[0].image.shape[:2])
        z0 = self.model.encode(self._stack([resize(source.image, size) for source in sources], rows))
        hint = None
        if self.config.control:
            layouts = [self._layout(source, size) for source in sources]
            hint = self.model.hint(self._stack(layouts, rows))
        return Encoded(sources, rows, z0, hint)

    def _layout(self, source: Source, size: tuple[int, int]) -> np.ndarray:
        if self.model.defaults.layout == "edges":
            return edges(source.truth, size)
        reference = self.config.mode == "reference"
        return layout(
            source.truth, self.space, size, self.palette, reference=reference, label_ids=source.label_ids
        )

    def generate(
        self, batch: Encoded, index: Sequence[int], domain: Domain, seeds: Sequence[int]
    ) -> np.ndarray:
        index, seeds, chosen = _fill(index, batch.rows), _fill(seeds, batch.rows), len(index)
        sampling = replace(self.sampling, strength=self.model.share(domain.strength, _size(batch.z0)))
        if sampling.walked < 1:
            height, width = batch.sources[0].image.shape[:2]
            raise FrameError(
                f"strength {domain.strength:.3g} walks none of {sampling.steps} steps for a picture of "
                f"{width}x{height}: give a higher --strength, or more --steps"
            )
        drawn = transfer(
            self.model,
            batch.z0[index],
            self.texts[domain.slug],
            self.negative,
            None if batch.hint is None else take(batch.hint, index),
            sampling,
            self._noise([batch.sources[i].id for i in index], seeds, domain.slug, batch.z0.shape[1:]),
        )
        return _pictures(drawn)[:chosen]

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """D(E(x))."""
        z0 = self.model.encode(self._stack([resize(image, self.size(*image.shape[:2]))], 1))
        return _pictures(self.model.decode(z0))[0]

    def movement(
        self, batch: Encoded, index: Sequence[int], domain: Domain, pictures: np.ndarray | None
    ) -> list[float]:
        chosen, index = len(index), _fill(index, batch.rows)
        z0 = (
            batch.z0[index]
            if pictures is None
            else self.model.encode(self._stack(list(pictures), batch.rows))
        )
        noises = [noise(self.config.seed, batch.sources[i].id, "movement", 0, z0.shape[1:]) for i in index]
        hint = None if batch.hint is None else take(batch.hint, index)
        assert self.empty is not None
        gap = denoising_gap(
            self.model,
            z0,
            self.texts[domain.slug],
            self.empty,
            hint,
            torch.stack(noises).to(z0),
            self.config.control_strength,
        )
        return gap.tolist()[:chosen]

    def settings(self, size: tuple[int, int], output_size: str) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "inversion": sampling.inversion,
            "speed": self.config.speed,
            "control": self.config.control,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "eta": sampling.eta,
            "control_strength": sampling.control_strength,
            "layout": self.model.defaults.layout,
            "palette": self.palette if self.model.defaults.layout == "colours" else None,
            "working_size": size,
            "output_size": output_size,
            "dtype": self.config.diffusion.dtype,
        }

    def _stack(self, pictures: Sequence[np.ndarray], rows: int) -> Tensor:
        """[H, W, 3] uint8 each to [rows, 3, H, W] in [0, 1] on the device."""
        batch = torch.from_numpy(np.stack([pictures[i] for i in _fill(range(len(pictures)), rows)]))
        return batch.to(self.device).permute(0, 3, 1, 2).float() / 255

    def _noise(self, ids: Sequence[str], seeds: Sequence[int], slug: str, shape: tuple[int, ...]) -> Noise:
        # One seed is one stream, and every image of that seed gets its numbers
        if self.config.mode == "reference":
            streams = {seed: published_noise(seed, (1, *shape)) for seed in seeds}

            def published(step: int) -> Tensor:
                noises = {seed: draw(step) for seed, draw in streams.items()}
                return torch.cat([noises[seed] for seed in seeds])

            return published
        keys = list(zip(seeds, ids, strict=True))
        return lambda step: torch.stack([noise(seed, id, slug, step, shape) for seed, id in keys])


def _pictures(images: Tensor) -> np.ndarray:
    """[B,3,h,w] uint8 to [B, h, w, 3] on the CPU."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _fill(chosen: Sequence[int], rows: int) -> list[int]:
    """`chosen` with its last one repeated up to `rows`."""
    return [*chosen, *[chosen[-1]] * (rows - len(chosen))]
