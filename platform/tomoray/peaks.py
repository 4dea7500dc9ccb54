"""Candidates in score maps: local peaks, greedy picks (the highest first, each clearing its surroundings), or components of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tomoray.tomogram import Particle

Finder = Literal["peaks", "components", "greedy"]
"""How score maps become candidates: `find_peaks`, `find_components` or `find_greedy`."""

SLAB = 8  # planes that are compared at a time: they stay in a processor's cache
BLOCK = 16  # cells along an edge of the blocks that `find_greedy` looks at: few to queue, each read at once


@dataclass(frozen=True)
class Peaks:
    """Candidates of one tomogram, sorted by class, then by falling score.

    Attributes
    ----------
    labels
        `(n,)` int64, class number.
    cells_zyx
        `(n, 3)`, cell of the score map: int64, or float32 for refined peaks and for the centroids of components.
    scores
        `(n,)` float32.
    """

    labels: Tensor
    cells_zyx: Tensor
    scores: Tensor

    def positions_vox(self, stride: int) -> Tensor:
        """Return `(n, 3)` centres of the cells in voxels from the volume's corner: `(cell + 0.5) * stride`."""
        return (self.cells_zyx + 0.5) * stride


def window_widths(particles: Sequence[Particle], voxel_angstrom: float, stride: int = 2) -> list[int]:
    """Return the odd width, in cells, of the window in which a class keeps one peak: about half its radius.

    `2 * floor(0.5 * radius / (voxel * stride)) + 1`: 3, 3, 5, 7, 7, 7 for the CZII classes at 10 angstrom.
    """
    return [2 * int(0.5 * p.radius_angstrom / (voxel_angstrom * stride)) + 1 for p in particles]


def clearing_radii(particles: Sequence[Particle], voxel_angstrom: float, stride: int = 2) -> list[float]:
    """Return the radius of each class in cells, within which `find_greedy` keeps one pick."""
    return [p.radius_angstrom / (voxel_angstrom * stride) for p in particles]


def find_peaks(scores: Tensor, widths: Sequence[int], *, floor: float, refine: bool = False) -> Peaks:
    """Return the local maxima above `floor` of score maps `(classes, d, h, w)`.

    A cell is a peak when no cell in the window of its class's width around it scores higher, and none that comes before it in memory
    scores the same: of a plateau one cell survives, where the usual `map == max_pool(map)` keeps them all. The answer is that of
    the dense definition, found where the map lies: neighbours across a face are compared over the whole map, slab by slab, which leaves few
    cells above the floor; these are compared with all 26 neighbours, then with the whole window. The floor is rounded to the type of the map.

    With `refine`, each peak moves along each axis to the top of the parabola through its score and those of its two neighbours, by no
    more than half a cell, and not at all where one neighbour is missing or the parabola has no top (quadratic interpolation: Smith and
    Serra 1987, PARSHL). Which cells are peaks, and their scores, stay the same.
    """
    found = [_peaks_of_class(map_, width, floor) for map_, width in zip(scores, widths, strict=True)]
    cells = [_refined(map_, cells) if refine else cells for map_, (cells, _) in zip(scores, found, strict=True)]
    return _gathered(cells, [peaks for _, peaks in found])


def find_greedy(
    scores: Tensor, radii_cells: Sequence[float], *, floor: float, limit: int | None = None, shape: Literal["sphere", "cube"] = "sphere"
) -> Peaks:
    """Return what greedy picking takes from score maps `(classes, d, h, w)`: the highest cell first, each pick clearing its surroundings.

    A pick removes the cells within the radius of its class, by Euclidean distance (`sphere`, as in TomoPicker's paper) or along each
    axis (`cube`, as in its code, but with the far faces too), and the next highest is taken, the first in memory among equals, until
    none is above `floor` or a class has `limit` picks. TomoPicker has a limit and no floor, which is `-inf`. The floor is rounded to the
    type of the map, which holds no NaN.

    The picks are those of the plain search, which reads the whole map for each of them. Here blocks of cells wait in a queue by the
    highest score each may still hold. What is left only ever falls, so a block whose top is what the queue promised holds the highest
    cell of all; one whose top was cleared goes back into the queue. Beside the map it takes a byte a cell at most.

    Raises
    ------
    ValueError
        If a radius is negative or not a number, or the shape is neither.
    """
    if shape not in ("sphere", "cube"):
        raise ValueError(f"shape {shape!r} of greedy picking: it must be 'sphere' or 'cube'; correct it")
    if not all(radius >= 0 for radius in radii_cells):
        raise ValueError(f"radii_cells {list(radii_cells)} of greedy picking: each must be at least 0; give one per class, in cells of the map")
    found = [_greedy_of_class(map_, floor, limit, _ball(radius, shape)) for map_, radius in zip(scores, radii_cells, strict=True)]
    return _gathered([cells for cells, _ in found], [tops for _, tops in found])


def find_components(scores: Tensor, *, floor: float = 0.0, connectivity: Literal[6, 18, 26] = 26, min_cells: int = 1) -> Peaks:
    """Return the connected components of the segmentation that score maps `(classes, d, h, w)` of a softmax stand for.

    A cell belongs to the class that scores highest, or to the background where what the classes leave of 1 is as high. Cells of one class
    that touch, by default also at a corner, are one component: its centroid is the position, its mean score of that class the score. Those
    of fewer than `min_cells` cells, or that score no more than `floor`, are left out (SaSi, section 3.3, with neither).
    """
    import cc3d  # here, so that picking peaks needs no more than torch and numpy

    top, label = scores.float().max(0)
    inside = top > 1 - scores.float().sum(0)
    labelled = torch.where(inside, label + 1, 0).to(torch.int32).cpu().numpy()
    components, count = cc3d.connected_components(labelled, connectivity=connectivity, return_N=True)
    cells = np.nonzero(components)
    owner = components[cells].astype(np.int64) - 1
    sizes = np.bincount(owner, minlength=count)
    columns = (labelled[cells] - 1, top.cpu().numpy()[cells], *cells)
    labels, means, *centroid = (np.bincount(owner, weights=column, minlength=count) / sizes for column in columns)
    keep = np.flatnonzero((sizes >= min_cells) & (means > floor))
    keep = keep[np.lexsort((-means[keep], labels[keep]))]
    centroids = torch.from_numpy(np.stack(centroid, axis=1)[keep]).float()
    return Peaks(torch.from_numpy(labels[keep]).long(), centroids, torch.from_numpy(means[keep]).float())


def _gathered(cells: Sequence[Tensor], scores: Sequence[Tensor]) -> Peaks:
    labels = torch.cat([torch.full((len(s),), label, dtype=torch.int64) for label, s in enumerate(scores)])
    return Peaks(labels, torch.cat(list(cells)).cpu(), torch.cat(list(scores)).float().cpu())


def _peaks_of_class(scores: Tensor, width: int, floor: float) -> tuple[Tensor, Tensor]:
    reach = width // 2
    cells = torch.stack(torch.unravel_index(_above(scores, floor, faces=reach > 0), scores.shape), dim=1)
    for within in sorted({min(reach, 1), reach} - {0}):  # the nearest leave few to the whole window
        cells = cells[_tops(scores, cells, within)]
    peaks = scores[tuple(cells.T)]
    order = torch.argsort(peaks, descending=True, stable=True)
    return cells[order], peaks[order]


def _above(scores: Tensor, floor: float, *, faces: bool) -> Tensor:
    """Return where in memory cells lie above the floor, with `faces` without most of those that a neighbour across a face beats or equals."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        places: Tensor = _kept(scores, floor, faces=faces).reshape(-1).nonzero()[:, 0]
        return places
    map_ = scores.detach().numpy()  # on a processor numpy's comparisons, written the same, take a fraction of torch's time
    slabs = [_kept(map_[z : z + SLAB], floor, faces=faces) for z in range(0, len(map_), SLAB)]
    return torch.from_numpy(np.flatnonzero(np.concatenate(slabs)))


def _kept(slab: Any, floor: float, *, faces: bool) -> Any:
    """Return a mask of cells above the floor, with `faces` only of those that no neighbour in the slab beats, and no earlier one equals."""
    keep = slab > floor
    for axis in range(3) if faces else ():
        along, kept = slab.swapaxes(0, axis), keep.swapaxes(0, axis)
        rises = along[1:] > along[:-1]
        kept[1:] &= rises
        kept[:-1] &= ~rises
    return keep


def _tops(scores: Tensor, cells: Tensor, reach: int) -> Tensor:
    """Return a mask of the cells that none in the window beats, and no earlier one equals.

    Beyond the border the window repeats the cells at it, which are in it anyway. Rows along x are read whole.
    """
    depth, height, width = scores.shape
    values = scores.reshape(-1)
    z, y, x = cells.unbind(1)
    columns = (x + torch.arange(-reach, reach + 1, device=x.device)[:, None]).clamp(0, width - 1)
    own_row = (z * height + y) * width
    own = values[own_row + x]
    top = ~((values[own_row + columns] == own) & (columns < x)).any(0)
    for dz, dy in product(range(-reach, reach + 1), repeat=2):
        row = ((z + dz).clamp(0, depth - 1) * height + (y + dy).clamp(0, height - 1)) * width
        highest = values[row + columns].amax(0)
        top &= torch.where(row < own_row, own > highest, own >= highest)
    return top


def _refined(scores: Tensor, cells: Tensor) -> Tensor:
    """Return float32 cells, moved to the top of the parabola along each axis."""
    moved = cells.float()
    for axis, length in enumerate(scores.shape):
        step = torch.zeros_like(cells)
        step[:, axis] = 1
        inside = (cells[:, axis] > 0) & (cells[:, axis] < length - 1)
        at = cells[inside]
        low, here, high = (scores[tuple(c.T)].float() for c in (at - step[inside], at, at + step[inside]))
        curvature = low - 2 * here + high
        moved[inside, axis] += torch.where(curvature < 0, 0.5 * (low - high) / curvature, 0.0).clamp(-0.5, 0.5)
    return moved


def _greedy_of_class(scores: Tensor, floor: float, limit: int | None, ball: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    floor = float(torch.tensor(floor, dtype=scores.dtype))
    taken = np.zeros(scores.shape, dtype=np.bool_)
    queue = _queue_of_blocks(scores, floor)
    cells: list[tuple[int, ...]] = []
    tops: list[float] = []
    while queue and (limit is None or len(cells) < limit):
        _, _, corner = queue[0]
        block = tuple(slice(c, c + BLOCK) for c in corner)
        left = np.where(taken[block], -np.inf, scores[block].float().cpu().numpy())
        place = np.unravel_index(int(left.argmax()), left.shape)
        top, cell = float(left[place]), tuple(c + int(p) for c, p in zip(corner, place, strict=True))
        if not top > floor:
            heappop(queue)
        elif queue[0] != (-top, cell, corner):
            heapreplace(queue, (-top, cell, corner))
        else:  # its entry stays, a bound on what the block has left
            cells.append(cell)
            tops.append(top)
            _clear(taken, cell, ball)
    return torch.tensor(cells, dtype=torch.int64).reshape(-1, 3), torch.tensor(tops, dtype=torch.float32)


def _queue_of_blocks(scores: Tensor, floor: float) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Return a heap of (minus a bound on the score, a bound on the cell, corner) of the blocks with a cell above the floor."""
    slabs = [scores[z : z + BLOCK].amax(0) for z in range(0, len(scores), BLOCK)]
    tops = torch.cat([F.max_pool2d(slab[None].float(), BLOCK, ceil_mode=True) for slab in slabs]).cpu().numpy()
    blocks = np.nonzero(tops > floor)
    corners = [tuple(corner) for corner in (np.stack(blocks, axis=1) * BLOCK).tolist()]
    queue = [(-top, corner, corner) for top, corner in zip(tops[blocks].tolist(), corners, strict=True)]
    heapify(queue)
    return queue


def _ball(radius: float, shape: str) -> NDArray[np.bool_]:
    axis = np.arange(-int(radius), int(radius) + 1)
    if shape == "cube":
        return np.ones((len(axis),) * 3, dtype=np.bool_)
    squares = axis**2
    ball: NDArray[np.bool_] = squares[:, None, None] + squares[:, None] + squares <= radius**2
    return ball


def _clear(taken: NDArray[np.bool_], cell: Sequence[int], ball: NDArray[np.bool_]) -> None:
    reach = len(ball) // 2
    window = tuple(slice(max(0, c - reach), c + reach + 1) for c in cell)
    part = tuple(slice(max(0, reach - c), reach + n - c) for c, n in zip(cell, taken.shape, strict=True))
    taken[window] |= ball[part]
