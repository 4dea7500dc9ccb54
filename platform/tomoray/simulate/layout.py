"""Where everything lies in a simulated tomogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tomoray.simulate.scene import Scene
from tomoray.simulate.shapes import Points
from tomoray.tomogram import Picks

Seed = int | Sequence[int]

UM3 = 1e12  # cubic angstrom
TRIES_AT_ONCE, ROUNDS = 64, 60  # a particle that finds no place in so many tries is left out
GOLD_RADIUS_ANGSTROM = 45.0
VESICLE_RADII_ANGSTROM = (150.0, 350.0)
BILAYER_ANGSTROM = 45.0  # half thickness, with margin: particles stay this far from the middle of a membrane


@dataclass(frozen=True)
class Vesicle:
    """A closed membrane: the surface at `radius (1 + u form u)` in the direction `u` from its centre."""

    centre_zyx: Points
    radius_angstrom: float
    form: Points

    @property
    def reach_angstrom(self) -> float:
        """Distance from the centre within which the whole surface lies."""
        return self.radius_angstrom * float(1 + np.linalg.norm(self.form, 2))

    def distance(self, points: Points) -> Points:
        """Return how far points `(..., 3)` lie outside (or, negative, inside) the middle of the membrane, along the radius."""
        away = points - self.centre_zyx
        length = np.linalg.norm(away, axis=-1)
        unit = away / np.maximum(length, 1e-9)[..., None]
        return np.asarray(length - self.radius_angstrom * (1 + np.einsum("...i,ij,...j->...", unit, self.form, unit)))


@dataclass(frozen=True)
class Layout:
    """Where everything in a tomogram lies: the truth, each particle's rotation `(n, 3, 3)`, and the distractors."""

    picks: Picks
    rotations: Points
    vesicles: tuple[Vesicle, ...]
    gold_zyx: Points


def place(scene: Scene, *, seed: Seed, name: str) -> Layout:
    """Return where everything lies in the tomogram that `simulate_tomogram` makes of the same scene and seed.

    Random sequential adsorption: distractors first, then particles from the largest to the smallest, each at a uniform place where it
    touches nothing. A particle that finds none is left out, so crowded scenes hold fewer than `per_um3` says.
    """
    rng = np.random.default_rng(seed).spawn(3)[0]
    volume_um3 = float(scene.extent_angstrom.prod()) / UM3
    numbers = {p.name: rng.poisson(scene.per_um3[p.name] * scene.crowding * volume_um3) for p in scene.particles}
    free = _FreeSpace(scene, rng)
    for _ in range(rng.poisson(scene.membranes_per_um3 * volume_um3)):
        free.add_vesicle()
    gold = [p for _ in range(rng.poisson(scene.gold_per_um3 * volume_um3)) if (p := free.add_ball(GOLD_RADIUS_ANGSTROM)) is not None]
    found: dict[str, list[Points]] = {p.name: [] for p in scene.particles}
    for particle in sorted(scene.particles, key=lambda p: -p.radius_angstrom):
        placed = (free.add_ball(particle.radius_angstrom) for _ in range(numbers[particle.name]))
        found[particle.name] = [p for p in placed if p is not None]
    names = np.repeat(list(found), [len(p) for p in found.values()]).astype(np.str_)
    positions = np.array([p for of_class in found.values() for p in of_class]).reshape(-1, 3)
    return Layout(Picks(name, positions, names), _random_rotations(len(names), rng), tuple(free.vesicles), np.array(gold).reshape(-1, 3))


class _FreeSpace:
    """What is taken already, and random places that are not."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.centres: Points = np.empty((0, 3))
        self.radii: Points = np.empty(0)
        self.vesicles: list[Vesicle] = []

    def add_ball(self, radius: float) -> Points | None:
        """Return a free place for a ball, in the ice with its whole radius and in plane at least with half, and take it."""
        depth = self.scene.extent_angstrom[0]
        margin = np.array([0.5 * (1 - self.scene.ice) * depth + radius, 0.5 * radius, 0.5 * radius])
        if (2 * margin > self.scene.extent_angstrom).any():
            return None
        for _ in range(ROUNDS):
            candidates = self.rng.uniform(margin, self.scene.extent_angstrom - margin, (TRIES_AT_ONCE, 3))
            apart = np.linalg.norm(candidates[:, None] - self.centres, axis=-1)
            good = (apart >= self.scene.packing * (self.radii + radius)).all(axis=1)
            for vesicle in self.vesicles:
                good &= np.abs(vesicle.distance(candidates)) >= radius + BILAYER_ANGSTROM
            if good.any():
                place: Points = candidates[good.argmax()]
                self.centres, self.radii = np.vstack([self.centres, place]), np.append(self.radii, radius)
                return place
        return None

    def add_vesicle(self) -> None:
        """Take the surface of a vesicle of random size and form, unless it would touch another."""
        radius = self.rng.uniform(*VESICLE_RADII_ANGSTROM)
        form = self.rng.uniform(-0.06, 0.06, (3, 3))
        new = Vesicle(self.rng.uniform(0, self.scene.extent_angstrom), radius, form + form.T - np.eye(3) * np.trace(form) * 2 / 3)
        gaps = [np.linalg.norm(v.centre_zyx - new.centre_zyx) - v.reach_angstrom - new.reach_angstrom for v in self.vesicles]
        if min(gaps, default=np.inf) > 2 * BILAYER_ANGSTROM:
            self.vesicles.append(new)


def _random_rotations(n: int, rng: np.random.Generator) -> Points:
    """Return `(n, 3, 3)` rotations, uniform on SO(3): a normal deviate in four dimensions has a uniform direction (Shoemake 1992)."""
    w, x, y, z = (q := rng.standard_normal((4, n))) / np.linalg.norm(q, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
