"""Weather and rendering of a scene: clear, night, fog, rain, snow, game, and their combinations.

    surface   albedo x texture, darkened where wet, white where it faces up under snow
    light     sun and sky by the face's orientation, or lamps, headlights and lit windows falling off with
              distance
    mirror    wet road: the row r of the ground shows the row 2 r0 - r, r0 the ground contact above it
    fog       Koschmieder: L = L0 t + A (1 - t), t = exp(-3.912 d / V), V the visibility (contrast 2 %)
    air       streaks, flakes, glow, sensor noise

Arithmetic is in display values, planar float32 [3, H2, W2]. Source: ours.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from segshift.town.canvas import FACES_CAMERA, FACES_LEFT, FACES_RIGHT, GROUND, SKY, SUPERSAMPLING
from segshift.town.scenes import Layers, generator
from segshift.town.textures import patches, sky, texture

CONDITIONS = ("clear", "night", "fog", "rain", "snow", "game")
"""What `render` knows; "soft" is the further style of the SYNTHIA tree."""

# glibc gives freed memory back to the system beyond twice the largest block it has seen freed, and a frame's
# arrays together are larger than that: without this block, a fifth of the time goes into asking for the same
# pages again.
np.empty(30 << 20, np.uint8)


def render(layers: Layers, conditions: tuple[str, ...], seed: int) -> np.ndarray:
    """Image [H, W, 3] uint8 RGB of a scene under conditions that hold together, as in ("night", "snow").

    `seed` draws the weather (clouds, visibility, flakes) anew over the same scene. The rendered styles
    game and soft know no weather but night.
    """
    unknown = set(conditions) - {*CONDITIONS, "soft"}
    if unknown:
        raise ValueError(f"unknown weather {sorted(unknown)}; expected some of {CONDITIONS}")
    if "game" in conditions or "soft" in conditions:
        return _game(layers, "soft" in conditions, "night" in conditions, seed)
    rng = generator(layers.world, layers.seed, 1000 + seed)
    night, fog, rain, snow = (k in conditions for k in ("night", "fog", "rain", "snow"))
    overcast = fog or rain or snow
    x, y, z = layers.positions()
    ground = layers.facing == GROUND

    colour = layers.albedo * (1 + texture(layers, x, y, z))
    if snow:
        _cover(colour, layers, x, z, rng)
    if rain:
        colour *= np.where(ground, np.float32(0.62), np.float32(0.86))  # water darkens what it soaks

    above = sky(layers, rng, night, overcast)
    colour *= (
        _night(layers, x, y, z, ground, overcast, float(rng.uniform(0.65, 1.0)))
        if night
        else _day(layers, overcast)
    )
    colour *= _contact_shadow(layers, 0.25 if night else 0.35 if overcast else 0.55, not (overcast or night))
    mirrored = above.mean((1, 2), keepdims=True) * (0.6 if night else 1.0)
    colour += layers.looks["gloss"].take(layers.index) * (mirrored - 0.6 * colour)
    if night or overcast:
        colour += layers.emission * (0.9 if night else 0.3)
    _put_sky(colour, layers, above)
    if rain:
        _mirror(colour, layers, ground, x, z, 0.75 if night else 0.6)
    if fog or overcast or night:
        _fog(colour, layers, above, z, night, fog, overcast, rng)
    if night:
        _glow(colour, layers, z, fog)

    image = _at_size(colour, layers)
    if night:  # a lamp saturates softly
        image = np.where(image > 0.7, 0.7 + 0.3 * np.tanh((image - 0.7) / 0.3), image)
    if snow:
        _flakes(image, rng, 0.55 if night else 0.95)
    if rain:
        _streaks(image, rng, 0.35 if night else 0.75)
    if night:
        image += 0.012 * cv2.GaussianBlur(rng.standard_normal(image.shape, np.float32), (0, 0), 0.8)
    return _to_bytes(image)


def _game(layers: Layers, soft: bool, night: bool, seed: int) -> np.ndarray:
    """Rendered style: flat saturated colours, two-step shading, outlines; `soft`: pastel, without
    outlines."""
    rng = generator(layers.world, layers.seed, 2000 + seed)
    grey = layers.albedo.mean(0)
    colour = grey + (1.15 if soft else 1.9) * (layers.albedo - grey)
    if soft:
        colour = 0.17 + 0.8 * colour
    right, left, _ = layers.sun
    faces = {FACES_RIGHT: 1.02 if right > left else 0.62, FACES_LEFT: 1.02 if left > right else 0.62}
    colour *= _by_facing(layers, {GROUND: 1.08, FACES_CAMERA: 0.86, **faces})
    colour *= _contact_shadow(layers, 0.5, True)

    if soft:
        top, low = _rgb(0.62, 0.76, 0.92), _rgb(0.88, 0.92, 0.94)
    elif rng.random() < 0.4:
        top, low = _rgb(0.20, 0.62, 0.98), _rgb(0.80, 0.95, 1.0)
    else:
        top, low = _rgb(0.16, 0.42, 0.96), _rgb(0.98, 0.86, 0.62)
    h, w = layers.ids.shape
    haze = 1 - np.exp(layers.depth * np.float32(-1 / (260 if soft else 450)))
    colour += haze * (low - colour)
    k = np.clip(np.arange(h, dtype=np.float32) / max(2, layers.camera.horizon), 0, 1)[:, None]
    _put_sky(colour, layers, np.broadcast_to(top + k * (low - top), (3, h, w)))
    if night:
        colour *= 0.35
        colour += layers.emission * 0.8
    if not soft:
        colour *= 1 - 0.8 * _outline(layers) / (1 + layers.depth / 60)
    return _to_bytes(_at_size(colour, layers))


def _outline(layers: Layers) -> np.ndarray:
    """1 where label or depth jump from one sample to the next, float32 [H2, W2]."""
    label, z = layers.label, np.log(layers.depth)
    edge = np.zeros(label.shape, np.float32)
    edge[:, 1:] = (label[:, 1:] != label[:, :-1]) | (np.abs(z[:, 1:] - z[:, :-1]) > 0.12)
    edge[1:] = np.maximum(edge[1:], (label[1:] != label[:-1]) | (np.abs(z[1:] - z[:-1]) > 0.25))
    width = 1 + max(1, round(label.shape[0] / 256))
    return cv2.dilate(edge, np.ones((width, width), np.uint8))


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None]


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _fog(colour: np.ndarray, layers: Layers, above, z, night: bool, fog: bool, overcast: bool, rng) -> None:
    """Koschmieder's law in place: what lies at distance z fades into the light scattered on the way."""
    visibility = float(rng.uniform(45, 140)) if fog else float(rng.uniform(200, 320)) if overcast else 900.0
    if fog:
        air = _rgb(0.20, 0.19, 0.18) if night else _rgb(0.74, 0.76, 0.78)
        air = air * float(rng.uniform(0.92, 1.05))
    else:
        row = int(np.clip(layers.camera.horizon, 1, above.shape[1] - 1))
        air = above[:, row].mean(1)[:, None, None]
    t = np.exp(z * np.float32(-3.912 / visibility))
    colour *= t
    colour += air * (1 - t)


def _put_sky(colour: np.ndarray, layers: Layers, sky: np.ndarray) -> None:
    """Put the sky where no surface is, in place; below the horizon there is none."""
    rows = slice(0, max(2, int(layers.camera.horizon) + 2))
    mask = (layers.facing[rows] == SKY).astype(np.float32)
    colour[:, rows] *= 1 - mask
    colour[:, rows] += mask * sky[:, rows]


def _at_size(colour: np.ndarray, layers: Layers) -> np.ndarray:
    """Area average of the samples, [3, H2, W2] to [H, W, 3]."""
    size = (layers.width, layers.height)
    return cv2.merge([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in colour])


def _by_facing(layers: Layers, values: dict[int, float]) -> np.ndarray:
    """Spread one number a face orientation over the surfaces, [H2, W2]."""
    table = np.ones(5, np.float32)
    for k, v in values.items():
        table[k] = v
    return table[layers.looks["facing"]].take(layers.index)


def _day(layers: Layers, overcast: bool) -> np.ndarray:
    """Daylight [3, H2, W2]: sun and sky when clear, an even grey sky when overcast."""
    right, left, front = layers.sun
    if overcast:
        right, left, front = (0.80 + 0.06 * v for v in (right, left, front))
    shade = _by_facing(
        layers,
        {GROUND: 0.94 if overcast else 1.06, FACES_RIGHT: right, FACES_LEFT: left, FACES_CAMERA: front},
    )
    return shade * (_rgb(0.86, 0.89, 0.93) if overcast else _rgb(1.06, 1.02, 0.95))


def _night(layers: Layers, x, y, z, ground, overcast: bool, exposure: float) -> np.ndarray:
    """Night light [3, H2, W2]: town glow, street lamps, our headlights and those that come towards us."""
    s = slice(None, None, SUPERSAMPLING)  # light varies slowly: one sample a pixel is enough
    xs, ys, zs, ground = x[s, s], y[s, s], z[s, s], ground[s, s]
    camera = layers.camera
    lamps = np.zeros_like(xs)
    power, spot = (
        np.where(ground, np.float32(24), np.float32(11)),
        np.where(ground, np.float32(8), np.float32(10)),
    )
    for lx, ly, lz in layers.lamps:
        d2 = (xs - lx) ** 2 + (ys - ly) ** 2 + (zs - lz) ** 2
        lamps += power / (d2 + spot)
    if not len(layers.lamps):
        lamps += 0.15
    spread = (xs - camera.x) / (2.2 + 0.28 * zs)
    beam = 0.50 * np.exp(-spread * spread) / (1 + (zs / 15) ** 2)
    beam *= np.where(ys < 1.2, np.float32(1), np.exp(-(np.maximum(ys, 1.2) - 1.2) / 1.1))
    for hx, _hy, hz in layers.headlights:
        dz = hz - zs  # they light the road before them
        d2 = (xs - hx) ** 2 + (dz - 3.0) ** 2 * 0.35 + ys**2
        beam += np.where(dz > -0.5, 1.3 / (d2 + 2.0), 0)
    light = _rgb(0.085, 0.10, 0.155) * (1.25 if overcast else 1.0)  # the town's glow, stronger under clouds
    light = light + _rgb(*layers.world.lamp) * np.minimum(lamps, 1.2) * 0.85
    light += _rgb(1.0, 0.96, 0.88) * np.minimum(beam, 0.8) * 0.85
    light = np.minimum(light * exposure, 1.0).astype(np.float32)
    return light.repeat(SUPERSAMPLING, 1).repeat(SUPERSAMPLING, 2)


def _contact_shadow(layers: Layers, strength: float, sunny: bool) -> np.ndarray:
    """Factor [H2, W2] that darkens the ground under things, softened."""
    mask = np.zeros((layers.height, layers.width), np.uint8)
    camera, k = layers.camera, 1 / SUPERSAMPLING
    lean = (0.5 if layers.sun[0] < layers.sun[1] else -0.5) if sunny else 0.0
    for x, z, half_w, half_l in layers.blobs:
        shift = lean * min(half_w, 1.0)
        xs = np.array((-half_w, half_w, half_w + lean, -half_w + lean)) + (x + shift - camera.x)
        f = camera.f / np.maximum((z - half_l, z - half_l, z + half_l, z + half_l), 1.5)
        uv = np.stack((xs * f + camera.cu, camera.horizon + camera.h * f), 1) * k
        cv2.fillPoly(mask, [np.rint(uv).astype(np.int32)], 255)
    size = max(3, layers.width // 64 * 2 + 1)
    soft = cv2.blur(mask, (size, max(3, size // 2 | 1)))
    soft = cv2.resize(
        soft, (mask.shape[1] * SUPERSAMPLING, mask.shape[0] * SUPERSAMPLING), interpolation=cv2.INTER_LINEAR
    )
    return np.where(layers.facing == GROUND, 1 - soft * np.float32(strength / 255), np.float32(1))


def _cover(colour: np.ndarray, layers: Layers, x, z, rng) -> None:
    """Snow on what faces up; wheels keep tracks in the road open, pavements are half swept."""
    label = layers.label
    cover = layers.up * float(rng.uniform(0.85, 1.0))
    lane = np.abs(np.abs(x) - 1.7)  # distance from the middle of either lane
    track = np.exp(-(((lane - 0.75) / 0.3) ** 2))
    heavy = float(rng.uniform(0.85, 1.25))
    cover = np.where(label == 0, cover * heavy * (1 - 0.75 * track), cover)
    cover = np.where(label == 1, cover * 0.88, cover)
    cover = np.clip(cover * (1 + 0.3 * patches(layers, x, z)), 0, 0.96)
    colour *= 1 - cover
    colour += cover * _rgb(0.93, 0.95, 0.98)


def _mirror(colour: np.ndarray, layers: Layers, ground, x, z, strength: float) -> None:
    """Reflect what stands above the ground contact in the wet ground, smeared along the column."""
    h, w = ground.shape
    rows = np.arange(h, dtype=np.int32)[:, None]
    contact = np.where(ground, np.int32(0), rows)
    # Ten times faster than np.maximum.accumulate along columns
    for above, row in itertools.pairwise(contact):
        np.maximum(above, row, out=row)
    source = np.clip(2 * contact - rows, 0, h - 1)
    index = source.astype(np.intp) * w + np.arange(w)
    k = max(3, h // 40) | 1
    wet = np.clip(0.75 + patches(layers, x, z), 0.35, 1.1) * strength
    fresnel = np.clip(0.35 + z / 40, 0, 1)
    weight = np.where(ground, wet * fresnel, 0).astype(np.float32)
    for i in range(3):
        image = cv2.blur(colour[i].take(index), (1 + k // 4 * 2, k))
        colour[i] += weight * (image * 0.92 - colour[i] * 0.75)
    np.clip(colour, 0, 1.5, out=colour)


def _glow(colour: np.ndarray, layers: Layers, z, fog: bool) -> None:
    """Light scattered about lamps and lit windows (bloom; wide in fog)."""
    h, w = z.shape
    for i in range(3):
        small = cv2.resize(
            layers.emission[i] / (1 + z * np.float32(0.02 if fog else 0.004)),
            (w // 4, h // 4),
            interpolation=cv2.INTER_AREA,
        )
        small = cv2.GaussianBlur(small, (0, 0), w / 4 * (0.030 if fog else 0.014)) * (1.3 if fog else 0.55)
        colour[i] += cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)


def _flakes(image: np.ndarray, rng, white: float) -> None:
    """Falling snow in three sizes, in place."""
    h, w = image.shape[:2]
    layer: np.ndarray = np.zeros((h, w), np.float32)
    for share, radius in ((1 / 260, 0.5), (1 / 700, 0.9), (1 / 2600, 1.4)):
        n = int(rng.poisson(share * 128 * 128 * w / h))
        r = max(1, round(radius * h / 128))
        for u, v in (rng.random((n, 2)) * (w, h)).astype(int).tolist():
            cv2.circle(layer, (u, v), r - 1 if radius < 0.6 else r, 0.85, -1)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.55 * h / 128)[..., None]
    image *= 1 - layer
    image += layer * white


def _streaks(image: np.ndarray, rng, white: float) -> None:
    """Falling rain as short slanted lines, in place."""
    h, w = image.shape[:2]
    layer: np.ndarray = np.zeros((h, w), np.float32)
    n, slant = int(rng.poisson(35 * w / h)), float(rng.uniform(-0.25, 0.25))
    length = rng.uniform(0.04, 0.11, n) * h
    u, v = rng.random(n) * w, rng.random(n) * h
    ends = np.rint(np.stack((u, v, u + slant * length, v + length), 1)).astype(int).reshape(n, 2, 2)
    cv2.polylines(layer, list(ends), False, 0.5, max(1, h // 128))
    layer = cv2.GaussianBlur(layer, (0, 0), 0.5 * h / 128)[..., None]
    image *= 1 - layer
    image += layer * white
