"""The density of all that a layout places in the ice."""

from __future__ import annotations

import numpy as np

from tomoray.simulate.layout import BILAYER_ANGSTROM, GOLD_RADIUS_ANGSTROM, Layout, Vesicle
from tomoray.simulate.scene import Scene
from tomoray.simulate.shapes import Array, Points, Shape, gold_bead, load_shapes

GOLD_CONTRAST = 6.0  # of a particle's density; less than that of metallic gold, so that streaks do not drown the rest
LEAFLET_ANGSTROM, LEAFLET_SIGMA_ANGSTROM = 18.0, 8.0  # each leaflet of a bilayer from its middle


def draw(scene: Scene, layout: Layout) -> Array:
    """Return the density `(d, h, w)` of all that is in the ice; a particle's own density averages to about 1, that of water is 0."""
    density = np.zeros(scene.shape_zyx, np.float32)
    for vesicle in layout.vesicles:
        _add_vesicle(density, vesicle, scene)
    bead = gold_bead(GOLD_RADIUS_ANGSTROM, GOLD_CONTRAST)
    for position in layout.gold_zyx:
        _add(density, bead, np.eye(3), position, scene.voxel_angstrom)
    shapes = load_shapes(tuple(p.name for p in scene.particles), scene.maps, scene.voxel_angstrom)
    for name, rotation, position in zip(layout.picks.names.tolist(), layout.rotations, layout.picks.positions_zyx, strict=True):
        _add(density, shapes[name], rotation, position, scene.voxel_angstrom)
    return density


def _add(density: Array, shape: Shape, rotation: Points, position_zyx: Points, voxel_angstrom: float) -> None:
    """Add a shape whose centre is at `position_zyx`; what sticks out of the volume is cut off."""
    half = int(np.ceil(shape.extent_angstrom / voxel_angstrom))
    centre = position_zyx / voxel_angstrom - 0.5  # as an index: voxel i has its centre at i + 0.5
    start = np.floor(centre).astype(int) - half
    box = shape.draw(rotation, centre - start, 2 * half + 2, voxel_angstrom)
    low, high = np.maximum(start, 0), np.minimum(start + len(box), density.shape)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    density[inside] += box[tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))]


def _add_vesicle(density: Array, vesicle: Vesicle, scene: Scene) -> None:
    reach = vesicle.reach_angstrom + BILAYER_ANGSTROM
    margin = 0.5 * (1 - scene.ice) * scene.extent_angstrom * (1, 0, 0)
    low = np.maximum(vesicle.centre_zyx - reach, margin) / scene.voxel_angstrom
    high = np.minimum(vesicle.centre_zyx + reach, scene.extent_angstrom - margin) / scene.voxel_angstrom
    axes = [np.arange(int(a), int(np.ceil(b))) for a, b in zip(low, high, strict=True)]
    centres: Points = (np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) + 0.5) * np.float64(scene.voxel_angstrom)
    from_leaflet = np.abs(vesicle.distance(centres)) - LEAFLET_ANGSTROM
    density[np.ix_(*axes)] += np.exp(-0.5 * (from_leaflet / LEAFLET_SIGMA_ANGSTROM) ** 2).astype(np.float32)
