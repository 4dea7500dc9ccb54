"""Soft F1: how well score maps agree with what is marked, cell by cell, without picks and without a threshold (TomoPicker's validation).

Uddin et al. 2024 (bioRxiv 2024.11.04.620735, code): only crops in which something is marked count, so that particles which nobody marked
elsewhere cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoray.patches import cut, grid_corners, points_near
from tomoray.targets import ball_masks, pad_particles

CROPS_AT_ONCE = 8


def soft_counts(scores: Tensor, marked: Tensor) -> Tensor:
    """Return `(classes, 3)` sums over crops `(b, classes, d, h, w)`: scores in marked cells, all scores, and the number of marked cells.

    Of each class only the crops count in which some of its cells are marked; what is marked is 1, everything else 0. Sums of several
    batches, tomograms or workers may be added up.
    """
    cells = marked.double().sum((2, 3, 4))
    sums = torch.stack([(scores * marked).double().sum((2, 3, 4)), scores.double().sum((2, 3, 4)), cells], dim=-1)
    return (sums * (cells > 0)[..., None]).sum(0)


def soft_f1(counts: Tensor) -> Tensor:
    """Return the F1 of each class, NaN where nothing is marked, of `soft_counts` `(classes, 3)`.

    Precision is the share of all scores that lies in marked cells, recall the mean score there; their harmonic mean is
    `2 inside / (all + cells)`.
    """
    inside, everything, cells = counts.unbind(-1)
    return torch.where(cells > 0, 2 * inside / (everything + cells), torch.nan)


@torch.inference_mode()
def soft_counts_of(picker: nn.Module, volume: NDArray[np.float32], points: NDArray[np.float64], radii: Sequence[float], patch_vox: int) -> Tensor:
    """Return `soft_counts` of the cubes that cover a prepared volume `(d, h, w)` side by side, those left out in which nothing is marked.

    Parameters
    ----------
    picker
        In eval mode; it sees each cube by itself, as in training.
    points
        `(n, 4)`: class number, then z, y, x in voxels.
    radii
        Radius per class, in cells of the score map, of the balls that are marked around them.
    """
    weights, stride = next(picker.parameters()), int(picker.stride)  # type: ignore[arg-type]
    halo = (max(radii) + 1) * stride
    near = ((corner, points_near(points, corner, patch_vox, halo)) for corner in grid_corners(volume.shape, patch_vox))
    some = [(corner, inside) for corner, inside in near if len(inside)]
    total = torch.zeros(len(radii), 3, dtype=torch.float64)
    for first in range(0, len(some), CROPS_AT_ONCE):
        group = some[first : first + CROPS_AT_ONCE]
        crops = torch.from_numpy(np.stack([cut(volume, corner, patch_vox) for corner, _ in group]))[:, None]
        marked = ball_masks(pad_particles([torch.from_numpy(inside).float() for _, inside in group]), radii, (patch_vox,) * 3, stride=stride)
        total += soft_counts(picker(crops.to(weights)).float().cpu(), marked)
    return total
