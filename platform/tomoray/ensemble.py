"""One checkpoint, or several that pick together: the mean of their scores, under one card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tomoray.checkpoint import Card, load_picker, read_card
from tomoray.config import ConfigError
from tomoray.inference import Precision, for_inference

AGREE = ("particles", "voxel_angstrom", "contrast", "clip_sd", "finder")


class Ensemble(nn.Module):
    """Several pickers of the same classes as one, whose scores are the mean of theirs.

    Raises
    ------
    ValueError
        If there is none, or their score maps differ in size.
    """

    def __init__(self, pickers: Sequence[nn.Module]) -> None:
        super().__init__()
        strides = {int(picker.stride) for picker in pickers}  # type: ignore[arg-type]
        if len(strides) != 1:
            raise ValueError(f"an ensemble of {len(pickers)} pickers of strides {sorted(strides)}; there must be some, all of one stride")
        self.pickers = nn.ModuleList(pickers)
        (self.stride,) = strides

    def forward(self, volume: Tensor) -> Tensor:
        """Return scores `(b, classes, d / stride, h / stride, w / stride)` of volumes `(b, 1, d, h, w)`."""
        first, *others = self.pickers
        total: Tensor = first(volume)
        for picker in others:
            total = total + picker(volume)
        return total / len(self.pickers)


def ensemble_card(checkpoints: Sequence[str]) -> Card:
    """Return how to use one checkpoint, or several together: the first card, with the mean of all thresholds and the least agreement.

    Raises
    ------
    ConfigError
        If they differ in classes, voxel size, contrast, clipping, or in how maps become candidates: their maps have no mean then.
    FormatError
        If one is no checkpoint.
    """
    first, *others = cards = [read_card(uri) for uri in checkpoints]
    for uri, card in zip(checkpoints[1:], others, strict=True):
        for what in AGREE:
            ours, theirs = getattr(first, what), getattr(card, what)
            if ours != theirs:
                raise ConfigError(
                    f"{uri}: {what} is {_spell(theirs)} where {checkpoints[0]} has {_spell(ours)}; "
                    f"checkpoints that pick together must agree in {', '.join(AGREE)}: pick with each alone"
                )
    shared = [name for name in first.thresholds if all(name in card.thresholds for card in cards)]
    thresholds = {name: sum(card.thresholds[name] for card in cards) / len(cards) for name in shared}
    return replace(first, thresholds=thresholds, agreement=min(card.agreement for card in cards))


def load_ensemble(checkpoints: Sequence[str], *, precision: Precision, device: torch.device | str) -> nn.Module:
    """Return the picker of one checkpoint, or of several together, ready to predict.

    Raises
    ------
    FormatError
        If one is no checkpoint, or damaged.
    ValueError
        If their score maps have different strides.
    """
    pickers = [for_inference(load_picker(uri, device=device)[0], precision) for uri in checkpoints]
    return Ensemble(pickers) if len(pickers) > 1 else pickers[0]


def _spell(value: object) -> str:
    return ", ".join(f"{p.name} ({p.radius_angstrom:g} angstrom)" for p in value) if isinstance(value, tuple) else str(value)
