"""Sizes that a network cannot halve often enough: fill the volume up, and cut the answer back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(volume: Tensor, multiple: int) -> Tensor:
    """Return `(b, c, d, h, w)` with zeros, the mean of a normalised volume, behind its far faces, up to multiples of a number of voxels."""
    return F.pad(volume, [amount for n in reversed(volume.shape[2:]) for amount in (0, -n % multiple)])


def crop_to_volume(maps: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """Return the part of maps `(b, c, ...)` that covers a volume of shape `(d, h, w)`: `(d, h, w) / stride` cells, rounded up."""
    z, y, x = (-(-n // stride) for n in shape)
    return maps[..., :z, :y, :x]
