"""Scenes of the embedded town: a world and a seed become labels, depth and everything the weather needs.
Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segshift.town.canvas import SUPERSAMPLING, Camera, Canvas
from segshift.town.street import Street
from segshift.town.worlds import BENCHMARK, HIGH_VIEW, PRIOR, World, generator

__all__ = ["BENCHMARK", "HIGH_VIEW", "PRIOR", "Layers", "World", "draw", "generator"]


@dataclass(frozen=True)
class Layers:
    """A drawn scene, before any weather. Arrays are at `SUPERSAMPLING` times the image's size, [H2, W2]."""

    world: World
    seed: int
    height: int
    width: int
    camera: Camera
    ids: np.ndarray
    """Surface of each pixel, int32; 0 is the sky."""
    looks: dict[str, np.ndarray]
    """Tables by surface: label u8, colour [n,3], emission [n,3], material, up, gloss, facing, plane [n,3]."""
    sun: tuple[float, float, float]
    """Direct light on faces that look right, left, and at the camera, relative to the ground's."""
    blobs: np.ndarray
    """Contact shadows on the road [n, 4]: x, z, half width, half length, metres."""
    lamps: np.ndarray
    """Street lamps [n, 3]: x, y, z, metres."""
    headlights: np.ndarray
    """Headlights that shine towards the camera [n, 3]: x, y, z, metres."""

    @cached_property
    def label(self) -> np.ndarray:
        """Train ids, uint8 [H2, W2]."""
        return self.looks["label"].take(self.index)

    @cached_property
    def index(self) -> np.ndarray:
        """`ids` in the machine's own index type, which look-ups take without a copy."""
        return self.ids.astype(np.intp)

    def label_at_size(self) -> np.ndarray:
        """Train ids, uint8 [H, W]: one of the pixel's samples, never a mixture."""
        return self.looks["label"].take(self.ids[1::SUPERSAMPLING, 1::SUPERSAMPLING])

    @cached_property
    def depth(self) -> np.ndarray:
        """Distance along the optical axis, metres, float32 [H2, W2]; the sky lies at 10 km."""
        a, b, c = (self.looks["plane"][:, i].take(self.index) for i in range(3))
        h, w = self.ids.shape
        inverse = a * np.arange(w, dtype=np.float32) + b * np.arange(h, dtype=np.float32)[:, None] + c
        return 1.0 / np.maximum(inverse, 1e-4)

    def positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World coordinates X, Y, Z of every sample, metres, float32 [H2, W2] each."""
        camera, z = self.camera, self.depth
        h, w = z.shape
        x = z * ((np.arange(w, dtype=np.float32) - camera.cu) / camera.f) + np.float32(camera.x)
        y = z * ((camera.horizon - np.arange(h, dtype=np.float32)) / camera.f)[:, None] + np.float32(camera.h)
        return x, y, z

    @cached_property
    def albedo(self) -> np.ndarray:
        """Colour under white light, float32 [3, H2, W2] in [0, 1], untextured."""
        return np.stack([self.looks["colour"][:, i].take(self.index) for i in range(3)])

    @cached_property
    def emission(self) -> np.ndarray:
        """Light given off after dark, float32 [3, H2, W2] in [0, 1]."""
        return np.stack([self.looks["emission"][:, i].take(self.index) for i in range(3)])

    @cached_property
    def up(self) -> np.ndarray:
        """How far the surface faces upward (catches snow), float32 [H2, W2] in [0, 1]."""
        return self.looks["up"].take(self.index)

    @cached_property
    def facing(self) -> np.ndarray:
        """Orientation of the surface (canvas.SKY .. FACES_CAMERA), uint8 [H2, W2]."""
        return self.looks["facing"].take(self.index)


def draw(world: World, seed: int, height: int = 128, width: int = 256) -> Layers:
    """Draw one scene of a world at a size (pixels); the same arguments give the same arrays."""
    rng = generator(world, seed)
    s = SUPERSAMPLING

    def uniform(limits: tuple[float, float]) -> float:
        return float(rng.uniform(*limits))

    lane = uniform(world.road_width)
    camera = Camera(
        f=uniform(world.focal) * width * s,
        cu=uniform(world.vanishing) * width * s,
        horizon=uniform(world.horizon) * height * s,
        x=lane / 2 + uniform(world.lateral),
        h=uniform(world.camera_height),
    )
    c = Canvas(camera, height, width)
    street = Street(world, rng, c, lane, seed)
    street.paint()
    looks = c.looks
    rows: dict[str, np.ndarray] = {
        "label": np.array([k.label for k in looks], np.uint8),
        "colour": np.clip(np.array([k.colour for k in looks], np.float32), 0, 1),
        "emission": np.array([k.emission for k in looks], np.float32),
        "material": np.array([k.material for k in looks], np.uint8),
        "up": np.array([k.up for k in looks], np.float32),
        "gloss": np.array([k.gloss for k in looks], np.float32),
        "facing": np.array(c.facing, np.uint8),
        "plane": np.array(c.planes, np.float32),
    }
    left = rng.random() < 0.5
    sun = (1.0, 0.66, uniform((0.74, 0.9))) if left else (0.66, 1.0, uniform((0.74, 0.9)))
    return Layers(
        world=world,
        seed=seed,
        height=height,
        width=width,
        camera=camera,
        ids=c.ids,
        looks=rows,
        sun=sun,
        blobs=np.array(street.blobs, np.float32).reshape(-1, 4),
        lamps=np.array(street.lamps, np.float32).reshape(-1, 3),
        headlights=np.array(street.headlights, np.float32).reshape(-1, 3),
    )
