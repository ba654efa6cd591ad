"""A perspective camera that paints axis-parallel surfaces into one integer id-buffer.

Coordinates (metres): X right, Y up from the road, Z forward. The lens is shifted instead of tilted, so
verticals stay vertical and the horizon row stands for the pitch:

    u = cu + f (X - cx) / Z          v = horizon - f (Y - h) / Z

Inverse depth is affine in (u, v) on any plane, 1/Z = a u + b v + c, so three numbers a surface give exact
depth. Every fill makes one surface: one id, one row in the tables. Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

SUPERSAMPLING = 2  # pixels of the id-buffer per pixel of the image, along each axis
NEAR = 0.8  # metres; nearer geometry is pulled to this distance
SKY, GROUND, FACES_RIGHT, FACES_LEFT, FACES_CAMERA = range(5)  # orientation of a surface
PLAIN, ASPHALT, PAVERS, BRICK, STONE, LEAVES, GRASS, PLASTER, PLANKS = range(9)  # texture tiles

_SHIFT = 4  # fractional bits of polygon corners


class Look(NamedTuple):
    """What a surface looks like; colours are display RGB in [0, 1]."""

    label: int
    """Train id, 0 to 18, or 255."""
    colour: tuple[float, float, float]
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Light it gives off, seen at night."""
    material: int = PLAIN
    """Texture tile."""
    up: float = 0.0
    """Share of snow it catches, 0 to 1."""
    gloss: float = 0.0
    """Share of sky it mirrors, 0 to 1 (glass, paint)."""


@dataclass(frozen=True)
class Camera:
    """Shifted-lens pinhole camera; pixels are those of the id-buffer."""

    f: float
    """Focal length, pixels."""
    cu: float
    """Column of the vanishing point of the street."""
    horizon: float
    """Row of the horizon."""
    x: float
    """Lateral position, metres."""
    h: float
    """Height above the road, metres."""


class Canvas:
    """The id-buffer [H, W] int32 and the growing table of surfaces; id 0 is the sky."""

    def __init__(self, camera: Camera, height: int, width: int):
        self.camera = camera
        self.ids = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.int32)
        self.looks = [Look(10, (0.6, 0.75, 0.95))]
        self.planes = [(0.0, 0.0, 1e-4)]
        self.facing = [SKY]

    def z(self, z: float, pts, look: Look) -> None:
        """Fill polygons (x, y), [n, 2] or [k, n, 2], on the plane Z = z, which faces the camera."""
        c, p = self.camera, np.asarray(pts, np.float32)
        k = c.f / max(z, NEAR)
        self._fill(
            (p[..., 0] - c.x) * k + c.cu,
            c.horizon - (p[..., 1] - c.h) * k,
            look,
            (0.0, 0.0, k / c.f),
            FACES_CAMERA,
        )

    def x(self, x: float, pts, look: Look) -> None:
        """Fill polygons (z, y) on the plane X = x, a facade along the street."""
        c, p = self.camera, np.asarray(pts, np.float32)
        side = x - c.x if abs(x - c.x) > 1e-3 else 1e-3
        k = c.f / np.maximum(p[..., 0], NEAR)
        a = 1.0 / (c.f * side)
        self._fill(
            side * k + c.cu,
            c.horizon - (p[..., 1] - c.h) * k,
            look,
            (a, 0.0, -c.cu * a),
            FACES_RIGHT if side < 0 else FACES_LEFT,
        )

    def y(self, y: float, pts, look: Look) -> None:
        """Fill polygons (x, z) on the plane Y = y, the ground or a roof."""
        c, p = self.camera, np.asarray(pts, np.float32)
        drop = c.h - y if abs(c.h - y) > 1e-2 else 1e-2
        k = c.f / np.maximum(p[..., 1], NEAR)
        b = 1.0 / (c.f * drop)
        self._fill((p[..., 0] - c.x) * k + c.cu, c.horizon + drop * k, look, (0.0, b, -c.horizon * b), GROUND)

    def free(self, pts, look: Look) -> None:
        """Fill one polygon (x, y, z) of any slope; its depth is its mean depth."""
        c, p = self.camera, np.asarray(pts, np.float32)
        k = c.f / np.maximum(p[:, 2], NEAR)
        self._fill(
            (p[:, 0] - c.x) * k + c.cu,
            c.horizon - (p[:, 1] - c.h) * k,
            look,
            (0.0, 0.0, float(1.0 / max(p[:, 2].mean(), NEAR))),
            FACES_CAMERA,
        )

    def line_z(self, z: float, pts, width: float, look: Look) -> None:
        """Draw a broken line (x, y) of a width in metres on the plane Z = z."""
        c, p = self.camera, np.asarray(pts, np.float32)
        k = c.f / max(z, NEAR)
        q = np.stack(((p[..., 0] - c.x) * k + c.cu, c.horizon - (p[..., 1] - c.h) * k), -1)
        i = self._surface(look, (0.0, 0.0, k / c.f), FACES_CAMERA)
        lines = list(np.rint(q * 16).astype(np.int32)) if q.ndim == 3 else [np.rint(q * 16).astype(np.int32)]
        cv2.polylines(self.ids, lines, False, i, max(1, round(width * k)), cv2.LINE_8, _SHIFT)

    def _surface(self, look: Look, plane: tuple[float, float, float], facing: int) -> int:
        self.looks.append(look)
        self.planes.append(plane)
        self.facing.append(facing)
        return len(self.looks) - 1

    def _fill(self, u, v, look, plane, facing) -> None:
        q = np.empty((*u.shape, 2), np.int32)
        q[..., 0] = u * 16  # 2 ** _SHIFT
        q[..., 1] = v * 16
        cv2.fillPoly(
            self.ids, list(q) if q.ndim == 3 else [q], self._surface(look, plane, facing), shift=_SHIFT
        )


def box(a0: float, a1: float, b0: float, b1: float):
    """Corners of an axis-parallel rectangle."""
    return ((a0, b0), (a1, b0), (a1, b1), (a0, b1))


def grid(
    a0: float, a1: float, b0: float, b1: float, na: int, nb: int, fill_a: float, fill_b: float
) -> np.ndarray:
    """Rectangles [na * nb, 4, 2] of a regular grid over a0..a1, b0..b1, each filling a share of its cell."""
    da, db = (a1 - a0) / na, (b1 - b0) / nb
    a = a0 + da * (np.arange(na) + 0.5)
    b = b0 + db * (np.arange(nb) + 0.5)
    centres = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 1, 2)
    half = np.array([da * fill_a, db * fill_b]) / 2
    return (centres + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])).astype(np.float32)


_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), -1)


def disc(a: float, b: float, r: float, rb: float | None = None) -> np.ndarray:
    """A disc or, with `rb`, an ellipse of 16 corners, [16, 2]."""
    return _CIRCLE * (r, r if rb is None else rb) + (a, b)
