"""The interface that every method offers to the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from tomoray.augment import random_flips_and_turns, random_intensity
from tomoray.networks import Activation, Picker
from tomoray.peaks import Finder
from tomoray.tomogram import Particle

Batch = Mapping[str, Mapping[str, Tensor]]
"""Stream name -> field name -> tensor: `volume` `(b, 1, d, h, w)`, and `particles` `(b, n, 4)` where the stream has labels."""

Metrics = dict[str, Tensor]
"""Terms worth logging, detached scalars."""


class Method(nn.Module):
    """A way to learn a picker: the loss over a batch, whatever moves after a step, and the network to pick with.

    The method, not the network, is what data-parallel training wraps, and its `state_dict()` is all that a resumed run needs beside
    the optimiser.
    """

    streams: ClassVar[tuple[str, ...]] = ("labelled",)
    finder: Finder = "peaks"  # how the scores of its picker become candidates

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """Return the scalar loss and its terms; `progress` in [0, 1] drives every ramp."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Do what follows an optimiser step, such as moving a teacher; nothing by default."""

    def picker(self) -> Picker:
        """Return the network that `pick` will run."""
        raise NotImplementedError


class FromLabels(Method):
    """A method that learns from labels alone, and that co-training can build on: one network, a target and a loss.

    Its children say what scores shall be where particles lie (`target`), and how far logits are from such a target (`loss`).
    """

    activation: ClassVar[Activation] = "sigmoid"

    def __init__(self, network: nn.Module, particles: Sequence[Particle], voxel_angstrom: float, *, intensity_strength: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.stride = cast(int, network.stride)
        self.particles = tuple(particles)
        self.voxel_angstrom = voxel_angstrom
        self.intensity_strength = intensity_strength

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """Return the loss over the labelled crops."""
        volume, particles = batch["labelled"]["volume"], batch["labelled"]["particles"]
        volume, target = self.augment(volume, self.target(particles, volume.shape[2:]))
        loss = self.loss(self.network(volume), target)
        return loss, {"supervised_loss": loss.detach()}

    def augment(self, volume: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return labelled crops and their targets as the network is to see them."""
        volume, target = random_flips_and_turns(volume, target)
        return random_intensity(volume, strength=self.intensity_strength), target

    def target(self, particles: Tensor, shape: Sequence[int]) -> Tensor:
        """Return what the scores of crops of a shape shall be: `(b, classes, d / stride, ...)`, from particles `(b, n, 4)`."""
        raise NotImplementedError

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return how far logits are from a target."""
        raise NotImplementedError

    def consistency(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return how far a student's logits are from a teacher's scores.

        It should be the least where both say the same: otherwise the student goes further than its teacher, which follows.
        """
        return self.loss(logits, scores)

    def picker(self) -> Picker:
        """Return the network with the activation that turns its logits into scores."""
        return Picker(self.network, self.activation)
