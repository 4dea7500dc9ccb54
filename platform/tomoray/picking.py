"""From one volume to score maps, and from score maps to candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tomoray.networks import Picker
from tomoray.peaks import Finder, find_components, find_peaks, window_widths
from tomoray.tomogram import Particle, Picks
from tomoray.training import Precision, autocast_dtype
from tomoray.views import check_views, mean_of_views

FLOOR = 0.02  # candidates below this score are not kept: no threshold worth having lies there

GAUSSIAN_OF_TILE = 0.125  # width of the blending window as a share of the tile, MONAI's default


@dataclass(frozen=True)
class Window:
    """How a volume is cut for the network: cubic tiles that overlap, each seen in 1, 4 or 8 mirrored views."""

    tile_vox: int = 96
    overlap: float = 0.25
    views: int = 1

    def __post_init__(self) -> None:
        if self.tile_vox < 16 or self.tile_vox % 2:
            raise ValueError(f"tile_vox {self.tile_vox}: it must be even and at least 16")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}: it must lie in [0, 1)")
        check_views(self.views)


def pick(
    picker: Picker,
    volume: NDArray[np.float32],
    particles: Sequence[Particle],
    voxel_angstrom: tuple[float, float, float],
    *,
    run: str,
    window: Window = Window(),
    floor: float = FLOOR,
    precision: Precision = "float32",
    finder: Finder = "peaks",
) -> Picks:
    """Return every candidate of a prepared volume `(d, h, w)` that scores above `floor`, in angstrom from its corner."""
    scores = predict(picker, volume, window=window, precision=precision)
    if finder == "components":
        peaks = find_components(scores, floor=floor)
    else:
        peaks = find_peaks(scores, window_widths(particles, float(np.mean(voxel_angstrom)), picker.stride), floor=floor)
    names = np.array([p.name for p in particles], dtype=np.str_)
    positions = peaks.positions_vox(picker.stride).double().numpy() * np.asarray(voxel_angstrom)
    return Picks(run, positions, names[peaks.labels.numpy()], peaks.scores.double().numpy())


@torch.inference_mode()
def predict(picker: Picker, volume: NDArray[np.float32], *, window: Window = Window(), precision: Precision = "float32") -> Tensor:
    """Return score maps `(classes, d / stride, h / stride, w / stride)` (rounded up), float32, of a prepared volume `(d, h, w)`.

    Tiles overlap and are blended with Gaussian weights; with several views the mean of their scores counts. The maps stay on the
    picker's device.
    """
    device = next(picker.parameters()).device
    dtype = autocast_dtype(precision, device)
    modes = [(module, module.training) for module in picker.modules()]  # one by one: a teacher stays in eval where its picker is not
    picker.eval()
    cells = [-(-n // picker.stride) for n in volume.shape]
    grid = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)).to(device)[None, None]
    grid = F.pad(grid, _to_multiple(volume.shape, picker.stride))
    tile = [min(window.tile_vox, n) for n in grid.shape[2:]]
    weights = _gaussian_weights([t // picker.stride for t in tile], device)
    total, mass = None, torch.zeros(cells, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for corner in product(*(tile_starts(n, t, window.overlap, picker.stride) for n, t in zip(grid.shape[2:], tile, strict=True))):
            z, y, x = (slice(c, c + t) for c, t in zip(corner, tile, strict=True))
            piece = grid[..., z, y, x]
            scores = mean_of_views(picker, piece, window.views)[0]
            total = scores.new_zeros((len(scores), *cells)) if total is None else total
            place = tuple(slice(c // picker.stride, (c + t) // picker.stride) for c, t in zip(corner, tile, strict=True))
            total[(slice(None), *place)] += scores * weights
            mass[place] += weights
    for module, mode in modes:
        module.training = mode
    assert total is not None
    return total / mass


def tile_starts(length: int, tile: int, overlap: float, stride: int) -> list[int]:
    """Return where tiles start along an axis: evenly spread, on the stride, at least `overlap` shared, the last ending at `length`."""
    if tile >= length:
        return [0]
    step = max(stride, int(tile * (1 - overlap)) // stride * stride)  # on the stride, or rounding below would eat into the overlap
    count = 1 + math.ceil((length - tile) / step)
    return [stride * round((length - tile) * i / (count - 1) / stride) for i in range(count)]


def _to_multiple(shape: Sequence[int], stride: int) -> tuple[int, ...]:
    return tuple(amount for n in reversed(shape) for amount in (0, -n % stride))


def _gaussian_weights(cells: Sequence[int], device: torch.device) -> Tensor:
    axes = []
    for n in cells:
        offset = torch.arange(n, device=device) - (n - 1) / 2
        axes.append(torch.exp(-(offset**2) / (2 * (GAUSSIAN_OF_TILE * n) ** 2)))
    z, y, x = axes
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).clamp_min(1e-3)
