"""Worlds: the ranges, palettes and textures that scenes are drawn from, and their random streams. Source:
ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class World:
    """Everything that distinguishes one world from another; colours are display RGB in [0, 1]."""

    name: str
    """Name of the world; texture tiles are cached under it."""
    namespace: int
    """First word of every seed: worlds with different namespaces share no random stream."""
    camera_height: Range
    """Metres above the road."""
    horizon: Range
    """Row of the horizon, share of the image height (the lens's shift, standing for the pitch)."""
    focal: Range
    """Focal length, share of the image width."""
    vanishing: Range
    """Column of the street's vanishing point, share of the image width."""
    lateral: Range
    """Offset of the camera from the middle of its lane, metres."""
    facades: tuple[Colour, ...]
    """Colours of house fronts."""
    paints: tuple[Colour, ...]
    """Colours of vehicles."""
    clothes: tuple[Colour, ...]
    """Colours of jackets and trousers."""
    skins: tuple[Colour, ...]
    """Skin tones."""
    greens: tuple[Colour, ...]
    """Colours of trees and hedges."""
    grounds: tuple[Colour, ...]
    """Colours of lawns and soil."""
    asphalts: tuple[Colour, ...]
    """Colours of the road."""
    pavings: tuple[Colour, ...]
    """Colours of the pavement."""
    walls: tuple[Colour, ...]
    """Colours of free-standing walls."""
    fences: tuple[Colour, ...]
    """Colours of fences."""
    metals: tuple[Colour, ...]
    """Colours of posts."""
    lamp: Colour = (1.0, 0.80, 0.50)
    """Colour of street lamps."""
    amplitude: float = 0.10
    """Standard deviation of the textures, relative to the colour."""
    grain: float = 1.0
    """Size of the textures' features, relative."""
    crowd: float = 1.0
    """Number of objects, relative."""
    road_width: Range = (3.0, 3.6)
    """Width of one lane, metres."""


# fmt: off
BENCHMARK = World(
    name="benchmark", namespace=0x5E65, camera_height=(1.25, 1.55), horizon=(0.40, 0.47), focal=(0.74, 0.86),
    vanishing=(0.42, 0.58), lateral=(-0.5, 0.5),
    facades=((0.72, 0.42, 0.32), (0.83, 0.74, 0.58), (0.62, 0.60, 0.58), (0.80, 0.66, 0.52), (0.58, 0.45, 0.40), (0.70, 0.74, 0.76), (0.86, 0.82, 0.74), (0.55, 0.58, 0.50)),
    paints=((0.72, 0.12, 0.12), (0.14, 0.25, 0.55), (0.86, 0.86, 0.84), (0.20, 0.21, 0.23), (0.58, 0.60, 0.63), (0.12, 0.40, 0.30), (0.85, 0.62, 0.15), (0.36, 0.52, 0.66)),
    clothes=((0.15, 0.20, 0.38), (0.70, 0.15, 0.18), (0.20, 0.22, 0.22), (0.85, 0.72, 0.25), (0.25, 0.48, 0.38), (0.75, 0.72, 0.68), (0.48, 0.25, 0.45), (0.30, 0.45, 0.65), (0.42, 0.32, 0.24)),
    skins=((0.90, 0.72, 0.60), (0.76, 0.56, 0.42), (0.45, 0.30, 0.22)),
    greens=((0.30, 0.46, 0.20), (0.38, 0.52, 0.22), (0.24, 0.40, 0.22), (0.46, 0.50, 0.20)),
    grounds=((0.44, 0.58, 0.27), (0.52, 0.60, 0.32), (0.56, 0.48, 0.34)),
    asphalts=((0.33, 0.33, 0.34), (0.38, 0.37, 0.37), (0.29, 0.30, 0.32)),
    pavings=((0.66, 0.62, 0.58), (0.60, 0.59, 0.60), (0.70, 0.61, 0.54)),
    walls=((0.58, 0.55, 0.50), (0.68, 0.62, 0.54), (0.50, 0.50, 0.52)),
    fences=((0.45, 0.31, 0.20), (0.24, 0.30, 0.26), (0.82, 0.81, 0.77), (0.52, 0.54, 0.56)),
    metals=((0.46, 0.48, 0.50), (0.30, 0.33, 0.32), (0.60, 0.61, 0.60)),
)

PRIOR = World(
    name="prior", namespace=0x9717, camera_height=(1.40, 1.90), horizon=(0.37, 0.50), focal=(0.66, 0.92),
    vanishing=(0.36, 0.64), lateral=(-0.8, 0.8),
    facades=((0.66, 0.35, 0.27), (0.88, 0.78, 0.62), (0.55, 0.54, 0.55), (0.74, 0.58, 0.46), (0.50, 0.40, 0.38), (0.62, 0.68, 0.72), (0.92, 0.87, 0.80), (0.60, 0.64, 0.54), (0.78, 0.50, 0.38), (0.68, 0.62, 0.66)),
    paints=((0.62, 0.16, 0.14), (0.18, 0.32, 0.62), (0.92, 0.92, 0.90), (0.14, 0.15, 0.16), (0.50, 0.52, 0.54), (0.16, 0.46, 0.26), (0.90, 0.70, 0.22), (0.44, 0.58, 0.70), (0.80, 0.40, 0.14), (0.40, 0.14, 0.26)),
    clothes=((0.20, 0.25, 0.45), (0.62, 0.20, 0.20), (0.14, 0.15, 0.17), (0.90, 0.78, 0.35), (0.20, 0.42, 0.30), (0.82, 0.80, 0.76), (0.55, 0.32, 0.52), (0.36, 0.52, 0.72), (0.50, 0.38, 0.28), (0.80, 0.45, 0.20)),
    skins=((0.86, 0.68, 0.56), (0.70, 0.50, 0.37), (0.40, 0.27, 0.20)),
    greens=((0.26, 0.42, 0.18), (0.42, 0.55, 0.24), (0.22, 0.36, 0.24), (0.50, 0.52, 0.24), (0.32, 0.50, 0.28)),
    grounds=((0.40, 0.54, 0.25), (0.56, 0.63, 0.36), (0.60, 0.52, 0.38)),
    asphalts=((0.30, 0.30, 0.31), (0.41, 0.40, 0.39), (0.35, 0.36, 0.38)),
    pavings=((0.62, 0.59, 0.56), (0.57, 0.56, 0.57), (0.73, 0.65, 0.58)),
    walls=((0.54, 0.52, 0.48), (0.72, 0.66, 0.58), (0.47, 0.47, 0.50)),
    fences=((0.50, 0.36, 0.24), (0.20, 0.26, 0.24), (0.87, 0.86, 0.82), (0.47, 0.49, 0.52)),
    metals=((0.42, 0.44, 0.46), (0.34, 0.36, 0.35), (0.64, 0.65, 0.64)),
    lamp=(1.0, 0.84, 0.58), amplitude=0.08, grain=1.35, crowd=1.1, road_width=(2.9, 3.9),
)
# fmt: on

HIGH_VIEW = replace(
    BENCHMARK, name="high view", namespace=0x51A7, camera_height=(2.0, 2.8), horizon=(0.32, 0.40)
)
"""The benchmark's town seen from higher up, for the SYNTHIA tree."""


def generator(world: World, seed: int, stream: int = 0) -> np.random.Generator:
    """The random stream of (world, seed); `stream` 0 draws the scene, others are the weather's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((world.namespace, seed, stream))))
