"""The lots beside the street: houses, and behind the pavement walls, fences and parks. Source: ours.

Every function queues one lot of a street: on `side` (-1 left, 1 right) of the plane X = x, from z0 to z1
metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from segshift.town import things as th
from segshift.town.canvas import BRICK, LEAVES, PLASTER, STONE, Canvas, Look, box, grid
from segshift.town.vehicles import GLASS, pick, tone
from segshift.town.worlds import Colour, World


class Site(Protocol):
    """The street that a lot lies at."""

    rng: np.random.Generator
    c: Canvas
    world: World
    lawn: Look

    def colour(self, options: Sequence[Colour]) -> Colour: ...

    def add(self, z: float, painter: Callable[[], None]) -> None: ...


BUILDING, WALL, FENCE, VEGETATION = 2, 3, 4, 8
STOREY = 3.1  # metres
WARM, COOL = (0.98, 0.80, 0.46), (0.80, 0.84, 0.86)  # light behind windows


def building(street: Site, side: int, x: float, z0: float, z1: float) -> None:
    """House of 2 to 5 storeys: framed windows, some lit at night; a door, or a shop with sign and awning."""
    rng, c, world = street.rng, street.c, street.world
    storeys = int(rng.integers(2, 6))
    front, roof = street.colour(world.facades), street.colour(((0.45, 0.25, 0.20), (0.30, 0.30, 0.33)))
    material = pick(rng, (BRICK, PLASTER, PLASTER))
    accent = street.colour(world.paints)
    shop, shop_lit = rng.random() < 0.4, rng.random() < 0.85
    columns, first = max(2, int((z1 - z0) / 2.6)), int(shop)
    lit = rng.random(columns * (storeys - first))
    height = STOREY * storeys + 0.9

    def windows(wide: float, high: float) -> np.ndarray:
        return grid(z0, z1, 1 + STOREY * first, 1 + STOREY * storeys, columns, storeys - first, wide, high)

    def paint() -> None:
        depth, pane = x + side * 14.0, Look(BUILDING, GLASS, gloss=0.35)
        c.z(z0, box(x, depth, 0, height), Look(BUILDING, front, material=material))
        c.z(z0, box(x - side * 0.15, depth, height, height + 0.45), Look(BUILDING, roof, up=0.8))
        c.x(x, box(z0, z1, 0, height), Look(BUILDING, front, material=material))
        c.x(x, box(z0, z1, height, height + 0.5), Look(BUILDING, roof, up=0.8))
        c.x(x, box(z0, z1, 0, 0.7), Look(BUILDING, tone(front, 0.72)))
        if z0 < 45:  # farther off, frames are below a pixel
            c.x(x, windows(0.62, 0.66), Look(BUILDING, tone(front, 1.6)))
        for chosen, glow in (
            (lit < 0.55, (0, 0, 0)),
            ((lit >= 0.55) & (lit < 0.85), WARM),
            (lit >= 0.85, COOL),
        ):
            if chosen.any():
                c.x(x, windows(0.5, 0.56)[chosen], pane._replace(emission=glow))
        if z0 > 3:
            gable = grid(
                x + side * 1.5, x + side * 12, 4, 1 + STOREY * storeys, 3, max(storeys - 1, 1), 0.34, 0.5
            )
            c.z(z0, gable, pane)
        if shop:
            glow = (0.72, 0.61, 0.40) if shop_lit else (0, 0, 0)
            c.x(x, box(z0 + 0.5, z1 - 0.5, 0.5, 2.7), pane._replace(emission=glow, gloss=0.25))
            c.x(x, grid(z0 + 0.5, z1 - 0.5, 0.5, 2.7, columns, 1, 0.08, 1), Look(BUILDING, tone(front, 0.6)))
            c.x(x, box(z0 + 0.3, z1 - 0.3, 2.6, 3.35), Look(BUILDING, accent, up=0.5))
        else:
            door = (z0 + z1) / 2
            c.x(x, box(door - 0.7, door + 0.7, 0, 2.4), Look(BUILDING, tone(accent, 0.6)))

    street.add(z1, paint)


def wall(street: Site, side: int, x: float, z0: float, z1: float) -> None:
    """Free-standing wall of stone courses or plaster with piers and a coping, trees and perhaps a house
    behind.
    """
    rng, c = street.rng, street.c
    height = float(rng.uniform(2.4, 3.4))
    stone, green = street.colour(street.world.walls), street.colour(street.world.greens)
    material = pick(rng, (STONE, STONE, PLASTER))
    trees = _trees(rng, 2, (z0, z1), (2, 5), (4.5, 8))
    if rng.random() < 0.5:
        building(street, side, x + side * 9, z0, z1)

    def paint() -> None:
        for z, dx, size in trees:
            th.tree(c, rng, x + side * dx, z, green, size, False)
        c.z(z0, box(x, x + side * 0.5, 0, height), Look(WALL, tone(stone, 0.9), material=material))
        c.x(x, box(z0, z1, 0, height), Look(WALL, stone, material=material))
        piers = [box(z, z + 0.55, 0, height + 0.18) for z in np.arange(z0 + 0.2, z1, 3.6)]
        c.x(x, np.array(piers), Look(WALL, tone(stone, 0.82)))
        c.x(x, box(z0, z1, height, height + 0.22), Look(WALL, tone(stone, 1.5), up=1.0))

    street.add(z1, paint)


def fence(street: Site, side: int, x: float, z0: float, z1: float) -> None:
    """Bars or pointed pickets on two rails, dark green between them, a garden and a house behind."""
    rng, c = street.rng, street.c
    height = float(rng.uniform(2.0, 2.7))
    bar, green = street.colour(street.world.fences), street.colour(street.world.greens)
    pickets = rng.random() < 0.5
    trees = _trees(rng, 2, (z0 + 2, z1), (3, 6), (4, 7))
    building(street, side, x + side * 10, z0, z1)

    def paint() -> None:
        for z, dx, size in trees:
            th.tree(c, rng, x + side * dx, z, green, size, dx > 4.8)
        bars = grid(z0, z1, 0, height, int((z1 - z0) / 0.45), 1, 0.5 if pickets else 0.3, 1)
        if pickets:  # a fifth corner between the upper two
            tips = bars[:, 2:].mean(1, keepdims=True) + np.array((0, 0.18), np.float32)
            bars = np.concatenate((bars[:, :3], tips, bars[:, 3:]), 1)
        c.x(x, box(z0, z1, 0, height - 0.15), Look(FENCE, tone(green, 0.62), material=LEAVES))
        c.x(x, bars, Look(FENCE, bar, up=0.15))
        rails = [box(z0, z1, height * k, height * (k + 0.08)) for k in (0.22, 0.8)]
        c.x(x, np.array(rails), Look(FENCE, tone(bar, 0.85), up=0.4))
        posts = [box(z, z + 0.2, 0, height + 0.2) for z in np.arange(z0, z1, 2.7)]
        c.x(x, np.array(posts), Look(FENCE, tone(bar, 0.72), up=0.2))

    street.add(z1, paint)


def park(street: Site, side: int, x: float, z0: float, z1: float) -> None:
    """Lawn with trees before a hedge."""
    rng, c = street.rng, street.c
    green, hedge = street.colour(street.world.greens), street.colour(street.world.greens)
    trees = _trees(rng, 4, (z0 + 3, z1), (3, 11), (4.5, 8))
    conifers = rng.random(4) < 0.4

    def paint() -> None:
        c.y(0, box(x, x + side * 60, z0, z1), street.lawn)
        c.x(x + side * 16, box(z0, z1, 0, 2.2), Look(VEGETATION, tone(hedge, 0.8), material=LEAVES))
        c.x(x + side * 16, box(z0, z1, 2.0, 2.4), Look(VEGETATION, hedge, material=LEAVES, up=0.9))
        for (z, dx, size), conifer in zip(trees, conifers, strict=True):
            th.tree(c, rng, x + side * dx, z, green, size, conifer)

    street.add(z1, paint)


def _trees(rng, n: int, z, dx, size) -> list[tuple[float, float, float]]:
    """Places z, distances from the lot's front and heights of n trees, far ones first."""
    return sorted(
        ((float(rng.uniform(*z)), float(rng.uniform(*dx)), float(rng.uniform(*size))) for _ in range(n)),
        reverse=True,
    )


LOTS = {"building": building, "wall": wall, "fence": fence, "park": park}
