"""Crops of a tomogram for training: where to cut, and which particles lie there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tomoray.tomogram import Particle, Picks


def draw_corners(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch_vox: int,
    points: NDArray[np.float64],
    count: int,
    *,
    centred_fraction: float = 0.5,
) -> NDArray[np.int64]:
    """Return `(count, 3)` corners of cubes to cut from a volume, in voxels.

    A `centred_fraction` of them hold a particle near their middle, its class drawn first so that rare classes are seen as often as
    common ones; it is moved by up to a quarter of the cube, lest the network learn that particles sit in the centre. The others lie
    anywhere. Without particles all lie anywhere.

    Parameters
    ----------
    shape
        `(d, h, w)` of the volume.
    points
        `(n, 4)`: class, z, y, x in voxels.
    """
    room = np.maximum(np.asarray(shape) - patch_vox, 0)
    corners = rng.integers(0, room + 1, size=(count, 3))
    if len(points):
        classes = np.unique(points[:, 0])
        for i in np.flatnonzero(rng.random(count) < centred_fraction):
            members = points[points[:, 0] == rng.choice(classes)]
            centre = members[rng.integers(len(members)), 1:] + rng.uniform(-0.25, 0.25, 3) * patch_vox
            corners[i] = np.clip(np.floor(centre - patch_vox / 2), 0, room)
    return corners


def grid_corners(shape: Sequence[int], patch_vox: int) -> NDArray[np.int64]:
    """Return `(n, 3)` corners of the cubes that cover a volume side by side, in its order; the last of a row may reach beyond its far face."""
    axes = (np.arange(0, int(n), patch_vox) for n in shape)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def grid_walk(shape: Sequence[int], patch_vox: int, visit: int, count: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return `(count, 3)` corners for one of many visits to a volume, which together go through its grid again and again.

    Each pass has all cubes of `grid_corners` once, in an order of its own; visit 0 begins the first pass.
    """
    grid = grid_corners(shape, patch_vox)
    steps = np.arange(visit * count, (visit + 1) * count)
    passes = {int(lap): np.random.default_rng((*seed, int(lap))).permutation(len(grid)) for lap in np.unique(steps // len(grid))}
    return grid[[passes[int(step) // len(grid)][step % len(grid)] for step in steps]]


def cut(volume: NDArray[np.float32], corner: Sequence[int], patch_vox: int) -> NDArray[np.float32]:
    """Return the cube `(p, p, p)` at a corner; beyond the volume's end it is 0, the mean of a normalised tomogram."""
    z, y, x = (int(c) for c in corner)
    piece = volume[z : z + patch_vox, y : y + patch_vox, x : x + patch_vox]
    if piece.shape == (patch_vox,) * 3:
        return piece
    padded = np.zeros((patch_vox,) * 3, dtype=volume.dtype)
    padded[: piece.shape[0], : piece.shape[1], : piece.shape[2]] = piece
    return padded


def particle_points(picks: Picks, particles: Sequence[Particle], voxel_angstrom: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return picks as `(n, 4)`: class number, then z, y, x in voxels. Classes that are not asked for are left out."""
    names = [p.name for p in particles]
    known = picks[np.isin(picks.names, names)]
    labels = np.array([names.index(name) for name in known.names], dtype=np.float64)
    return np.column_stack([labels, known.positions_zyx / np.asarray(voxel_angstrom)])


def points_near(points: NDArray[np.float64], corner: NDArray[np.int64], patch_vox: int, halo_vox: float) -> NDArray[np.float64]:
    """Return the `(m, 4)` points in or within `halo_vox` of a cube, counted from its corner."""
    moved = points - np.concatenate([[0.0], corner])
    inside = ((moved[:, 1:] >= -halo_vox) & (moved[:, 1:] < patch_vox + halo_vox)).all(axis=1)
    return np.asarray(moved[inside])
