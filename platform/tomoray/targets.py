"""Targets: what a network shall answer where particles lie.

Particles of a batch of crops travel as one padded tensor `(b, n, 4)`: class number, then z, y, x in voxels from the crop's corner.
A class number of -1 marks padding. Points outside the crop are allowed: their halo may reach in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomoray.tomogram import Particle

SIGMA_OF_RADIUS = 0.5  # "half the typical radius" (Lin et al. 2025)


def heatmap_sigmas(particles: Sequence[Particle], voxel_angstrom: float, stride: int = 2) -> list[float]:
    """Return the standard deviation of each class's Gaussian, in cells of the heat map."""
    return [SIGMA_OF_RADIUS * p.radius_angstrom / (voxel_angstrom * stride) for p in particles]


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


def pad_particles(points: Sequence[Tensor]) -> Tensor:
    """Return `(b, n, 4)` of per-crop lists `(n_i, 4)`, padded with class -1."""
    longest = max((len(p) for p in points), default=0)
    padded = torch.full((len(points), max(longest, 1), 4), -1.0)
    for row, p in zip(padded, points, strict=True):
        row[: len(p)] = p
    return padded
