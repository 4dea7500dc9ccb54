"""Peaks of score maps: where a class's score is the highest around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from tomoray.tomogram import Particle


@dataclass(frozen=True)
class Peaks:
    """Peaks of one tomogram, sorted by class, then by falling score.

    Attributes
    ----------
    labels
        `(n,)` int64, class number.
    cells_zyx
        `(n, 3)` int64, cell of the score map.
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
    """Return the odd width, in cells, of the window in which a class keeps one peak: about half its radius to each side of none.

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
