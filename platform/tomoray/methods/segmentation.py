"""Segmentation into spheres, picked by connected components: the other kind of baseline, as DeepFinder and DeepFindET.

Paper: Moebel et al. 2021, DeepFinder, doi 10.1038/s41592-021-01275-4.
Adds: every cell is given a class or the background; a multi-class Dice loss; particles are what hangs together.
Needs: what `supervised` needs, and a network with one more output, for the background; `deepfinder` is the paper's.
Departs: connected components in place of mean shift (sturdier, SaSi table 1); spheres of half the radius, so that neighbours stay apart.
Tests: spheres by their centroid and volume, the loss's analytic values, a falling loss on a toy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from tomoray.losses import dice_loss, weighted_cross_entropy
from tomoray.methods.base import FromLabels
from tomoray.networks import Activation
from tomoray.peaks import Finder
from tomoray.targets import sphere_masks, with_background
from tomoray.tomogram import Particle


class Segmentation(FromLabels):
    """Learn from labelled crops which cells lie in which particle.

    Parameters
    ----------
    network
        Maps a volume to logits, one channel per class and one for the background, which comes last.
    particles, voxel_angstrom
        The classes, in the order of the network's channels, and the voxel size of the crops.
    radius_fraction
        Radius of the spheres in radii of the particle. With 1 touching particles become one component.
    cross_entropy_weight
        Weight of a cross-entropy beside the Dice loss; 0 leaves it out.
    intensity_strength
        Size of the intensity augmentations; 0 turns them off.
    """

    activation: ClassVar[Activation] = "softmax"
    finder: Finder = "components"

    def __init__(
        self,
        network: nn.Module,
        particles: Sequence[Particle],
        voxel_angstrom: float,
        *,
        radius_fraction: float = 0.5,
        cross_entropy_weight: float = 0.0,
        intensity_strength: float = 1.0,
    ) -> None:
        super().__init__(network, particles, voxel_angstrom, intensity_strength=intensity_strength)
        self.radii = [radius_fraction * p.radius_angstrom / (voxel_angstrom * self.stride) for p in particles]
        self.cross_entropy_weight = cross_entropy_weight

    def target(self, particles: Tensor, shape: Sequence[int]) -> Tensor:
        """Return what the scores of crops of a shape shall be: `(b, classes, d / stride, ...)`, without background, like a picker's scores."""
        return sphere_masks(particles, self.radii, shape, stride=self.stride)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return how far logits `(b, classes + 1, ...)` are from a target `(b, classes, ...)`; what the classes leave of 1 is background."""
        logits, whole = logits.float(), with_background(target)
        loss = dice_loss(logits.softmax(dim=1), whole)
        if self.cross_entropy_weight:
            loss = loss + self.cross_entropy_weight * weighted_cross_entropy(logits, whole, class_weight=1.0)
        return loss
