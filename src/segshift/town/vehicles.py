"""Cars, buses, lorries, trams: a profile extruded along the street, with decals on side and face. Source:
ours.

Side decals are given along the vehicle's length (s, y), so that one description serves a vehicle seen from
behind or in front (`along`) and one that crosses the street (`across`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from segshift.town.canvas import PLASTER, Canvas, Look, box, disc, grid

GLASS = (0.20, 0.25, 0.31)
BLACK = (0.09, 0.09, 0.10)
RUBBER = (0.11, 0.11, 0.12)
CHROME = (0.66, 0.67, 0.69)
RED_GLOW = (0.95, 0.10, 0.06)
WHITE_GLOW = (1.0, 0.96, 0.82)

CAR, TRUCK, BUS, TRAIN = 13, 14, 15, 16


def pick(rng, options):
    """One of the options (`Generator.choice` is ten times slower on short tuples)."""
    return options[int(rng.integers(len(options)))]


def tone(colour, factor: float):
    """A colour made darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        return tuple(c * factor for c in colour)
    return tuple(1 - (1 - c) / factor for c in colour)


@dataclass
class Body:
    """A vehicle about its near lower left corner: length s, width x, height y, all in metres."""

    label: int
    width: float
    outline: list  # (s, y, inset) from the near end over the roof to the far end
    paint: tuple
    side: list = field(default_factory=list)  # (polygons in (s, y), Look)
    face: list = field(default_factory=list)  # (polygons in (x, y), Look), near end, x from -width/2
    strips: list = field(default_factory=list)  # Look of the strip between outline points i and i + 1
    lights: list = field(default_factory=list)  # (x, y) of headlights on the face, if it comes towards us


def car(rng, paint, coming: bool) -> Body:
    """Saloon, hatchback, estate, or van-like people carrier."""
    h = pick(rng, (1.42, 1.48, 1.62))
    length = rng.uniform(3.9, 4.6)
    hood, trunk = 1.15, (0.7 if rng.random() < 0.4 else 0.12)
    front, rear = (hood, trunk) if coming else (trunk, hood)
    fy, ry = (0.92, 0.96) if coming else (0.98, 0.92)
    cabin0, cabin1 = front + (0.7 if coming else 0.45), length - rear - (0.45 if coming else 0.7)
    outline = [
        (0.0, 0.32, 0),
        (0.0, 0.72 if coming else 0.92, 0),
        (front, fy, 0.03),
        (cabin0, h, 0.22),
        (cabin1, h, 0.22),
        (length - rear, ry, 0.03),
        (length, 0.75, 0),
        (length, 0.32, 0),
    ]
    body, glass = Look(CAR, paint, gloss=0.12), Look(CAR, GLASS, gloss=0.35)
    top = Look(CAR, tone(paint, 1.25), up=1.0, gloss=0.25)
    b = Body(CAR, 1.82, outline, paint, strips=[body, top, glass, top, glass, top, body])
    b.side = [
        (
            (
                (front + 0.22, fy + 0.03),
                (cabin0 + 0.08, h - 0.1),
                (cabin1 - 0.08, h - 0.1),
                (length - rear - 0.22, ry + 0.03),
            ),
            glass,
        ),
        (box((cabin0 + cabin1) / 2 - 0.05, (cabin0 + cabin1) / 2 + 0.05, fy, h - 0.08), body),
        (box(0.0, length, 0.32, 0.42), Look(CAR, tone(paint, 0.55))),
        (np.stack([disc(s, 0.33, 0.35) for s in (0.8, length - 0.8)]), Look(CAR, RUBBER)),
        (np.stack([disc(s, 0.33, 0.19) for s in (0.8, length - 0.8)]), Look(CAR, CHROME)),
    ]
    top_y = 0.72 if coming else 0.92
    b.face = [
        (box(-0.91, 0.91, 0.30, 0.44), Look(CAR, tone(paint, 0.5))),
        (np.array([box(-0.86, -0.58, 0.12, 0.34), box(0.58, 0.86, 0.12, 0.34)]), Look(CAR, RUBBER)),
        (box(-0.26, 0.26, 0.46, 0.58), Look(CAR, (0.9, 0.9, 0.86))),
    ]
    if coming:
        b.face += [
            (box(-0.45, 0.45, 0.50, 0.66), Look(CAR, BLACK)),
            (
                np.array([box(-0.88, -0.52, 0.54, 0.70), box(0.52, 0.88, 0.54, 0.70)]),
                Look(CAR, (0.93, 0.94, 0.9), WHITE_GLOW),
            ),
        ]
        b.lights = [(-0.7, 0.62), (0.7, 0.62)]
    else:
        b.face += [
            (
                np.array([box(-0.89, -0.6, 0.68, top_y - 0.04), box(0.6, 0.89, 0.68, top_y - 0.04)]),
                Look(CAR, (0.75, 0.08, 0.07), RED_GLOW),
            )
        ]
    return b


def bus(rng, paint, coming: bool) -> Body:
    """City bus: long glass band with pillars, doors, destination sign."""
    length, h, w = rng.uniform(9, 12), 3.05, 2.55
    glass = Look(BUS, GLASS, (0.62, 0.55, 0.36), gloss=0.3)
    body, roof = Look(BUS, paint, gloss=0.08), Look(BUS, tone(paint, 1.5), up=1.0)
    b = Body(
        BUS,
        w,
        [
            (0.0, 0.35, 0),
            (0.0, h - 0.12, 0),
            (0.15, h, 0.08),
            (length - 0.15, h, 0.08),
            (length, h - 0.12, 0),
            (length, 0.35, 0),
        ],
        paint,
        strips=[body, roof, roof, roof, body],
    )
    n = int(length / 1.5)
    b.side = [
        (box(0.1, length - 0.1, 0.35, 0.72), Look(BUS, tone(paint, 0.62))),
        (box(0.15, length - 0.15, 1.35, 2.55), Look(BUS, BLACK)),
        (grid(0.2, length - 0.2, 1.4, 2.5, n, 1, 0.86, 1.0), glass),
        (
            np.array([box(length * q, length * q + 1.15, 0.42, 2.5) for q in (0.12, 0.55)]),
            Look(BUS, tone(GLASS, 1.35), (0.6, 0.55, 0.4)),
        ),
        (np.stack([disc(s, 0.48, 0.5) for s in (length * 0.25 + 0.6, length * 0.8)]), Look(BUS, RUBBER)),
        (np.stack([disc(s, 0.48, 0.24) for s in (length * 0.25 + 0.6, length * 0.8)]), Look(BUS, CHROME)),
    ]
    b.face = [
        (box(-1.2, 1.2, 0.30, 0.55), Look(BUS, tone(paint, 0.5))),
        (np.array([box(-1.15, -0.8, 0.05, 0.32), box(0.8, 1.15, 0.05, 0.32)]), Look(BUS, RUBBER)),
        (box(-1.1, 1.1, 1.15 if coming else 1.55, 2.35), Look(BUS, GLASS, (0.22, 0.20, 0.14), gloss=0.3)),
        (box(-0.85, 0.85, 2.48, 2.85), Look(BUS, (0.13, 0.11, 0.07), (0.0, 0.0, 0.0))),
        (grid(-0.75, 0.75, 2.54, 2.79, 5, 1, 0.7, 1.0), Look(BUS, (0.98, 0.70, 0.15), (1.0, 0.65, 0.12))),
    ]
    lamp = Look(BUS, (0.94, 0.94, 0.9), WHITE_GLOW) if coming else Look(BUS, (0.78, 0.08, 0.07), RED_GLOW)
    b.face.append((np.array([box(-1.15, -0.75, 0.68, 0.92), box(0.75, 1.15, 0.68, 0.92)]), lamp))
    b.lights = [(-0.95, 0.8), (0.95, 0.8)] if coming else []
    return b


def truck(rng, paint, coming: bool) -> Body:
    """Lorry: windowless cargo box on a dark chassis, separate lower cab."""
    length, h, w = rng.uniform(7.5, 9.5), rng.uniform(3.2, 3.7), 2.5
    cargo = pick(rng, ((0.88, 0.87, 0.84), (0.74, 0.76, 0.78), (0.86, 0.78, 0.60), (0.55, 0.62, 0.70)))
    cargo_look, roof = Look(TRUCK, cargo, material=PLASTER), Look(TRUCK, tone(cargo, 1.3), up=1.0)
    cab, glass = Look(TRUCK, paint, gloss=0.08), Look(TRUCK, GLASS, gloss=0.3)
    cab_h, cab_len = 2.55, 2.0
    if coming:
        outline = [
            (0, 0.45, 0),
            (0, cab_h - 0.2, 0),
            (0.5, cab_h, 0.1),
            (cab_len, cab_h, 0.1),
            (cab_len + 0.3, h, 0),
            (length, h, 0),
            (length, 0.9, 0),
        ]
        strips = [cab, cab, Look(TRUCK, tone(paint, 1.3), up=1.0), cargo_look, roof, cargo_look]
        c0, c1, k0, k1 = cab_len + 0.3, length, 0.0, cab_len
    else:
        outline = [
            (0, 0.9, 0),
            (0, h, 0),
            (length - cab_len - 0.3, h, 0),
            (length - cab_len, cab_h, 0.1),
            (length - 0.3, cab_h, 0.1),
            (length, 1.4, 0),
            (length, 0.45, 0),
        ]
        strips = [cargo_look, roof, cargo_look, cab, cab, cab]
        c0, c1, k0, k1 = 0.0, length - cab_len - 0.3, length - cab_len, length
    b = Body(TRUCK, w, outline, paint, strips=strips)
    wheels = [k0 + 1.0, c0 + (c1 - c0) * 0.25, c0 + (c1 - c0) * 0.72]
    b.side = [
        (box(0.1, length - 0.1, 0.45, 0.95), Look(TRUCK, (0.16, 0.16, 0.17))),
        (box(c0, c1, 0.95, h), cargo_look),
        (box(c0 + 0.25, c1 - 0.25, 0.95 + (h - 0.95) * 0.30, 0.95 + (h - 0.95) * 0.55), Look(TRUCK, paint)),
        (box(k0, k1, 0.6, cab_h), cab),
        (box(k0 + 0.45, k0 + 1.45, 1.5, 2.25), glass),
        (box(k1 if coming else k0 - 0.3, c0 if coming else k0, 0.6, 2.2), Look(TRUCK, BLACK)),
        (np.stack([disc(s, 0.48, 0.5) for s in wheels]), Look(TRUCK, RUBBER)),
        (np.stack([disc(s, 0.48, 0.22) for s in wheels]), Look(TRUCK, CHROME)),
    ]
    tyres = (np.array([box(-1.15, -0.7, 0.02, 0.5), box(0.7, 1.15, 0.02, 0.5)]), Look(TRUCK, RUBBER))
    if coming:
        b.face = [
            tyres,
            (box(-1.2, 1.2, 0.4, 0.7), Look(TRUCK, (0.2, 0.2, 0.21))),
            (box(-1.1, 1.1, 1.5, 2.25), glass),
            (grid(-0.8, 0.8, 0.85, 1.35, 1, 3, 1.0, 0.55), Look(TRUCK, BLACK)),
            (
                np.array([box(-1.15, -0.8, 0.72, 0.95), box(0.8, 1.15, 0.72, 0.95)]),
                Look(TRUCK, (0.94, 0.94, 0.9), WHITE_GLOW),
            ),
        ]
        b.lights = [(-1.0, 0.83), (1.0, 0.83)]
    else:
        b.face = [
            tyres,
            (box(-1.2, 1.2, 0.5, 0.92), Look(TRUCK, (0.17, 0.17, 0.18))),
            (grid(-1.2, 1.2, 1.0, h - 0.05, 2, 1, 0.93, 0.97), Look(TRUCK, tone(cargo, 0.86))),
            (
                np.array([box(-0.12, -0.05, 1.2, h - 0.3), box(0.05, 0.12, 1.2, h - 0.3)]),
                Look(TRUCK, (0.4, 0.4, 0.42)),
            ),
            (
                np.array([box(-1.2, -0.75, 0.6, 0.82), box(0.75, 1.2, 0.6, 0.82)]),
                Look(TRUCK, (0.8, 0.08, 0.07), RED_GLOW),
            ),
            (grid(-0.7, 0.7, 0.62, 0.8, 4, 1, 0.5, 1), Look(TRUCK, (0.95, 0.8, 0.15))),
        ]
    return b


def train(rng, paint, coming: bool) -> Body:
    """Tram: rounded nose, light skirt line, close rows of tall windows, pantograph; it stands on rails."""
    length, h, w = rng.uniform(18, 26), 3.55, 2.5
    second = tone(paint, 2.6)
    body, roof = Look(TRAIN, second, gloss=0.06), Look(TRAIN, (0.45, 0.46, 0.48), up=1.0)
    glass = Look(TRAIN, GLASS, (0.62, 0.58, 0.44), gloss=0.3)
    b = Body(
        TRAIN,
        w,
        [
            (0.0, 0.25, 0.1),
            (-0.0, 1.1, 0.05),
            (0.7, h - 0.3, 0.2),
            (1.2, h, 0.25),
            (length - 1.2, h, 0.25),
            (length - 0.7, h - 0.3, 0.2),
            (length, 1.1, 0.05),
            (length, 0.25, 0.1),
        ],
        paint,
        strips=[body, body, Look(TRAIN, paint), roof, roof, body, body],
    )
    joints = np.arange(6.0, length - 3, 6.5)
    b.side = [
        (box(0.02, length - 0.02, 0.25, 1.15), Look(TRAIN, paint)),
        (box(0.5, length - 0.5, 2.75, 3.0), Look(TRAIN, paint)),
        (grid(1.3, length - 1.3, 1.35, 2.65, int(length / 1.15), 1, 0.82, 1.0), glass),
        (np.array([box(s, s + 0.5, 0.3, h - 0.15) for s in joints]), Look(TRAIN, (0.17, 0.17, 0.19))),
        (
            np.array([box(s - 2.2, s - 0.8, 0.35, 2.7) for s in joints]),
            Look(TRAIN, tone(GLASS, 1.25), (0.8, 0.75, 0.6)),
        ),
        (box(0.5, length - 0.5, 0.12, 0.36), Look(TRAIN, (0.13, 0.13, 0.14))),
    ]
    b.face = [
        (box(-1.15, 1.15, 0.22, 1.12), Look(TRAIN, paint)),
        (box(-1.2, 1.2, 0.1, 0.36), Look(TRAIN, (0.13, 0.13, 0.14))),
        (
            np.stack([disc(x, 0.78, 0.2) for x in (-0.8, 0.8)]),
            Look(TRAIN, (0.96, 0.95, 0.88), WHITE_GLOW)
            if coming
            else Look(TRAIN, (0.8, 0.08, 0.07), RED_GLOW),
        ),
        (box(-0.3, 0.3, 0.6, 0.75), Look(TRAIN, (0.9, 0.9, 0.86))),
        (
            ((-1.05, 1.35), (1.05, 1.35), (0.95, 2.55), (-0.95, 2.55)),
            Look(TRAIN, GLASS, (0.2, 0.19, 0.14), gloss=0.3),
        ),
        (box(-0.04, 0.04, 1.35, 2.55), body),
        (box(-0.7, 0.7, 2.72, 3.05), Look(TRAIN, (0.13, 0.11, 0.07))),
        (grid(-0.6, 0.6, 2.78, 2.99, 3, 1, 0.7, 1.0), Look(TRAIN, (0.98, 0.70, 0.15), (1.0, 0.65, 0.12))),
    ]
    b.lights = [(-0.8, 0.78), (0.8, 0.78)] if coming else []
    return b


BODIES = {"car": car, "bus": bus, "truck": truck, "train": train}


def along(c: Canvas, b: Body, x: float, z: float) -> None:
    """Paint a vehicle whose length runs along the street; x is its middle, z its near end."""
    half, left_of_us = b.width / 2, x < c.camera.x

    def strip(i: int) -> None:
        (s0, y0, i0), (s1, y1, i1) = b.outline[i : i + 2]
        low = ((x - half + i0, y0, z + s0), (x + half - i0, y0, z + s0))
        high = ((x + half - i1, y1, z + s1), (x - half + i1, y1, z + s1))
        c.free((*low, *high), b.strips[i])

    for i in range(len(b.strips) - 2, -1, -1):  # far to near; the far end itself never shows
        strip(i)
    if abs(x - c.camera.x) > half:  # one side shows
        edge, inward = (x + half, -1) if left_of_us else (x - half, 1)
        c.free([(edge + inward * i, y, z + s) for s, y, i in b.outline], _flank(b, 0.92))
        for pts, look in b.side:
            c.x(edge, np.asarray(pts) + np.array((z, 0)), look)
        strip(0)
    for pts, look in b.face:
        c.z(z, np.asarray(pts) + np.array((x, 0)), look)
    if b.label == TRAIN:  # pantograph
        c.line_z(z + 6, ((x - 0.6, 3.5), (x, 4.5), (x + 0.6, 3.5)), 0.1, Look(TRAIN, BLACK))


def across(c: Canvas, b: Body, x: float, z: float, left: bool) -> None:
    """Paint a vehicle that crosses the street at z; x is its middle, `left` where its end s = 0 points."""
    middle, sign = b.outline[-1][0] / 2, 1.0 if left else -1.0
    top = max(y for _, y, _ in b.outline)

    def place(pts) -> np.ndarray:
        return (np.asarray(pts, np.float32) - (middle, 0)) * (sign, 1) + np.array((x, 0))

    c.z(z, place([(s, y) for s, y, _ in b.outline]), _flank(b, 0.95))
    roof = box(b.outline[2][0], b.outline[-3][0], top - 0.08, top + 0.04)
    c.z(z, place(roof), Look(b.label, tone(b.paint, 1.2), up=1.0))
    for pts, look in b.side:
        c.z(z, place(pts), look)
    if b.label == TRAIN:
        pantograph = ((middle - 0.8, 3.5), (middle, 4.5), (middle + 0.8, 3.5))
        c.line_z(z, place(pantograph), 0.1, Look(TRAIN, BLACK))


def _flank(b: Body, shade: float) -> Look:
    """The bare side under the decals."""
    return b.strips[0] if b.label == TRAIN else Look(b.label, tone(b.paint, shade), gloss=0.05)
