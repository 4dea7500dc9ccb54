"""Targets: what a network shall answer where particles lie.

Particles of a batch of crops travel as one padded tensor `(b, n, 4)`: class number, then z, y, x in voxels from the crop's corner.
A class number of -1 marks padding. Points outside the crop are allowed: their halo may reach in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tomoray.tomogram import Particle

SIGMA_OF_RADIUS = 0.5  # "half the typical radius" (Lin et al. 2025)
HALF_DIAGONAL = 0.87  # of a cell, rounded up: no point of a cell is further from its centre


def heatmap_sigmas(particles: Sequence[Particle], voxel_angstrom: float, stride: int = 2) -> list[float]:
    """Return the standard deviation of each class's Gaussian, in cells of the heat map."""
    return [SIGMA_OF_RADIUS * p.radius_angstrom / (voxel_angstrom * stride) for p in particles]


def reach_vox(particles: Sequence[Particle], voxel_angstrom: float) -> float:
    """Return how far outside a crop a particle can lie and still be seen in its target: three standard deviations of the largest class."""
    return 3 * SIGMA_OF_RADIUS * max(p.radius_angstrom for p in particles) / voxel_angstrom


def gaussian_heatmaps(particles: Tensor, sigmas: Sequence[float], shape: Sequence[int], *, stride: int = 2) -> Tensor:
    """Return heat maps `(b, classes, d / stride, h / stride, w / stride)` with a Gaussian of height 1 at each particle's cell.

    The cell is `floor(position / stride)`; where particles of a class overlap, the larger value counts (Zhou et al. 2019,
    arXiv 1904.07850, which the paper's "splat" follows). Flipping particles and flipping maps agree for even sizes only.

    Parameters
    ----------
    particles
        `(b, n, 4)`: class, z, y, x in voxels; class -1 is padding.
    sigmas
        Standard deviation per class, in cells.
    shape
        `(d, h, w)` of the crops, in voxels.
    """
    cells = [-(-int(size) // stride) for size in shape]
    maps = particles.new_zeros((len(particles), len(sigmas), *cells))
    axes = [torch.arange(n, device=particles.device, dtype=particles.dtype) for n in cells]
    for crop, points in zip(maps, particles, strict=True):
        for label, *position in points[points[:, 0] >= 0].tolist():
            sigma = sigmas[int(label)]
            z, y, x = (torch.exp(-((axis - value // stride) ** 2) / (2 * sigma**2)) for axis, value in zip(axes, position, strict=True))
            gaussian = z[:, None, None] * y[None, :, None] * x[None, None, :]
            torch.maximum(crop[int(label)], gaussian, out=crop[int(label)])
    return maps


def single_cell_targets(particles: Tensor, classes: int, shape: Sequence[int], *, stride: int = 2) -> Tensor:
    """Return `(b, classes, d / stride, h / stride, w / stride)` with 1 in each particle's cell, `floor(position / stride)`, and 0 elsewhere.

    A cell that holds particles of several classes is shared evenly among them, so that no cell sums to more than 1. Parameters as of
    `gaussian_heatmaps`; a point outside its crop has no cell.
    """
    cells = [-(-int(size) // stride) for size in shape]
    maps = particles.new_zeros((len(particles), classes, *cells))
    labels, zyx = particles[..., 0].long(), (particles[..., 1:] // stride).long()
    inside = (labels >= 0) & (zyx >= 0).all(-1) & (zyx < zyx.new_tensor(cells)).all(-1)
    crops, slots = inside.nonzero(as_tuple=True)
    z, y, x = zyx[crops, slots].T
    maps[crops, labels[crops, slots], z, y, x] = 1
    return maps / maps.sum(1, keepdim=True).clamp_min(1)


def sphere_masks(particles: Tensor, radii: Sequence[float], shape: Sequence[int], *, stride: int = 2) -> Tensor:
    """Return `(b, classes, d / stride, h / stride, w / stride)` with 1 in the cells whose centre lies in a particle's sphere, and 0 elsewhere.

    `radii` are in cells, one per class; other parameters as of `gaussian_heatmaps`. Where spheres overlap, a cell belongs to the particle
    that it lies deepest in, relative to the radius. A sphere holds at least the cell of its centre, however small.
    """
    cells = [-(-int(size) // stride) for size in shape]
    depths = particles.new_zeros((len(particles), len(radii), *cells))  # 1 in a particle's centre, 0 on its sphere
    axes = [torch.arange(n, device=particles.device, dtype=particles.dtype) + 0.5 for n in cells]
    for crop, points in zip(depths, particles, strict=True):
        for label, *position in points[points[:, 0] >= 0].tolist():
            z, y, x = ((axis - value / stride) ** 2 for axis, value in zip(axes, position, strict=True))
            depth = 1 - (z[:, None, None] + y[None, :, None] + x[None, None, :]) / max(radii[int(label)], HALF_DIAGONAL) ** 2
            torch.maximum(crop[int(label)], depth, out=crop[int(label)])
    deepest = ((depths > 0) & (depths == depths.amax(1, keepdim=True))).to(particles.dtype)
    return deepest / deepest.sum(1, keepdim=True).clamp_min(1)


def ball_masks(particles: Tensor, radii: Sequence[float], shape: Sequence[int], *, stride: int = 2) -> Tensor:
    """Return `(b, classes, d / stride, h / stride, w / stride)` with 1 in the cells no further than the radius from a particle's cell, 0 elsewhere.

    Unlike `sphere_masks` these are TomoPicker's: each class has a map of its own, on which balls are joined, and each ball inside the crop
    covers as many cells as `ball_cells` has. Parameters as of `sphere_masks`.
    """
    cells = [-(-int(size) // stride) for size in shape]
    maps = particles.new_zeros((len(particles), len(radii), *cells))
    for label, radius in enumerate(radii):
        crops, slots = (particles[..., 0] == label).nonzero(as_tuple=True)
        middles = (particles[crops, slots, 1:] // stride).long()
        zyx = middles[:, None] + ball_cells(radius).to(particles.device)
        inside = ((zyx >= 0) & (zyx < zyx.new_tensor(cells))).all(-1)
        z, y, x = zyx[inside].T
        maps[crops[:, None].expand_as(inside)[inside], label, z, y, x] = 1
    return maps


def ball_radii(particles: Sequence[Particle], voxel_angstrom: float, stride: int = 2, *, radius_fraction: float = 1.0) -> list[float]:
    """Return the radius of each class's ball in cells: its own in whole voxels, rounded up, 12 for a ribosome at 13.48 angstrom."""
    return [math.ceil(radius_fraction * p.radius_angstrom / voxel_angstrom) / stride for p in particles]


def ball_cells(radius: float) -> Tensor:
    """Return `(n, 3)` steps along z, y, x from a cell to all that lie no further than a radius: 123 for 3, 7,153 for 12."""
    axis = torch.arange(-int(radius), int(radius) + 1)
    steps = torch.cartesian_prod(axis, axis, axis)
    return steps[(steps**2).sum(1) <= radius**2]


def covered_share(number: float, radius: float, cells: float, *, union: bool = False) -> float:
    """Return the share of a tomogram's cells that a number of balls covers, those at its border taken for whole ones.

    The sum of their volumes counts twice what two balls share; it is exact for particles that are further apart. The union is what to
    expect of balls that lie independently of each other: a cell is free with a chance of `(1 - ball / cells)^number`.
    """
    ball = len(ball_cells(radius)) / cells
    return 1 - (1 - min(ball, 1.0)) ** number if union else number * ball


def with_background(maps: Tensor) -> Tensor:
    """Return `(b, classes + 1, ...)`: maps of classes, and last what they leave of 1; every cell sums to 1."""
    background = 1 - maps.sum(1, keepdim=True).clamp(0, 1)
    whole = torch.cat([maps, background], dim=1)
    return whole / whole.sum(1, keepdim=True)


def pad_particles(points: Sequence[Tensor]) -> Tensor:
    """Return `(b, n, 4)` of per-crop lists `(n_i, 4)`, padded with class -1."""
    longest = max((len(p) for p in points), default=0)
    padded = torch.full((len(points), max(longest, 1), 4), -1.0)
    for row, p in zip(padded, points, strict=True):
        row[: len(p)] = p
    return padded
