"""People, two-wheelers, trees, posts, lights and signs, each painted far parts first. Source: ours."""

from __future__ import annotations

import numpy as np

from segshift.town.canvas import LEAVES, Canvas, Look, box, disc, grid
from segshift.town.vehicles import BLACK, CHROME, RED_GLOW, RUBBER, WHITE_GLOW, pick, tone

POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, MOTORCYCLE, BICYCLE = 5, 6, 7, 8, 11, 12, 17, 18


def person(c: Canvas, rng, x: float, z: float, clothes, skin, height: float) -> None:
    """Standing or walking figure."""
    h, step = height, rng.uniform(0.03, 0.2) * pick(rng, (-1, 1))
    jacket, trousers = (tuple(v) for v in clothes)
    look = lambda colour: Look(PERSON, colour)  # noqa: E731
    place = lambda pts: np.asarray(pts) * h + (x, 0)  # noqa: E731
    c.z(z, place(((-0.10, 0.50), (0.0, 0.50), (step + 0.04, 0.03), (step - 0.05, 0.03))), look(trousers))
    c.z(
        z,
        place(((0.0, 0.50), (0.10, 0.50), (-step + 0.05, 0.03), (-step - 0.04, 0.03))),
        look(tone(trousers, 0.85)),
    )
    c.z(
        z,
        place(
            np.array([box(step - 0.06, step + 0.07, 0.0, 0.04), box(-step - 0.06, -step + 0.07, 0.0, 0.04)])
        ),
        look(BLACK),
    )
    coat = 0.38 if rng.random() < 0.35 else 0.46
    c.z(
        z,
        place(((-0.15, 0.82), (-0.21, 0.50), (-0.15, 0.46), (0.15, 0.46), (0.21, 0.50), (0.15, 0.82))),
        look(tone(jacket, 0.8)),
    )
    c.z(z, place(((-0.11, 0.84), (-0.13, coat), (0.13, coat), (0.11, 0.84))), Look(PERSON, jacket, up=0.1))
    if rng.random() < 0.35:
        bag = tone(trousers, 1.3)
        c.z(z, place(box(0.08, 0.24, 0.38, 0.55)), look(bag))
    c.z(z, place(disc(0, 0.92, 0.066, 0.082)), look(skin))
    c.z(
        z,
        place(((-0.07, 0.93), (-0.06, 0.99), (0.0, 1.01), (0.06, 0.99), (0.07, 0.93), (0.0, 0.955))),
        Look(
            PERSON,
            pick(rng, ((0.1, 0.08, 0.06), (0.35, 0.22, 0.1), (0.7, 0.55, 0.3), (0.4, 0.4, 0.42))),
            up=0.5,
        ),
    )


def _wheels(c, z, place, label, gap, r, tyre, hub):
    for s in (-gap, gap):
        c.z(z, place(disc(s, r, r)), Look(label, RUBBER))
        c.z(z, place(disc(s, r, r - tyre)), Look(label, hub))


def bicycle(c: Canvas, rng, x: float, z: float, paint, facing: int) -> None:
    """Bicycle from the side; the wheel's disc is bicycle, as the benchmarks' polygons have it."""
    place = lambda pts: np.asarray(pts) * (facing * 1.12, 1.12) + (x, 0)  # noqa: E731
    _wheels(c, z, place, BICYCLE, 0.52, 0.36, 0.07, (0.52, 0.53, 0.55))
    frame = Look(BICYCLE, paint, gloss=0.1)
    c.line_z(z, place(((-0.52, 0.36), (-0.12, 0.36), (-0.22, 0.86), (-0.52, 0.36))), 0.08, frame)
    c.line_z(z, place(((-0.20, 0.80), (0.36, 0.84), (-0.12, 0.36))), 0.08, frame)
    c.line_z(z, place(((0.52, 0.36), (0.36, 0.98), (0.5, 1.03))), 0.07, frame)
    c.z(z, place(box(-0.36, -0.1, 0.88, 0.96)), Look(BICYCLE, BLACK, up=0.8))
    c.z(z, place(disc(-0.12, 0.36, 0.11)), Look(BICYCLE, CHROME))


def motorcycle(c: Canvas, rng, x: float, z: float, paint, facing: int) -> None:
    """Motorcycle from the side: fat tyres, engine, tank, fairing, seat, exhaust."""
    place = lambda pts: np.asarray(pts) * (facing * 1.1, 1.1) + (x, 0)  # noqa: E731
    _wheels(c, z, place, MOTORCYCLE, 0.72, 0.34, 0.13, (0.42, 0.43, 0.45))
    c.z(
        z, place(((-0.5, 0.3), (0.4, 0.26), (0.48, 0.62), (-0.5, 0.66))), Look(MOTORCYCLE, (0.24, 0.24, 0.26))
    )
    c.z(z, place(disc(0.05, 0.42, 0.17)), Look(MOTORCYCLE, CHROME))
    c.z(z, place(((-1.0, 0.24), (-0.2, 0.24), (-0.2, 0.34), (-1.0, 0.36))), Look(MOTORCYCLE, CHROME))
    c.z(
        z,
        place(((-0.95, 0.72), (-0.9, 0.86), (-0.2, 0.80), (-0.1, 0.62), (-0.5, 0.6))),
        Look(MOTORCYCLE, paint, gloss=0.15),
    )
    c.z(z, place(((-0.85, 0.84), (-0.2, 0.78), (-0.15, 0.88), (-0.8, 0.92))), Look(MOTORCYCLE, BLACK, up=0.8))
    c.z(
        z,
        place(((-0.2, 0.66), (-0.12, 0.98), (0.25, 1.0), (0.48, 0.78), (0.3, 0.58))),
        Look(MOTORCYCLE, paint, gloss=0.2),
    )
    c.z(
        z,
        place(((0.42, 0.66), (0.5, 1.08), (0.68, 0.98), (0.74, 0.72))),
        Look(MOTORCYCLE, tone(paint, 0.8), gloss=0.2),
    )
    c.line_z(z, place(((0.72, 0.34), (0.46, 1.06), (0.3, 1.14))), 0.09, Look(MOTORCYCLE, (0.3, 0.3, 0.32)))
    c.z(z, place(disc(0.70, 0.86, 0.09)), Look(MOTORCYCLE, (0.95, 0.94, 0.85), WHITE_GLOW))
    c.z(z, place(box(-1.0, -0.9, 0.7, 0.82)), Look(MOTORCYCLE, (0.8, 0.08, 0.07), RED_GLOW))


def rider(c: Canvas, rng, x: float, z: float, clothes, skin, facing: int, on: str) -> None:
    """Figure seated on a two-wheeler painted before at the same place: bent legs, arms to the handlebar."""
    place = lambda pts: np.asarray(pts) * (facing * 1.12, 1.12) + (x, 0)  # noqa: E731
    jacket, trousers = (tuple(v) for v in clothes)
    helmet = pick(rng, ((0.92, 0.92, 0.9), (0.85, 0.12, 0.1), (0.12, 0.14, 0.2), (0.95, 0.75, 0.1)))
    look = lambda colour: Look(RIDER, colour)  # noqa: E731
    dx, hand = (0.0, (0.42, 1.08)) if on == "bicycle" else (-0.12, (0.36, 1.14))
    knee, foot = ((0.16, 0.66), (-0.06, 0.24)) if on == "bicycle" else ((0.22, 0.68), (0.0, 0.30))
    c.line_z(z, place(((-0.2 + dx, 0.95), knee, foot)), 0.21, look(trousers))
    c.z(z, place(box(foot[0] - 0.08, foot[0] + 0.16, foot[1] - 0.1, foot[1] + 0.02)), look(BLACK))
    c.z(
        z,
        place(
            (
                (-0.38 + dx, 0.88),
                (-0.34 + dx, 1.1),
                (-0.10 + dx, 1.52),
                (0.16 + dx, 1.50),
                (0.10 + dx, 1.2),
                (-0.02 + dx, 0.88),
            )
        ),
        Look(RIDER, jacket, up=0.15),
    )
    c.line_z(z, place(((0.05 + dx, 1.42), (0.18, 1.16), hand)), 0.14, look(tone(jacket, 0.78)))
    c.z(z, place(disc(0.12 + dx, 1.65, 0.135, 0.15)), look(skin))
    c.z(
        z,
        place(
            ((-0.05 + dx, 1.62), (-0.04 + dx, 1.77), (0.1 + dx, 1.84), (0.24 + dx, 1.79), (0.28 + dx, 1.70))
        ),
        Look(RIDER, helmet, up=0.5, gloss=0.2),
    )


def two_wheeler_behind(
    c: Canvas, rng, x: float, z: float, paint, on: str, ridden: bool, clothes, skin
) -> None:
    """A two-wheeler seen from behind, with its rider if ridden."""
    label = BICYCLE if on == "bicycle" else MOTORCYCLE
    wide = 0.09 if on == "bicycle" else 0.17
    place = lambda pts: np.asarray(pts) * 1.12 + (x, 0)  # noqa: E731
    c.z(
        z,
        place(
            ((-wide, 0.08), (-wide * 0.6, 0.0), (wide * 0.6, 0.0), (wide, 0.08), (wide, 0.66), (-wide, 0.66))
        ),
        Look(label, RUBBER),
    )
    bar = 0.34 if on == "bicycle" else 0.42
    c.line_z(z, place(((-bar, 1.02), (bar, 1.02))), 0.08, Look(label, (0.25, 0.25, 0.27)))
    if on == "motorcycle":
        c.z(
            z,
            place(((-0.26, 0.62), (-0.30, 0.9), (0.30, 0.9), (0.26, 0.62), (0.14, 0.45), (-0.14, 0.45))),
            Look(label, paint, gloss=0.15),
        )
        c.z(
            z,
            place(np.stack([disc(s, 1.16, 0.1, 0.07) for s in (-0.4, 0.4)])),
            Look(label, (0.3, 0.32, 0.35)),
        )
    else:
        c.line_z(z, place(((0, 0.5), (0, 0.95))), 0.09, Look(label, paint))
    c.z(z, place(box(-0.1, 0.1, 0.60, 0.70)), Look(label, (0.8, 0.08, 0.07), RED_GLOW))
    c.z(z, place(box(-0.14, 0.14, 0.88, 0.96)), Look(label, BLACK, up=0.8))
    if ridden:
        jacket, trousers = (tuple(v) for v in clothes)
        c.z(
            z,
            place(
                np.array(
                    [
                        ((-0.08, 0.95), (-0.26, 0.9), (-0.24, 0.3), (-0.12, 0.3)),
                        ((0.08, 0.95), (0.26, 0.9), (0.24, 0.3), (0.12, 0.3)),
                    ]
                )
            ),
            Look(RIDER, trousers),
        )
        c.z(
            z,
            place(
                np.array(
                    [
                        ((-0.24, 1.42), (-0.38, 1.05), (-0.28, 1.0), (-0.15, 1.3)),
                        ((0.24, 1.42), (0.38, 1.05), (0.28, 1.0), (0.15, 1.3)),
                    ]
                )
            ),
            Look(RIDER, tone(jacket, 0.78)),
        )
        c.z(
            z,
            place(((-0.2, 0.88), (-0.25, 1.40), (-0.12, 1.5), (0.12, 1.5), (0.25, 1.40), (0.2, 0.88))),
            Look(RIDER, jacket, up=0.15),
        )
        c.z(
            z,
            place(disc(0, 1.66, 0.14, 0.17)),
            Look(
                RIDER, pick(rng, ((0.92, 0.92, 0.9), (0.85, 0.12, 0.1), (0.95, 0.75, 0.1))), up=0.4, gloss=0.2
            ),
        )


_TURN = np.linspace(0, 2 * np.pi, 27, endpoint=False)
_ROUND = np.stack((np.cos(_TURN), np.sin(_TURN)), -1)


def crown(rng, r: float, rb: float) -> np.ndarray:
    """Bumpy outline [27, 2] of a tree's crown, r wide and rb high to each side."""
    bumps = 1 + 0.10 * np.abs(np.sin(4.5 * _TURN + rng.uniform(0, 6))) + 0.03 * rng.standard_normal(27)
    return _ROUND * bumps[:, None] * (r, rb)


def tree(c: Canvas, rng, x: float, z: float, green, height: float, conifer: bool) -> None:
    """Trunk and a crown in three tones, lit from above."""
    trunk = (0.36, 0.27, 0.20)
    r = height * rng.uniform(0.26, 0.34)
    w = 0.035 * height
    c.z(
        z,
        ((x - w, 0), (x + w, 0), (x + w * 0.7, height * 0.55), (x - w * 0.7, height * 0.55)),
        Look(VEGETATION, trunk),
    )
    if conifer:
        for i, shade in enumerate((0.72, 0.9, 1.06)):
            y0, k = height * (0.18 + 0.26 * i), 1 - 0.24 * i
            c.z(
                z,
                (
                    (x - r * k, y0),
                    (x + r * k, y0),
                    (x + r * 0.12, y0 + height * 0.36),
                    (x - r * 0.12, y0 + height * 0.36),
                ),
                Look(VEGETATION, tone(green, shade), material=LEAVES, up=0.35 + 0.2 * i),
            )
        return
    cy = height - r * 1.05
    for dx, dy, k, shade, up in (
        (0, 0, 1, 0.68, 0.3),
        (-0.12, 0.14, 0.78, 0.88, 0.62),
        (-0.2, 0.32, 0.5, 1.12, 0.9),
    ):
        c.z(
            z,
            crown(rng, r * k, r * 1.05 * k) + np.array((x + dx * r, cy + dy * r)),
            Look(VEGETATION, tone(green, shade), material=LEAVES, up=up),
        )


def post(c: Canvas, x: float, z: float, height: float, width: float, colour) -> None:
    """A round post: a lit, a middle and a dark stripe."""
    h = width / 2
    c.z(z, box(x - h, x + h, 0, height), Look(POLE, colour))
    c.z(z, box(x + h * 0.25, x + h, 0, height), Look(POLE, tone(colour, 0.68)))
    c.z(z, box(x - h * 1.7, x + h * 1.7, 0, 0.35), Look(POLE, tone(colour, 0.8)))


def street_lamp(
    c: Canvas, x: float, z: float, height: float, reach: float, colour
) -> tuple[float, float, float]:
    """Lamp post whose arm reaches over the street; returns where its light is."""
    post(c, x, z, height, 0.24, colour)
    c.line_z(
        z,
        ((x, height - 0.1), (x + reach * 0.5, height + 0.25), (x + reach, height + 0.25)),
        0.14,
        Look(POLE, colour),
    )
    c.z(
        z,
        box(x + reach - 0.45, x + reach + 0.45, height + 0.12, height + 0.36),
        Look(POLE, tone(colour, 0.7), up=1.0),
    )
    c.z(
        z,
        box(x + reach - 0.38, x + reach + 0.38, height + 0.04, height + 0.16),
        Look(POLE, (0.93, 0.92, 0.85), (1.0, 0.88, 0.62)),
    )
    return x + reach, height, z


def traffic_light(c: Canvas, rng, x: float, z: float, y: float, size: float = 1.0) -> None:
    """Three lenses in a dark housing with a pale rim; y is its middle."""
    w, h = 0.34 * size, 0.88 * size
    state = int(rng.integers(0, 3))
    c.z(
        z,
        box(x - w - 0.07, x + w + 0.07, y - h - 0.07, y + h + 0.07),
        Look(LIGHT, (0.80, 0.80, 0.77), up=0.2),
    )
    c.z(z, box(x - w, x + w, y - h, y + h), Look(LIGHT, (0.10, 0.11, 0.11)))
    colours = ((0.98, 0.16, 0.10), (1.0, 0.72, 0.12), (0.16, 0.92, 0.48))
    for i, colour in enumerate(colours):
        lit = i == state
        c.z(
            z,
            disc(x, y + (1 - i) * h * 0.62, w * 0.72),
            Look(LIGHT, colour if lit else tone(colour, 0.32), colour if lit else (0, 0, 0)),
        )


SIGNS = ("circle", "triangle", "stop", "square", "diamond", "board", "no")


def traffic_sign(c: Canvas, rng, x: float, z: float, y: float, r: float, kind: str) -> None:
    """Traffic sign of a kind; y is its middle, r its radius."""
    white, red, blue, yellow, black = (
        (0.95, 0.95, 0.93),
        (0.82, 0.09, 0.10),
        (0.10, 0.30, 0.68),
        (0.97, 0.80, 0.12),
        (0.1, 0.1, 0.1),
    )
    put = lambda pts, colour: c.z(z, np.asarray(pts) + np.array((x, y)), Look(SIGN, colour))  # noqa: E731
    tri = lambda k: np.array(((-0.95, -0.7), (0.95, -0.7), (0, 0.95))) * r * k  # noqa: E731
    if kind == "circle":
        put(disc(0, 0, r), red)
        put(disc(0, 0, r * 0.72), white)
        put(
            np.array(
                [box(-0.38 * r, -0.1 * r, -0.35 * r, 0.35 * r), box(0.1 * r, 0.38 * r, -0.35 * r, 0.35 * r)]
            ),
            black,
        )
    elif kind == "triangle":
        put(tri(1.1), red)
        put(tri(0.68) - (0, 0.04 * r), white)
        put(box(-0.09 * r, 0.09 * r, -0.3 * r, 0.25 * r), black)
    elif kind == "stop":
        a = np.pi / 8 + np.arange(8) * np.pi / 4
        octagon = np.stack((np.cos(a), np.sin(a)), -1) * r
        put(octagon * 1.05, white)
        put(octagon * 0.94, red)
        put(grid(-0.7 * r, 0.7 * r, -0.22 * r, 0.22 * r, 4, 1, 0.7, 1), white)
    elif kind == "square":
        put(box(-r * 0.9, r * 0.9, -r * 0.9, r * 0.9), blue)
        put(tri(0.62), white)
    elif kind == "diamond":
        put(np.array(((0, -1), (1, 0), (0, 1), (-1, 0))) * r * 1.08, white)
        put(np.array(((0, -1), (1, 0), (0, 1), (-1, 0))) * r * 0.78, yellow)
    elif kind == "no":
        put(disc(0, 0, r), red)
        put(box(-0.68 * r, 0.68 * r, -0.18 * r, 0.18 * r), white)
    else:
        colour = blue if rng.random() < 0.5 else (0.07, 0.42, 0.25)
        put(box(-1.7 * r, 1.7 * r, -0.85 * r, 0.85 * r), white)
        put(box(-1.6 * r, 1.6 * r, -0.75 * r, 0.75 * r), colour)
        put(grid(-1.35 * r, 0.7 * r, -0.5 * r, 0.5 * r, 1, 2, 1, 0.45), white)
        put(
            (
                (0.95 * r, -0.4 * r),
                (1.35 * r, -0.4 * r),
                (1.35 * r, 0.5 * r),
                (1.15 * r, 0.65 * r),
                (0.95 * r, 0.5 * r),
            ),
            white,
        )
