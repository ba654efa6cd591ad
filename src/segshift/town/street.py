"""The composition of one street: what stands where. Source: ours.

A straight street with a crossing. Its sides are lots (wall, fence, park, building); lanes, kerbs and
pavements are slots. Rare classes are dealt to the near slots from decks that turn with the seed, so that
every class is seen often and large. Things are painted far to near.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segshift.town import things as th
from segshift.town import vehicles as ve
from segshift.town.canvas import ASPHALT, GRASS, LEAVES, PAVERS, PLASTER, Canvas, Look, box, disc
from segshift.town.lots import LOTS
from segshift.town.vehicles import pick, tone
from segshift.town.worlds import Colour, World

ROAD, SIDEWALK, BUILDING, POLE, VEGETATION, TERRAIN = 0, 1, 2, 5, 8, 9

BIG = (
    ("bus",), ("truck", "train"), ("bus", "train"), ("truck",), ("train",), ("bus", "truck"), ("train",),
    ("truck", "bus"),
)  # fmt: skip
"""Large vehicles of a scene, in turn."""

SIDES = (
    ("wall", "fence"), ("park", "wall"), ("fence", "building"), ("building", "wall"), ("fence", "park"),
    ("wall", "fence"), ("building", "fence"), ("wall", "park"),
)  # fmt: skip
"""Nearest lots on the left and on the right, in turn."""

WHEELS = (
    ("bicycle", True), ("motorcycle", True), ("motorcycle", False), ("bicycle", False), ("motorcycle", True),
    ("bicycle", True),
)  # fmt: skip
"""Two-wheelers and whether they are ridden, in turn."""


class Street:
    """Composes one scene on a canvas; X = 0 is the middle of the road, the camera drives on the right."""

    def __init__(self, world: World, rng: np.random.Generator, c: Canvas, lane: float, seed: int):
        self.world, self.rng, self.c, self.lane = world, rng, c, lane
        self.turn = int(seed)
        self.parking = 2.1 if rng.random() < 0.3 else 0.0
        self.kerb = lane + self.parking  # half width of the road
        self.pavement = float(rng.uniform(2.4, 4.6))
        self.front = self.kerb + self.pavement  # where the lots begin
        self.crossing = float(rng.uniform(14, 26))
        self.jobs: list[tuple[float, Callable[[], None]]] = []
        self.blobs: list[tuple] = []  # these three as in scenes.Layers
        self.lamps: list[tuple] = []
        self.headlights: list[tuple] = []

    def pick(self, options):
        return pick(self.rng, options)

    def colour(self, options, spread: float = 0.05) -> Colour:
        """A palette colour with a little of its own tint."""
        k, tint = self.rng.uniform(1 - 2 * spread, 1 + 2 * spread), self.rng.normal(0, spread / 2, 3)
        return tuple(
            min(max(v * k + t, 0.02), 0.98) for v, t in zip(self.pick(options), tint.tolist(), strict=True)
        )

    def add(self, z: float, painter: Callable[[], None]) -> None:
        """Queue a painter; z is the far end of a lot, the near end of what stands in the street."""
        self.jobs.append((z, painter))

    def paint(self) -> None:
        big = BIG[self.turn % len(BIG)]
        self.rails = "train" in big
        self.ground()
        self.skyline()
        for side, kind in zip((-1, 1), SIDES[(self.turn // 3) % len(SIDES)], strict=True):
            self.lots(side, kind)
        self.furniture()
        self.traffic(big)
        self.two_wheelers()
        self.people()
        for _, painter in sorted(self.jobs, key=lambda job: -job[0]):
            painter()

    # -- ground ---------------------------------------------------------------------------------------------

    def ground(self) -> None:
        """Lawn below all, pavements, the two roads and their markings."""
        w, rng, c, k, far = self.world, self.rng, self.c, self.kerb, 400.0
        lawn = self.colour(w.grounds)
        self.lawn = Look(TERRAIN, lawn, material=GRASS, up=1.0)
        paving = self.colour(w.pavings)
        asphalt = self.colour(w.asphalts, 0.03)
        road = Look(ROAD, asphalt, material=ASPHALT, up=0.8)
        white = Look(ROAD, (0.86, 0.86, 0.83), up=0.45)
        c.y(0, box(-300, 300, 0, far), self.lawn)
        slabs = Look(SIDEWALK, paving, material=PAVERS, up=1.0)
        stone = Look(SIDEWALK, tone(paving, 1.35), up=1.0)
        for side in (-1, 1):
            c.y(0, box(side * k, side * self.front, 0, far), slabs)
            if rng.random() < 0.6:
                c.y(0, box(side * (k + 0.3), side * (k + 1.35), 0, self.crossing - 5), self.lawn)
        z0, z1 = self.crossing, self.crossing + 7.5
        c.y(0, box(-300, 300, z0 - 3, z1 + 3), slabs)
        c.y(0, box(-300, 300, z0, z1), road)
        c.y(0, box(-k, k, 0, far), road)
        for side in (-1, 1):
            for a, b in ((0.0, z0 - 3), (z1 + 3, far)):
                c.y(0, box(side * k, side * (k + 0.25), a, b), stone)
        starts = (*np.arange(rng.uniform(1, 4), z0 - 5, 5.5), *np.arange(z1 + 5, 90, 5.5))
        c.y(0, np.array([box(-0.09, 0.09, z, z + 2.6) for z in starts]), white)
        if self.parking:
            edges = [box(s * self.lane - 0.07, s * self.lane + 0.07, 0, z0 - 4) for s in (-1, 1)]
            c.y(0, np.array(edges), white)
        c.y(0, box(0.1, self.lane - 0.1, z0 - 4.6, z0 - 4.1), white)  # stop line
        stripes = np.arange(-k + 0.3, k - 0.4, 1.0)  # of the zebra crossings
        c.y(0, np.array([box(x, x + 0.55, z, z + 2.4) for z in (z0 - 3.4, z1 + 0.8) for x in stripes]), white)
        if self.rails:
            steel = Look(ROAD, (0.60, 0.61, 0.63), up=0.2, gloss=0.3)
            x = -self.lane / 2
            c.y(0, box(x - 1.1, x + 1.1, 0, 150), Look(ROAD, tone(asphalt, 1.22), material=PAVERS, up=0.8))
            c.y(0, np.array([box(x + s * 0.72 - 0.08, x + s * 0.72 + 0.08, 0, 150) for s in (-1, 1)]), steel)
        x, z = rng.uniform(-k, k), rng.uniform(6, 14)
        c.y(0, disc(x, z, 0.3), Look(ROAD, tone(asphalt, 0.84), up=0.6))  # manhole

    def skyline(self) -> None:
        """Houses and trees where the street ends."""
        c, rng = self.c, self.rng
        trees = Look(VEGETATION, tone(self.colour(self.world.greens), 0.9), material=LEAVES)
        for x in np.arange(-140, 141, 28.0):
            h = rng.uniform(8, 26)
            if rng.random() < 0.5:
                house = Look(BUILDING, self.colour(self.world.facades), material=PLASTER)
                c.z(190, box(x - 16, x + 16, 0, h), house)
            else:
                c.z(185, th.crown(rng, 18, h * 0.6) + np.array((x, 2)), trees)

    # -- lots -----------------------------------------------------------------------------------------------

    def lots(self, side: int, first: str) -> None:
        """A row of lots along one side, open where the crossing is."""
        rng, z, kind = self.rng, 1.0, first
        z0, z1 = self.crossing - 3, self.crossing + 10.5
        x = side * self.front
        while z < 85:
            length = float(rng.uniform(10, 16))
            if z < z0 and z + length > z0 - 5:
                length = z0 - z
            LOTS[kind](self, side, x, z, z + length)
            z += length
            if z0 - 0.1 <= z < z1:
                z = z1
            kind = self.pick(("building",) * 4 + ("wall", "fence", "park"))

    # -- furniture ------------------------------------------------------------------------------------------

    def furniture(self) -> None:
        """Street lamps, street trees, traffic lights and signs along the kerbs."""
        rng, w = self.rng, self.world
        edge = self.kerb + 0.5
        metal = self.colour(w.metals)
        step = float(rng.uniform(15, 20))
        phase = float(rng.uniform(6.5, 11))
        for i in range(5):
            side = -1 if (i + self.turn) % 2 else 1
            z = phase + i * step * 0.6
            if abs(z - self.crossing - 3.7) < 4.5:
                continue
            reach = -side * 1.8

            def lamp(side=side, z=z, reach=reach):
                self.lamps.append(th.street_lamp(self.c, side * edge, z, 6.2, reach, metal))

            self.add(z, lamp)
        green = self.colour(w.greens)
        for side in (-1, 1):  # street trees
            if rng.random() < 0.55:
                for z in np.arange(rng.uniform(11, 16), 50, rng.uniform(11, 15)):
                    if abs(z - self.crossing - 3.7) > 5:
                        self._tree(side * (self.kerb + 0.9), float(z), green, float(rng.uniform(5, 7)))
        self._lights(edge, metal)
        self._signs(edge, metal)

    def _tree(self, x: float, z: float, green: Colour, height: float) -> None:
        self.add(z, lambda: th.tree(self.c, self.rng, x, z, green, height, False))

    def _lights(self, edge: float, metal: Colour) -> None:
        """Traffic lights before the crossing, one perhaps over the lane, and two behind it; none in a
        fifth."""
        rng, c = self.rng, self.c
        z = min(self.crossing - 4.5, float(rng.uniform(9, 13)))
        if self.turn % 5 == 4:
            return
        side = 1 if rng.random() < 0.6 else -1
        gantry = rng.random() < 0.5

        def near():
            th.post(c, side * edge, z, 5.4 if gantry else 2.2, 0.26, metal)
            th.traffic_light(c, rng, side * edge, z, 2.75, 1.15)
            if gantry:
                reach = -side * (edge - self.lane * 0.5)
                c.line_z(z, ((side * edge, 5.2), (side * edge + reach, 5.35)), 0.2, Look(POLE, metal))
                th.traffic_light(c, rng, side * edge + reach, z, 4.55, 1.0)

        self.add(z, near)
        zf = self.crossing + 9

        def far():
            for s in (-1, 1):
                th.post(c, s * edge, zf, 2.4, 0.26, metal)
                th.traffic_light(c, rng, s * edge, zf, 3.1, 1.25)

        self.add(zf, far)

    def _signs(self, edge: float, metal: Colour) -> None:
        """Two or three traffic signs, the first of them near."""
        rng, c = self.rng, self.c
        n = 2 + int(rng.integers(0, 2))
        for i in range(n):
            side = -1 if (i + self.turn // 2) % 2 else 1
            z = float(rng.uniform(6.5, 9.5)) if i == 0 else float(rng.uniform(10, 30))
            kind = th.SIGNS[(self.turn + 3 * i) % len(th.SIGNS)]
            x = side * (edge + (0.3 if kind != "board" else 1.2))
            r = float(rng.uniform(0.5, 0.62)) if kind != "board" else 0.62

            def paint(x=x, z=z, r=r, kind=kind):
                th.post(c, x, z, 2.4, 0.17, metal)
                th.traffic_sign(c, rng, x, z, 2.5, r, kind)
                if kind in ("circle", "triangle") and r > 0.55:
                    th.traffic_sign(c, rng, x, z, 2.5 - 1.75 * r, r * 0.75, "square")

            self.add(z, paint)

    # -- traffic --------------------------------------------------------------------------------------------

    def vehicle(self, name: str, x: float, z: float, coming: bool) -> None:
        body = ve.BODIES[name](self.rng, self.colour(self.world.paints), coming)
        length = body.outline[-1][0]
        self.blobs.append((x, z + length / 2, body.width / 2 + 0.15, length / 2 + 0.3))
        self.headlights += [(x + dx, y, z) for dx, y in body.lights]
        self.add(z + 0.01 * length, lambda: ve.along(self.c, body, x, z))

    def crosser(self, name: str, x: float, z: float) -> None:
        left = self.rng.random() < 0.5
        body = ve.BODIES[name](self.rng, self.colour(self.world.paints), left)
        self.blobs.append((x, z + 0.9, body.outline[-1][0] / 2, 1.1))
        self.add(z, lambda: ve.across(self.c, body, x, z, left))

    def traffic(self, big: tuple[str, ...]) -> None:
        """The large vehicles near, on our lane, coming, or crossing; cars where no large one is, and
        parked."""
        rng, lane = self.rng, self.lane
        left, right = -lane / 2, lane / 2
        free = {"coming": True, "ahead": True, "cross": True}
        for name in big:
            options = [k for k in ("coming", "ahead", "cross") if free[k]]
            if name == "train":  # on its rails, or across
                options = ["coming" if free["coming"] else "cross"]
            slot = self.pick(options)
            if name == "train" and free["coming"] and rng.random() < 0.25 and free["cross"]:
                slot = "cross"
            free[slot] = False
            if slot == "cross":
                length = 22 if name == "train" else 10
                self.crosser(name, float(rng.uniform(-0.25, 0.25)) * length, self.crossing + 1.5)
            elif slot == "coming":
                self.vehicle(name, left, float(rng.uniform(8.5, 13)), True)
            else:
                self.vehicle(name, right, float(rng.uniform(11, 17)), False)
        if free["coming"]:
            self.vehicle("car", left, float(rng.uniform(8, 16)), True)
        if free["ahead"]:
            self.vehicle("car", right, float(rng.uniform(12, 22)), False)
        self.vehicle("car", right, float(rng.uniform(34, 44)), False)
        self.vehicle("car", left, float(rng.uniform(40, 50)), True)
        if self.parking:
            for side in (-1, 1):
                z = float(rng.uniform(5.5, 9))
                while z < min(self.crossing - 8, 60):
                    if rng.random() < 0.6:
                        self.vehicle("car", side * (lane + 1.05), z, side < 0)
                    z += float(rng.uniform(6, 9))

    def two_wheelers(self) -> None:
        """Three two-wheelers: ridden ones on the lanes, parked ones on the pavement."""
        rng = self.rng
        k = (self.turn // 5) % len(WHEELS)
        places = [float(rng.uniform(*r)) for r in ((6.5, 8.5), (9.5, 13), (8, 16))]
        first = int(rng.integers(0, 2))
        for i, z in enumerate(places):
            on, ridden = WHEELS[(k + i * 2) % len(WHEELS)] if i < 2 else self.pick(WHEELS)
            side = 1 if (i + first) % 2 else -1
            if ridden:
                x = side * float(rng.uniform(0.35, 0.8)) * self.lane
            else:
                x = side * float(self.kerb + rng.uniform(0.7, 1.6))
            self._two_wheeler(on, ridden, x, z)

    def _two_wheeler(self, on: str, ridden: bool, x: float, z: float) -> None:
        rng, w, c = self.rng, self.world, self.c
        paint, clothes = self.colour(w.paints), (self.colour(w.clothes), self.colour(w.clothes))
        skin, facing = self.pick(w.skins), self.pick((-1, 1))
        behind = ridden and rng.random() < 0.3
        self.blobs.append((x, z, 0.35, 0.8) if behind else (x, z, 0.9, 0.35))

        def paint_it() -> None:
            if behind:
                th.two_wheeler_behind(c, rng, x, z, paint, on, ridden, clothes, skin)
                return
            (th.bicycle if on == "bicycle" else th.motorcycle)(c, rng, x, z, paint, facing)
            if ridden:
                th.rider(c, rng, x, z, clothes, skin, facing, on)

        self.add(z, paint_it)

    def people(self) -> None:
        """One near on each pavement, some farther off, and up to two on the zebra crossing."""
        rng, w = self.rng, self.world
        near = 1 if rng.random() < 0.5 else -1
        spots = [(float(rng.uniform(6, 9)), near)]
        for _ in range(int(3 * w.crowd + rng.integers(0, 3))):
            spots.append((float(rng.uniform(8, 28)), self.pick((-1, 1))))
        spots.append((float(rng.uniform(5.5, 7.5)), -near))
        for z, side in spots:
            x = side * float(self.kerb + rng.uniform(0.8, self.pavement - 0.4))
            self._person(x, z)
        for _ in range(int(rng.integers(0, 3))):
            self._person(float(rng.uniform(-self.kerb, self.kerb)), self.crossing - 2.2)

    def _person(self, x: float, z: float) -> None:
        rng, w = self.rng, self.world
        clothes, skin = (self.colour(w.clothes), self.colour(w.clothes)), self.pick(w.skins)
        height = float(rng.uniform(1.6, 1.9)) if rng.random() < 0.85 else 1.25
        self.blobs.append((x, z, 0.35, 0.3))
        self.add(z, lambda: th.person(self.c, rng, x, z, clothes, skin, height))
