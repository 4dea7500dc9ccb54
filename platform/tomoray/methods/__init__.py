"""Methods: one published way to learn a picker per module, all with the same small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tomoray.methods.base import Batch, FromLabels, Method, Metrics
from tomoray.methods.kaggle_ce import KaggleCE
from tomoray.methods.segmentation import Segmentation
from tomoray.methods.semietpicker import SemiETPicker
from tomoray.methods.supervised import Supervised
from tomoray.methods.tomopicker import TomoPicker
from tomoray.networks import Activation
from tomoray.tomogram import Particle

SUPERVISED: dict[str, type[FromLabels]] = {
    "supervised": Supervised,
    "kaggle_ce": KaggleCE,
    "segmentation": Segmentation,
    "tomopicker": TomoPicker,
}
"""Methods that learn from labels alone, and that co-training can build on."""

METHODS: dict[str, type[Method]] = {**SUPERVISED, "semietpicker": SemiETPicker}


def build_method(
    network: nn.Module,
    particles: Sequence[Particle],
    voxel_angstrom: float,
    *,
    name: str,
    supervised: Mapping[str, Any] | None = None,
    **options: Any,
) -> Method:
    """Return a method by name; `supervised` are the name and options of the method that co-training builds on.

    Raises
    ------
    ValueError
        If there is no method of that name.
    """
    if name in SUPERVISED:
        return SUPERVISED[name](network, particles, voxel_angstrom, **options)
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; it must be one of {', '.join(METHODS)}")
    student = {"name": "supervised", **(supervised or {})}
    return SemiETPicker(SUPERVISED[student.pop("name")](network, particles, voxel_angstrom, **student), particles, voxel_angstrom, **options)


def activation_of(*, name: str, supervised: Mapping[str, Any] | None = None, **_: Any) -> Activation:
    """Return how the logits of such a method become scores, which decides how many its network must give; arguments as of `build_method`."""
    return SUPERVISED[name if name in SUPERVISED else (supervised or {}).get("name", "supervised")].activation


__all__ = [
    "METHODS",
    "SUPERVISED",
    "Batch",
    "FromLabels",
    "KaggleCE",
    "Method",
    "Metrics",
    "Segmentation",
    "SemiETPicker",
    "Supervised",
    "TomoPicker",
    "activation_of",
    "build_method",
]
