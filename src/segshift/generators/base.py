"""What makes target-like images: the two interfaces, and nothing that needs a library.

A `Generator` makes pictures of frames. It is all that the transfer, its journal, the gate and the estimate
know. A `DiffusionFamily` is what ZoDi's walk (segshift.methods.zodi) needs of a diffusion model to become
one.

Shapes: B rows of a batch, H x W pixels, latents [B,C,h,w] float32 (a video model's [B,C,1,h,w]), train ids
uint8 with 255 for void.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from segshift.generators import schedule
from segshift.generators.schedule import Point, PredictionType
from segshift.runs import InputError

# ------------------------------------------------------------------------------------------------- generators


@dataclass(frozen=True)
class Domain:
    """A target domain, as one draw of it is asked for."""

    slug: str
    """Its folder: a known name, or the sentence with dashes."""
    prompt: str
    strength: float
    """How far from the source, in (0, 1]."""


@dataclass(eq=False)
class Source:
    """A source image."""

    id: str
    image: np.ndarray
    """[H, W, 3] uint8."""
    label: np.ndarray | None
    """Train ids [H, W] uint8; None where nobody asked for them."""
    label_ids: np.ndarray | None = None
    """Cityscapes' own ids [H, W] that the train ids were made from; None in the default mode and for other
    data."""

    @property
    def truth(self) -> np.ndarray:
        """`label`, where it was asked for."""
        assert self.label is not None
        return self.label


class FrameError(InputError):
    """One frame cannot be made. It is listed as failed, and the others go on."""


class Generator(ABC):
    """Turns source images into pictures of a domain.

    A picture is a function of its image, layout, domain and seed: not of its row, or of what else is in the
    batch.
    """

    name: str
    """What manifests call it."""
    hashes: dict[str, str]
    """sha256 of each file that decides on the pictures, by part; a run goes on with the same ones only."""
    device: torch.device
    needs_layouts: bool
    """Whether every frame must have a label."""
    measures_movement: bool = False
    """Whether `movement` exists."""
    short_side: int | None = None
    """Short side of the working size, where it has one of its own."""
    negative_prompt: str | None = None

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Working size (height, width) of an image."""

    @abstractmethod
    def prepare(self, sources: Sequence[Source], rows: int) -> Any:
        """A batch of sources of one working size, and what is computed once for all of their draws.

        rows: of every batch of this size. A generator whose pixels depend on the shape of a batch fills up to
        it.
        """

    @abstractmethod
    def generate(self, batch: Any, index: Sequence[int], domain: Domain, seeds: Sequence[int]) -> np.ndarray:
        """Pictures [len(index), h, w, 3] uint8 of the batch's sources `index`, with a seed each.

        Raises: FrameError, torch.OutOfMemoryError.
        """

    def check(self, domain: Domain, draw: int) -> None:  # noqa: B027
        """Raises: InputError for a strength that this generator cannot follow. draw: 0, or the number of the
        redraw."""

    def movement(
        self, batch: Any, index: Sequence[int], domain: Domain, pictures: np.ndarray | None
    ) -> list[float]:
        """How much better the prompt explains each picture than no prompt does (`movement.denoising_gap`).

        pictures: [len(index), h, w, 3] uint8; None for the sources themselves.
        """
        raise NotImplementedError

    @abstractmethod
    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """What is left of an image [H, W, 3] uint8 without any change of domain: [h, w, 3] uint8 at the
        working size.

        Raises: torch.OutOfMemoryError.
        """

    def settings(self, size: tuple[int, int], output_size: str) -> dict[str, Any]:
        """What the manifest tells of a frame's settings."""
        return {"working_size": size, "output_size": output_size}


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 to `size`: Lanczos where the short side grows, area where it shrinks."""
    grows = min(size) > min(image.shape[:2])
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA)


LONGEST_SIDE = 16_384
"""Pixels of a picture's longer side at the working size."""


def working_size(height: int, width: int, short_side: int, step: int = 64) -> tuple[int, int]:
    """Height and width with the short side at `short_side` pixels, both rounded to multiples of `step`.

    Raises: InputError for a picture so narrow that its other side passes LONGEST_SIDE.
    """
    scale = short_side / min(height, width)
    high, wide = (max(step, round(side * scale / step) * step) for side in (height, width))
    size = high, wide
    if max(size) > LONGEST_SIDE:
        raise InputError(
            f"a picture of {width}x{height} is {size[1]}x{size[0]} at --short-side {short_side}: crop it "
            "first"
        )
    return size


# ----------------------------------------------------------------------------------------- diffusion families

SENTENCE = "sentence"
"""Key of the strength of domains that the user describes."""

STRENGTHS = {"night": 0.90, "snow": 0.65, "rain": 0.65, "fog": 0.60, "game": 0.60, SENTENCE: 0.75}
"""Noise strengths of the published target domains on Stable Diffusion's schedule, and of a sentence (ours:
between night and weather)."""


Grey = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class Defaults:
    """What a model is sampled with where the user says nothing. A model folder brings its own as
    `segshift.json`."""

    guidance: float = 9.0
    steps: int = 20
    eta: float = 1.0
    short_side: int = 512
    palette: Literal["ade20k", "cityscapes"] | dict[str, tuple[Grey, Grey, Grey]] = "ade20k"
    """Colours of the layout that the ControlNet was trained on: those of a known data set, or RGB by class
    name, in lower case with spaces."""
    layout: Literal["colours", "edges"] = "colours"
    """What the ControlNet takes: classes in colours, or the edges of the label map in white on black."""


@dataclass(frozen=True)
class Card:
    """What there is to know of a family before a model of it is loaded."""

    title: str
    models: tuple[str, ...]
    """Examples: names on the hub."""
    controlnets: tuple[str, ...]
    """Examples; the first is taken where the user names none for a hub model."""
    licence: str
    layouts: str
    """Layout pictures that its ControlNets take."""
    parameters: float
    """Weights of the first example with its ControlNet, in billions."""
    strengths: Mapping[str, float] = field(default_factory=lambda: STRENGTHS)
    """Default noise strengths: those at which b/a is what it is at STRENGTHS in Stable Diffusion."""
    usual: Defaults = field(default_factory=Defaults)
    """Of a model that brings none of its own."""
    trains: bool = False
    """Whether `segshift control train` makes ControlNets for it."""


Record = dict[str, Tensor]
"""What only the family reads: a text's or a layout's conditioning, batch first in every tensor."""


def take(record: Record, index: Sequence[int]) -> Record:
    """The rows `index`."""
    return {name: tensor[list(index)] for name, tensor in record.items()}


def repeat(record: Record, rows: int) -> Record:
    """A record of one row as one of `rows`."""
    return {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in record.items()}


def join(first: Record, second: Record) -> Record:
    """The rows of the first, then those of the second."""
    return {name: torch.cat((tensor, second[name])) for name, tensor in first.items()}


class DiffusionFamily(ABC):
    """A latent diffusion model: frozen, in evaluation mode, on one device and in one dtype. Latents are
    float32."""

    card: ClassVar[Card]
    name: str
    hashes: dict[str, str]
    """sha256 of each part's weight file."""
    defaults: Defaults
    most_steps: int
    """Steps that its grid has at most."""
    prediction: PredictionType
    """What `output` is."""
    reads_negative: bool = True
    """Whether guidance leads away from a negative prompt; a model that is told a number has none."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the networks are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """z0, normalised as the network expects it: [B,3,H,W] in [0, 1] to [B,C,h,w]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """[B,C,h,w] to [B,3,H,W] uint8. Raises: InputError when the arithmetic overflowed."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Record:
        """Text conditioning, a row a prompt. Raises: InputError for a prompt longer than the text encoder
        reads."""

    @abstractmethod
    def hint(self, pictures: Tensor) -> Record:
        """Layout conditioning of layout pictures [B,3,H,W] in [0, 1], computed once per image."""

    @abstractmethod
    def grid(self, steps: int, size: tuple[int, int]) -> list[Point]:
        """The whole walk: `steps` points of falling noise, and the one without noise. size: h and w of the
        latents."""

    @abstractmethod
    def point(self, share: float, size: tuple[int, int]) -> Point:
        """The point at `share` of the schedule's time, in (0, 1]; it need not be one of a grid."""

    def share(self, strength: float, size: tuple[int, int]) -> float:
        """The share of the schedule's time, in (0, 1], at which latents of `size` hold the noise that
        `strength` stands for. They differ where the schedule depends on the size."""
        return strength

    @abstractmethod
    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        """The network's output, float32 [B,C,h,w]. text, hint: of B rows; no hint is no layout."""

    def combined(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """The output under guidance w: o(negative) + w (o(text) - o(negative))."""
        return unconditional + guidance * (conditional - unconditional)

    def denoise(
        self,
        z: Tensor,
        point: Point,
        text: Record,
        hint: Record | None,
        control_strength: float = 1.0,
        *,
        negative: Record | None = None,
        guidance: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """eps and x0 at a point, both [B,C,h,w].

        text, negative: of one row. hint: of B rows. With a `negative` and guidance w != 1 the outputs of one
        batch of 2B are `combined`, the layout acting in both.
        """
        rows = len(z)
        if negative is None or guidance == 1:
            o = self.output(z, point, repeat(text, rows), hint, control_strength)
        else:
            both = join(repeat(negative, rows), repeat(text, rows))
            hints = None if hint is None else join(hint, hint)
            unconditional, conditional = self.output(
                torch.cat((z, z)), point, both, hints, control_strength
            ).chunk(2)
            o = self.combined(unconditional, conditional, guidance)
        return schedule.eps_and_x0(self.prediction, o, z, point)


# ------------------------------------------------------------------------------------------------------ files


def file_hash(path: Path) -> str:
    """sha256 of a file; read once per process as long as it stays the same."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
