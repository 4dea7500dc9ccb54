"""How a volume is cut for the network: tiles that overlap, and the weights that blend them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from tomoray.views import check_views

BUDGET_VOX = 10_000_000  # per tile: 1.2 GB of activations at full width, and few enough tiles that overlaps cost little
OVERLAP_VOX = 32  # between tiles that a budget decides: what lies further inside a tile hardly depends on where it ends
GAUSSIAN_OF_TILE = 0.125  # width of the blending window as a share of the tile, MONAI's default


@dataclass(frozen=True)
class Window:
    """What of a volume the network sees at a time.

    Attributes
    ----------
    tile_vox
        Edge of cubic tiles. 0: the tiles with the least to compute among those of at most `budget_vox` voxels; the whole volume where it fits.
    overlap
        Share that neighbouring cubic tiles overlap. The published sliding window has tiles of 90 that overlap by a quarter.
    views
        Mirrored views (1, 4 or 8) of each tile whose scores are averaged.
    budget_vox
        Voxels per tile that time and memory allow.
    """

    tile_vox: int = 0
    overlap: float = 0.25
    views: int = 1
    budget_vox: int = BUDGET_VOX

    def __post_init__(self) -> None:
        if self.tile_vox and (self.tile_vox < 16 or self.tile_vox % 2):
            raise ValueError(f"tile_vox {self.tile_vox}: it must be even and at least 16, or 0 for tiles as large as budget_vox allows")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}: it must lie in [0, 1)")
        check_views(self.views)

    def tiles(self, shape: Sequence[int], stride: int) -> tuple[list[tuple[int, ...]], list[int]]:
        """Return the corners of the tiles of a volume whose edges are multiples of a stride, and the shape that they share."""
        if self.tile_vox:
            tile = [min(self.tile_vox, n) for n in shape]
            steps = [int(t * (1 - self.overlap)) for t in tile]
        else:
            tile = tile_of_least_work(shape, self.budget_vox, stride)
            steps = [t - OVERLAP_VOX for t in tile]
        axes = (tile_starts(n, t, step, stride) for n, t, step in zip(shape, tile, steps, strict=True))
        return list(product(*axes)), tile

    def smaller(self) -> Window:
        """Return a window with tiles of half the voxels, for a device that has no memory for these."""
        if self.tile_vox:
            return replace(self, tile_vox=max(16, int(self.tile_vox * 0.5 ** (1 / 3)) // 2 * 2))
        return replace(self, budget_vox=self.budget_vox // 2)


def tile_of_least_work(shape: Sequence[int], budget_vox: int, stride: int) -> list[int]:
    """Return the shape of equal tiles that overlap by `OVERLAP_VOX`, cover a volume, hold at most a budget, and are least in sum.

    Of tiles that cost the same the fewer. A budget that not even tiles of twice the overlap satisfy is taken to be theirs.
    """
    choices = [list(_divisions(n, stride)) for n in shape]
    best: tuple[int, int, list[int]] | None = None
    for axes in product(*choices):
        tile = [t for t, _ in axes]
        count = math.prod(k for _, k in axes)
        work = count * math.prod(tile)
        if math.prod(tile) <= budget_vox and (best is None or (work, count) < best[:2]):
            best = (work, count, tile)
    return best[2] if best else [options[-1][0] for options in choices]


def _divisions(length: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the edge and the number of overlapping tiles along an axis, from one tile to tiles of twice the overlap."""
    yield length, 1
    for count in range(2, length):
        tile = -(-(length + (count - 1) * OVERLAP_VOX) // count)
        tile += -tile % stride
        if tile < 2 * OVERLAP_VOX:
            return
        yield tile, count


def tile_starts(length: int, tile: int, step: int, stride: int) -> list[int]:
    """Return where tiles start along an axis: evenly spread, on the stride, at most a step apart, the last ending at `length`."""
    if tile >= length:
        return [0]
    step = max(stride, step // stride * stride)  # on the stride, or rounding below would eat into the overlap
    count = 1 + math.ceil((length - tile) / step)
    return [stride * round((length - tile) * i / (count - 1) / stride) for i in range(count)]


def blending_weights(cells: Sequence[int], device: torch.device) -> Tensor:
    """Return the weight of every cell of a tile `(d, h, w)`: a Gaussian around its middle, so that a seam is nobody's."""
    axes = []
    for n in cells:
        offset = torch.arange(n, device=device) - (n - 1) / 2
        axes.append(torch.exp(-(offset**2) / (2 * (GAUSSIAN_OF_TILE * n) ** 2)))
    z, y, x = axes
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).clamp_min(1e-3)
