"""Textures and sky: seamless tiles sampled in world coordinates, a drifting cloud field. Source: ours.

Amplitudes are low and features smooth, so that a small autoencoder can reproduce them.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from segshift.town.canvas import FACES_LEFT, FACES_RIGHT, GROUND
from segshift.town.scenes import Layers

_TILE = 64  # pixels a texture tile
_PERIOD = np.array((4.0, 7.0, 1.3, 1.2, 2.4, 2.2, 3.5, 6.0, 1.6), np.float32)  # metres a tile, by material
_REACH = np.array((40.0, 20.0, 16.0, 22.0, 32.0, 35.0, 25.0, 40.0, 25.0), np.float32)  # metres until it blurs
_GAIN = np.array((0.0, 0.55, 1.0, 1.1, 1.1, 1.7, 1.2, 0.6, 0.8), np.float32)


def texture(layers: Layers, x, y, z) -> np.ndarray:
    """Relative brightness of the textures [H2, W2], fading out with distance as detail falls below a
    pixel."""
    w = layers.world
    tiles = _tiles(w.namespace, w.amplitude, w.grain)
    material, facing = layers.looks["material"], layers.looks["facing"]
    scale = (1 / _PERIOD[material]).take(layers.index)
    along = (facing == FACES_RIGHT) | (facing == FACES_LEFT)
    s = np.where(along.take(layers.index), z, x) * scale
    t = np.where((facing == GROUND).take(layers.index), z, -y) * scale
    s = ((s - np.floor(s)) * (_TILE - 0.01)).astype(np.int32)
    t = ((t - np.floor(t)) * (_TILE - 0.01)).astype(np.int32)
    s += t * _TILE
    s += (material.astype(np.int32) * _TILE * _TILE).take(layers.index)
    out = tiles.take(s)
    fade = z * (1 / _REACH[material]).take(layers.index)
    out /= 1 + fade * fade
    return out


def patches(layers: Layers, x, z) -> np.ndarray:
    """Smooth patches on the ground about 0, [H2, W2], from the cloud field in world coordinates."""
    field = _clouds(layers.world.namespace)
    i = ((z * 5).astype(np.int32) & 127) * 512 + ((x * 9).astype(np.int32) & 511)
    return (field.take(i) - 0.35) / (1 + (z / 30) ** 2)


def sky(layers: Layers, rng, night: bool, overcast: bool) -> np.ndarray:
    """Sky [3, H2, W2]: gradient to the horizon with drifting clouds."""
    h, w = layers.ids.shape
    top, low = ((0.30, 0.52, 0.86), (0.78, 0.87, 0.95))
    cloud, cover = (0.97, 0.97, 0.98), float(rng.uniform(0.5, 1.0))
    if overcast:
        top, low, cloud, cover = (0.60, 0.63, 0.67), (0.76, 0.78, 0.80), (0.54, 0.57, 0.61), 0.6
    if night:
        top, low, cloud, cover = (0.02, 0.03, 0.07), (0.10, 0.10, 0.14), (0.09, 0.09, 0.12), 0.7
    if night and overcast:
        top, low, cloud, cover = (0.06, 0.06, 0.08), (0.16, 0.145, 0.14), (0.12, 0.11, 0.11), 0.7
    rows = max(2, min(h, int(layers.camera.horizon) + 2))
    k = np.linspace(0, 1, rows, dtype=np.float32)[None, :, None] ** 1.2
    field = np.roll(_clouds(layers.world.namespace), int(rng.integers(0, 512)), 1)[:, :256]
    field = cv2.resize(field, (w, rows), interpolation=cv2.INTER_LINEAR)[None] * cover
    out = np.empty((3, h, w), np.float32)
    base = np.array(top, np.float32)[:, None, None] * (1 - k) + np.array(low, np.float32)[:, None, None] * k
    out[:, :rows] = base * (1 - field) + np.array(cloud, np.float32)[:, None, None] * field
    out[:, rows:] = out[:, rows - 1 : rows]
    return out


@lru_cache(maxsize=8)
def _tiles(namespace: int, amplitude: float, grain: float) -> np.ndarray:
    """Texture tiles [9 * 64 * 64] float32: relative brightness about 0, seamless."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((namespace, 0x7E87))))

    def clouds(sigma: float) -> np.ndarray:
        x = cv2.GaussianBlur(
            np.tile(rng.standard_normal((_TILE, _TILE)).astype(np.float32), (3, 3)), (0, 0), sigma * grain
        )
        x = x[_TILE : 2 * _TILE, _TILE : 2 * _TILE]
        return x / x.std()

    def courses(rows: int, columns: int, shift: bool) -> np.ndarray:
        y, x = np.mgrid[0:_TILE, 0:_TILE] / _TILE
        row = np.floor(y * rows).astype(int)
        x = (x * columns + (0.5 * (row % 2) if shift else 0)) % columns
        joint = (np.minimum(y * rows % 1, 1 - y * rows % 1) / rows < 0.03) | (
            np.minimum(x % 1, 1 - x % 1) / columns < 0.025
        )
        tint = rng.standard_normal((rows, columns))[row, np.floor(x).astype(int) % columns]
        return (np.where(joint, -1.9, 0.35 + 0.6 * tint)).astype(np.float32)

    tiles = [
        clouds(6),
        clouds(5),
        courses(2, 2, False),
        courses(6, 3, True),
        courses(4, 2, True),
        clouds(4.5),
        clouds(5),
        clouds(9),
        courses(1, 6, False),
    ]
    out = np.stack(tiles) * amplitude * _GAIN[:, None, None]
    return out.astype(np.float32).ravel()


@lru_cache(maxsize=8)
def _clouds(namespace: int) -> np.ndarray:
    """A field of clouds [128, 512] in [0, 1], seamless along the width."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((namespace, 0xC10D))))
    x = 0
    for sigma, weight in ((24, 1.0), (11, 0.6), (5, 0.3)):
        noise = cv2.GaussianBlur(
            np.tile(rng.standard_normal((128, 512)).astype(np.float32), (3, 3)),
            (0, 0),
            sigma * 1.6,
            sigmaY=sigma * 0.55,
        )
        noise = noise[128:256, 512:1024]
        x = x + weight * noise / noise.std()
    return np.clip((x - 0.1) / 1.6, 0, 1).astype(np.float32)
