"""From one volume to score maps, and from score maps to candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoray.peaks import Finder, clearing_radii, find_components, find_greedy, find_peaks, window_widths
from tomoray.tiles import Window, blending_weights
from tomoray.tomogram import Particle, Picks
from tomoray.views import mean_of_views

log = logging.getLogger(__name__)

FLOOR = 0.02  # candidates below this score are not kept: no threshold worth having lies there


def pick(
    picker: nn.Module,
    volume: NDArray[np.floating],
    particles: Sequence[Particle],
    voxel_angstrom: tuple[float, float, float],
    *,
    run: str,
    window: Window = Window(),
    floor: float = FLOOR,
    finder: Finder = "peaks",
    refine: bool = True,
) -> Picks:
    """Return every candidate of a prepared volume `(d, h, w)` that scores above `floor`, in angstrom from its corner.

    With `refine`, peaks lie between cells, where their scores say (see `peaks.find_peaks`).
    """
    scores, stride = predict(picker, volume, window=window), cast(int, picker.stride)
    voxel = float(np.mean(voxel_angstrom))
    if finder == "components":
        peaks = find_components(scores, floor=floor)
    elif finder == "greedy":
        peaks = find_greedy(scores, clearing_radii(particles, voxel, stride), floor=floor)
    else:
        peaks = find_peaks(scores, window_widths(particles, voxel, stride), floor=floor, refine=refine)
    names = np.array([p.name for p in particles], dtype=np.str_)
    positions = peaks.positions_vox(stride).double().numpy() * np.asarray(voxel_angstrom)
    return Picks(run, positions, names[peaks.labels.numpy()], peaks.scores.double().numpy())


@torch.inference_mode()
def predict(picker: nn.Module, volume: NDArray[np.floating], *, window: Window = Window()) -> Tensor:
    """Return score maps `(classes, d / stride, h / stride, w / stride)` (rounded up), float32, of a prepared volume `(d, h, w)`.

    The picker computes in the precision of its weights (see `inference.for_inference`). Tiles overlap and are blended with Gaussian
    weights; with several views the mean of their scores counts. The maps stay on the picker's device. Where that has no memory for such
    tiles, smaller ones are tried.
    """
    weights = next(picker.parameters())
    modes = [(module, module.training) for module in picker.modules()]  # one by one: a teacher stays in eval where its picker is not
    picker.eval()
    values = np.ascontiguousarray(volume)
    grid = torch.from_numpy(values if values.flags.writeable else values.copy()).to(weights.device, non_blocking=True)
    try:
        while True:
            try:
                return _predict_tiles(picker, grid, window, weights.dtype)
            except torch.OutOfMemoryError:
                if window == window.smaller():
                    raise
                window = window.smaller()
                log.warning("no memory for such tiles; going on with smaller ones: %s", window)
    finally:
        for module, mode in modes:
            module.training = mode


def _predict_tiles(picker: nn.Module, grid: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    stride = cast(int, picker.stride)
    cells = [-(-n // stride) for n in grid.shape]
    corners, tile = window.tiles([n * stride for n in cells], stride)
    weights = blending_weights([t // stride for t in tile], grid.device)
    total, mass = None, torch.zeros(cells, device=grid.device)
    for corner in corners:
        z, y, x = (slice(c, c + t) for c, t in zip(corner, tile, strict=True))
        piece = grid[z, y, x].to(dtype)
        piece = F.pad(piece, [amount for n, t in zip(reversed(piece.shape), reversed(tile), strict=True) for amount in (0, t - n)])
        scores = mean_of_views(picker, piece[None, None], window.views)[0]
        if len(corners) == 1:
            return scores
        total = scores.new_zeros((len(scores), *cells)) if total is None else total
        place = tuple(slice(c // stride, (c + t) // stride) for c, t in zip(corner, tile, strict=True))
        total[(slice(None), *place)] += scores * weights
        mass[place] += weights
    assert total is not None
    return total.div_(mass)
