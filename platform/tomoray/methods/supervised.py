"""Supervised heat-map regression: the burn-in stage and the first baseline of SemiETPicker.

Paper: Lin et al. 2025, SemiETPicker, arXiv 2510.22454.
Adds: an asymmetric U-Net, Gaussian heat maps at stride 2 and a reweighted squared error.
Needs: tomograms whose particles of every class are all marked; or, with `known_radii`, some of them.
Departs: normalisation, schedule and strengths of augmentation are not in the paper; ours are stated where they stand.
Tests: the loss's analytic values, a gradient for every weight, a falling loss, a resumed run equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tomoray.losses import Reduce, reweighted_mse
from tomoray.methods.base import FromLabels
from tomoray.targets import ball_masks, gaussian_heatmaps, heatmap_sigmas
from tomoray.tomogram import Particle

UNKNOWN = -1.0  # in a target


class Supervised(FromLabels):
    """Learn heat maps from labelled crops.

    Parameters
    ----------
    network
        Maps a volume to logits, one channel per class.
    particles
        The classes, in the order of the network's channels.
    voxel_angstrom
        Voxel size of the crops.
    background_weight, reduce
        See `losses.reweighted_mse`.
    known_radii
        For tomograms in which only some particles are marked: cells further from every marked one than so many of its radii do not count,
        since who lies there nobody has said. 0: all cells count.
    intensity_strength
        Size of the intensity augmentations; 0 turns them off.
    """

    def __init__(
        self,
        network: nn.Module,
        particles: Sequence[Particle],
        voxel_angstrom: float,
        *,
        background_weight: float = 4.0,
        reduce: Reduce = "joint",
        known_radii: float = 0.0,
        intensity_strength: float = 1.0,
    ) -> None:
        super().__init__(network, particles, voxel_angstrom, intensity_strength=intensity_strength)
        self.sigmas = heatmap_sigmas(particles, voxel_angstrom, self.stride)
        self.background_weight = background_weight
        self.reduce: Reduce = reduce
        self.known_cells = [known_radii * p.radius_angstrom / (voxel_angstrom * self.stride) for p in particles] if known_radii else []

    def target(self, particles: Tensor, shape: Sequence[int]) -> Tensor:
        """Return what the scores of crops of a shape shall be: `(b, classes, d / stride, ...)`, from particles `(b, n, 4)`.

        `UNKNOWN` where nobody has said what lies there.
        """
        maps = gaussian_heatmaps(particles, self.sigmas, shape, stride=self.stride)
        if not self.known_cells:
            return maps
        known = ball_masks(particles, self.known_cells, shape, stride=self.stride).amax(1, keepdim=True)
        return maps.where(known > 0, UNKNOWN)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return how far logits are from a target; the least where their scores are the target, be it soft or not."""
        known = target != UNKNOWN if self.known_cells else None
        return reweighted_mse(logits.float().sigmoid(), target, background_weight=self.background_weight, reduce=self.reduce, known=known)
