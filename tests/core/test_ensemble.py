"""Several checkpoints as one picker: what must agree, and that the mean is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoray.checkpoint import Card, save_checkpoint
from tomoray.config import ConfigError
from tomoray.ensemble import Ensemble, ensemble_card, load_ensemble
from tomoray.networks import build_picker
from tomoray.picking import predict
from tomoray.tiles import Window
from tomoray.tomogram import Particle

CARD = Card(
    (Particle("small", 60.0), Particle("large", 100.0)),
    10.0,
    "dark",
    {"name": "asymmetric_unet", "width": 4, "blocks": [1, 1]},
    thresholds={"small": 0.25, "large": 0.5},
)


def save(folder: Path, card: Card = CARD, seed: int = 0) -> str:
    torch.manual_seed(seed)
    folder.mkdir()
    save_checkpoint(folder, card, card.build())
    return str(folder)


def test_scores_and_thresholds_are_means(tmp_path: Path) -> None:
    """Planted: only the first picker asked; the first card's thresholds kept."""
    other = replace(CARD, thresholds={"small": 0.35, "large": 0.9})
    both = (save(tmp_path / "a", seed=1), save(tmp_path / "b", other, seed=2))
    volume = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        alone = [load_ensemble((uri,), precision="float32", device="cpu")(volume) for uri in both]
        together = load_ensemble(both, precision="float32", device="cpu")(volume)
    assert torch.allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert not torch.allclose(together, alone[0], atol=1e-6)
    assert ensemble_card(both).thresholds == pytest.approx({"small": 0.3, "large": 0.7})
    assert ensemble_card(both[:1]) == replace(CARD, network=ensemble_card(both[:1]).network)
    unset = save(tmp_path / "c", replace(CARD, thresholds={"small": 0.1}))
    assert set(ensemble_card((*both, unset)).thresholds) == {"small"}, "what one does not know must be given"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"particles": CARD.particles[::-1]}, r"particles is large \(100 angstrom\), small \(60 angstrom\) where .* has small"),
        ({"voxel_angstrom": 7.84}, "voxel_angstrom is 7.84 where .* has 10.0; .*must agree in particles, voxel_angstrom, .*: pick with each alone"),
        ({"contrast": "bright"}, "contrast is bright where .* has dark"),
        ({"clip_sd": 3.0}, "clip_sd is 3.0 where .* has 0.0"),
        ({"finder": "components"}, "finder is components where .* has peaks"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path: Path, changes, message: str) -> None:
    uris = (save(tmp_path / "a"), save(tmp_path / "b", replace(CARD, **changes)))
    with pytest.raises(ConfigError, match=message):
        ensemble_card(uris)


def test_a_volume_in_tiles_has_the_mean_of_its_maps_everywhere() -> None:
    """Planted: weights that blend tiles applied once per picker."""
    torch.manual_seed(0)
    pickers = [build_picker("asymmetric_unet", classes=2, width=4, blocks=(1, 1)).eval() for _ in range(3)]
    volume = np.random.default_rng(0).normal(size=(33, 40, 70)).astype(np.float32)
    together = predict(Ensemble(pickers), volume, window=Window(32))
    apart = torch.stack([predict(picker, volume, window=Window(32)) for picker in pickers])
    assert apart.std(0).mean() > 1e-5
    torch.testing.assert_close(together, apart.mean(0))


def test_maps_of_different_size_are_refused(tmp_path: Path) -> None:
    full = replace(CARD, network={"name": "deepfinder"})
    uris = (save(tmp_path / "a"), save(tmp_path / "b", full))
    with pytest.raises(ValueError, match="stride"):
        load_ensemble(uris, precision="float32", device="cpu")
    with pytest.raises(ValueError, match="0 pickers"):
        Ensemble([])
