"""Candidates in score maps: peaks, where a class's score is the highest around, or components, what hangs together of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tomoray.tomogram import Particle

Finder = Literal["peaks", "components"]
"""How score maps become candidates: `find_peaks` or `find_components`."""


@dataclass(frozen=True)
class Peaks:
    """Peaks or components of one tomogram, sorted by class, then by falling score.

    Attributes
    ----------
    labels
        `(n,)` int64, class number.
    cells_zyx
        `(n, 3)`, cell of the score map: int64 for peaks, float32 for the centroids of components.
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


def find_peaks(scores: Tensor, widths: Sequence[int], *, floor: float) -> Peaks:
    """Return the local maxima above `floor` of score maps `(classes, d, h, w)`.

    A cell is a peak when no cell in the window of its class's width around it scores higher, and none that comes before it in memory
    scores the same: of a plateau one cell survives, where the usual `map == max_pool(map)` keeps them all. The answer is that of
    the dense definition, but only cells above the floor are looked at: first against their 26 neighbours, which leaves few, then
    against the rest of the window.
    """
    found = [_peaks_of_class(map_, width, floor) for map_, width in zip(scores, widths, strict=True)]
    labels = torch.cat([torch.full((len(s),), label, dtype=torch.int64) for label, (_, s) in enumerate(found)])
    return Peaks(labels, torch.cat([cells for cells, _ in found]).cpu(), torch.cat([s for _, s in found]).float().cpu())


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


def _peaks_of_class(scores: Tensor, width: int, floor: float) -> tuple[Tensor, Tensor]:
    reach = width // 2
    cells = (scores > floor).nonzero()
    if len(cells) and reach:
        padded = F.pad(scores, (reach,) * 6, value=-torch.inf)
        strides = torch.tensor(padded.stride(), device=scores.device)
        values = padded.reshape(-1)
        steps = list(product(range(-reach, reach + 1), repeat=3))
        near = [step for step in steps if max(map(abs, step)) == 1]
        for ring in (near, [step for step in steps if max(map(abs, step)) > 1]):
            cells = cells[_tops(values, ((cells + reach) * strides).sum(1), ring, strides)]
    peaks = scores[tuple(cells.T)]
    order = torch.argsort(peaks, descending=True, stable=True)
    return cells[order], peaks[order]


def _tops(values: Tensor, here: Tensor, steps: Sequence[tuple[int, ...]], strides: Tensor) -> Tensor:
    """Return a mask of the places whose value no neighbour beats, and no earlier neighbour equals."""
    top = torch.ones(len(here), dtype=torch.bool, device=values.device)
    own = values[here]
    for step in steps:
        offset = int((torch.tensor(step, device=strides.device) * strides).sum())
        other = values[here + offset]
        top &= own > other if offset < 0 else own >= other
    return top
