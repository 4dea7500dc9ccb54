"""The interface that every method offers to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from tomoray.networks import Picker

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

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """Return the scalar loss and its terms; `progress` in [0, 1] drives every ramp."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Do what follows an optimiser step, such as moving a teacher; nothing by default."""

    def picker(self) -> Picker:
        """Return the network that `pick` will run."""
        raise NotImplementedError
