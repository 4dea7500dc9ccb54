"""A checkpoint: one folder with the picker's weights, the resumable state, the job as it ran, and the card.

    picker.pt     weights of the network to pick with
    card.json     how to use it: classes, voxel size, contrast, thresholds, network, where it comes from
    job.toml      the job as it ran
    state.pt      method, optimiser and random numbers, to go on training from

The card is plain data; only torch and numpy are needed to pick with a checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

import tomoray
from tomoray import storage
from tomoray.networks import Activation, Picker, build_picker
from tomoray.peaks import Finder
from tomoray.tomogram import Contrast, FormatError, Particle

PICKER, CARD, JOB, STATE = "picker.pt", "card.json", "job.toml", "state.pt"


@dataclass(frozen=True)
class Card:
    """How to use a picker.

    Attributes
    ----------
    particles
        Its classes, in the order of the score maps.
    voxel_angstrom, contrast
        Voxel size and contrast of the tomograms it was trained on; others are resampled and inverted to these.
    clip_sd
        Standard deviations from the mean beyond which values were clipped; 0: none were.
    network
        Name and options that build the network.
    activation
        How logits become scores.
    finder
        How score maps become candidates.
    tile_vox
        Edge of the cubic tiles that it wants; 0: any.
    thresholds
        Score from which a candidate of each class counts as a pick, chosen on validation tomograms. Empty: not chosen yet.
    validation
        What was measured on the validation tomograms, for people.
    agreement
        F1 of the picks in the precision that it was trained in against those in float32, one to one within a voxel, on a validation tomogram.
    method, code_version
        Where it comes from.
    """

    particles: tuple[Particle, ...]
    voxel_angstrom: float
    contrast: Contrast
    network: dict[str, Any]
    activation: Activation = "sigmoid"
    finder: Finder = "peaks"
    tile_vox: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    agreement: float = 1.0
    clip_sd: float = 0.0
    method: str = ""
    code_version: str = tomoray.__version__

    def build(self) -> Picker:
        """Return the picker with fresh weights."""
        return build_picker(**self.network, classes=len(self.particles), activation=self.activation)

    def with_thresholds(self, thresholds: Mapping[str, float], validation: Mapping[str, Any]) -> Card:
        """Return the card with thresholds and what they reached on the validation tomograms."""
        return replace(self, thresholds=dict(thresholds), validation=dict(validation))


def save_checkpoint(folder: str | Path, card: Card, picker: nn.Module, *, job: str = "", state: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint into an existing local folder."""
    folder = Path(folder)
    torch.save(picker.state_dict(), folder / PICKER)
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    (folder / JOB).write_text(job, encoding="utf-8")
    if state is not None:
        torch.save(dict(state), folder / STATE)


def read_card(uri: str | Path) -> Card:
    """Return the card of a checkpoint folder.

    Raises
    ------
    FormatError
        If the folder holds no card, or one that another version wrote.
    """
    where = storage.join(str(uri), CARD)
    try:
        table = json.loads(storage.read_bytes(where))
        table["particles"] = tuple(Particle(**p) for p in table["particles"])
        return Card(**table)
    except FileNotFoundError:
        raise FormatError(f"{uri}: no checkpoint, {CARD} is missing; give the folder that `tomoray train` printed") from None
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: not a card of tomoray {tomoray.__version__} ({error}); train again, or use the version that wrote it") from None


def load_picker(uri: str | Path, *, device: torch.device | str = "cpu") -> tuple[Picker, Card]:
    """Return the picker of a checkpoint folder, in eval mode on a device, and its card.

    Raises
    ------
    FormatError
        If the folder is no checkpoint or its weights do not fit its card.
    """
    card = read_card(uri)
    try:
        content = storage.read_bytes(storage.join(str(uri), PICKER))
        weights = _read_weights(content, device)
        _check_size(card, len(content))
        picker = card.build()
        picker.load_state_dict(weights)
    except FileNotFoundError:
        raise FormatError(f"{uri}: {PICKER} is missing; a checkpoint has it beside {CARD}: copy the whole folder, or train again") from None
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise FormatError(f"{uri}: {PICKER} does not fit {CARD} ({str(error).splitlines()[0]}); the checkpoint is damaged: train again") from None
    return picker.to(device).eval(), card


def _check_size(card: Card, size: int) -> None:
    """Stop before a network is built that is larger than the file of its weights: a card from strangers may claim any width."""
    with torch.device("meta"):
        promised = sum(value.numel() * value.element_size() for value in card.build().state_dict().values())
    if promised > size:
        raise ValueError(f"{size:,} bytes, where the card's network has weights of {promised:,}")


def _read_weights(content: bytes, device: torch.device | str) -> Any:
    if not zipfile.is_zipfile(io.BytesIO(content)):  # torch would take it for a pickle of old, and fail in a dozen ways
        raise ValueError("it is cut short, or no file of weights")
    try:
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except UnpicklingError:  # torch's own message advises to load it all the same, and so to run what it holds
        raise ValueError("it holds other things than weights") from None


def fingerprint(uri: str | Path, length: int = 12) -> str:
    """Return a short hash of a checkpoint's weights: another model, another name."""
    return hashlib.sha256(storage.read_bytes(storage.join(str(uri), PICKER))).hexdigest()[:length]
