"""Cross-entropy on single cells: the segmentation half of the solution that won the CZII challenge, as a stronger supervised baseline.

Source: Henkel 2025, first place of "CryoET Object Identification" (Kaggle): write-up, code, and CZI's re-implementation TopCUP.
Adds: a particle is one cell of its class, everything else background, weighed 256 to 1; MixUp of crops and targets.
Needs: what `supervised` needs, and a network with one more output, for the background.
Departs: no turns of 45 degrees about x, which turn the missing wedge too; our network, which stops at stride 2 like theirs; co-training is ours.
Tests: the loss's analytic values, targets that sum to 1 under MixUp too, no slope where student and teacher agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from tomoray.augment import mixup
from tomoray.losses import weighted_cross_entropy, without_weights
from tomoray.methods.base import FromLabels
from tomoray.networks import Activation
from tomoray.targets import single_cell_targets, with_background
from tomoray.tomogram import Particle


class KaggleCE(FromLabels):
    """Learn from labelled crops which cell holds the centre of which particle.

    Parameters
    ----------
    network
        Maps a volume to logits, one channel per class and one for the background, which comes last.
    particles, voxel_angstrom
        The classes, in the order of the network's channels, and the voxel size of the crops.
    class_weight
        How much more the cell of a particle weighs than one of background.
    mixup
        Blend crops of a batch; "crucial, more than doubles usable epochs", says the author.
    intensity_strength
        Size of the intensity augmentations; the recipe has none.
    """

    activation: ClassVar[Activation] = "softmax"

    def __init__(
        self,
        network: nn.Module,
        particles: Sequence[Particle],
        voxel_angstrom: float,
        *,
        class_weight: float = 256.0,
        mixup: bool = True,
        intensity_strength: float = 0.0,
    ) -> None:
        super().__init__(network, particles, voxel_angstrom, intensity_strength=intensity_strength)
        self.class_weight = class_weight
        self.mixup = mixup

    def augment(self, volume: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return labelled crops and targets turned, mirrored and blended."""
        volume, target = super().augment(volume, target)
        return mixup(volume, target) if self.mixup else (volume, target)

    def target(self, particles: Tensor, shape: Sequence[int]) -> Tensor:
        """Return what the scores of crops of a shape shall be: `(b, classes, d / stride, ...)`, without background, like a picker's scores."""
        return single_cell_targets(particles, len(self.particles), shape, stride=self.stride)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return how far logits `(b, classes + 1, ...)` are from a target `(b, classes, ...)`; what the classes leave of 1 is background."""
        return weighted_cross_entropy(logits.float(), with_background(target), class_weight=self.class_weight)

    def consistency(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return how far a student's logits are from a teacher's scores, which the weight of particles has raised already."""
        target = without_weights(with_background(scores), class_weight=self.class_weight)
        return weighted_cross_entropy(logits.float(), target, class_weight=self.class_weight)
