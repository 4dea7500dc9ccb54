"""Networks: each maps a volume `(b, 1, d, h, w)` to logits `(b, classes, d / stride, h / stride, w / stride)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from tomoray.networks.deepfinder import DeepFinder
from tomoray.networks.fpn import FPN
from tomoray.networks.resunet import ResUNet
from tomoray.networks.unet import AsymmetricUNet
from tomoray.networks.vnet import VNet

Activation = Literal["sigmoid", "softmax"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "asymmetric_unet": AsymmetricUNet,
    "fpn": FPN,
    "vnet": VNet,
    "deepfinder": DeepFinder,
    "resunet": ResUNet,
}


class Picker(nn.Module):
    """A network with the activation that turns its logits into scores in [0, 1].

    Scores are independent per class (`sigmoid`), or share one unit with a background channel, which comes last and is dropped
    (`softmax`).
    """

    def __init__(self, network: nn.Module, activation: Activation = "sigmoid") -> None:
        super().__init__()
        self.network = network
        self.activation = activation

    @property
    def stride(self) -> int:
        """Voxels of the volume per cell of the score map, along each axis."""
        return int(self.network.stride)  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> Tensor:
        """Return scores `(b, classes, d / stride, h / stride, w / stride)` of volumes `(b, 1, d, h, w)`."""
        logits: Tensor = self.network(volume).float()  # else scores near 1 are rounded to few values, and peaks become plateaus
        if self.activation == "softmax":
            return logits.softmax(dim=1)[:, :-1]
        return logits.sigmoid()


def build_network(name: str, **options: Any) -> nn.Module:
    """Return a new network.

    Raises
    ------
    ValueError
        If there is no network of that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is not known; it must be one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](**options)


def build_picker(name: str, *, classes: int, activation: Activation = "sigmoid", **options: Any) -> Picker:
    """Return a picker with fresh weights, its network with one more output for the background where scores share one unit with it."""
    return Picker(build_network(name, classes=classes + (activation == "softmax"), **options), activation)
