"""Checkpoints: the same scores after a round trip, cards as plain data, and damage that is named."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tomoray.checkpoint import CARD, JOB, PICKER, STATE, Card, fingerprint, load_picker, read_card, save_checkpoint
from tomoray.networks import NETWORKS, Picker
from tomoray.tomogram import CZII_PARTICLES, FormatError, Particle

TINY = {"name": "asymmetric_unet", "width": 4, "blocks": [1, 1]}
CARD_OF_TWO = Card(
    (Particle("small", 60.0), Particle("large one", 100.0, 2.0)),
    10.012,
    "dark",
    network=TINY,
    tile_vox=64,
    thresholds={"small": 0.25, "large one": 0.4},
    validation={"f1": {"value": 0.5, "runs": ["TS_1"]}},
    method="supervised",
)


def new_picker(card: Card = CARD_OF_TWO, seed: int = 0) -> Picker:
    torch.manual_seed(seed)
    picker = card.build()
    with torch.no_grad():
        picker(torch.randn(2, 1, 16, 16, 16))  # running means and deviations are part of a picker
    return picker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint on disk."""
    save_checkpoint(tmp_path, CARD_OF_TWO, new_picker(), job="epochs = 3\n", state={"epochs": 3})
    return tmp_path


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_picker_comes_back_with_the_same_scores(tmp_path: Path, activation) -> None:
    """Planted: running statistics left out of the weights; training mode after loading."""
    card = replace(CARD_OF_TWO, activation=activation)
    picker = new_picker(card).eval()
    save_checkpoint(tmp_path, card, picker)
    torch.manual_seed(99)
    loaded, loaded_card = load_picker(tmp_path)
    volume = torch.randn(1, 1, 20, 24, 28)
    with torch.no_grad():
        assert torch.equal(loaded(volume), picker(volume))
        assert loaded(volume).shape[1] == 2
    assert loaded_card == card
    assert not any(module.training for module in loaded.modules())


def test_a_card_is_plain_json_and_comes_back_equal(folder: Path) -> None:
    table = json.loads((folder / CARD).read_text())
    assert table["particles"][1] == {"name": "large one", "radius_angstrom": 100.0, "metric_weight": 2.0}
    assert (table["voxel_angstrom"], table["contrast"], table["network"]) == (10.012, "dark", TINY)
    assert read_card(folder) == read_card(str(folder)) == CARD_OF_TWO


def test_a_folder_holds_the_job_and_the_state(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert (folder / JOB).read_text() == "epochs = 3\n"
    assert torch.load(folder / STATE, weights_only=True) == {"epochs": 3}
    bare = tmp_path_factory.mktemp("bare")
    save_checkpoint(bare, CARD_OF_TWO, new_picker())
    assert {path.name for path in bare.iterdir()} == {PICKER, CARD, JOB}


def test_thresholds_are_added_to_a_copy() -> None:
    card = Card(CZII_PARTICLES, 10.0, "dark", network=TINY)
    chosen = card.with_thresholds({"ribosome": 0.3}, {"f1": 0.7})
    assert (chosen.thresholds, chosen.validation) == ({"ribosome": 0.3}, {"f1": 0.7})
    assert (card.thresholds, card.validation) == ({}, {})
    assert replace(chosen, thresholds={}, validation={}) == card


def test_a_folder_without_card_is_no_checkpoint(tmp_path: Path) -> None:
    for read in (read_card, load_picker):
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(FormatError, match=r"no checkpoint, card.json is missing; give the folder that `tomoray train` printed"):
                read(place)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"{}",
        b'{"particles": [{"name": "x"}]}',
        b'{"particles": []}',
        json.dumps({**asdict(CARD_OF_TWO), "wavelength": 3}).encode(),
        json.dumps({**asdict(CARD_OF_TWO), "particles": [{"name": "x", "radius_angstrom": -1}]}).encode(),
    ],
)
def test_what_is_no_card_is_said_to_be_none(folder: Path, content: bytes) -> None:
    (folder / CARD).write_bytes(content)
    with pytest.raises(FormatError, match=r"card.json: not a card of tomoray .*; train again, or use the version that wrote it"):
        read_card(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    """Planted: only RuntimeError caught, where an empty file and plain rubbish raise other errors."""
    whole = (folder / PICKER).read_bytes()
    tensor = folder / "tensor.pt"
    torch.save(torch.zeros(3), tensor)
    for content in (whole[: len(whole) // 2], b"", b"rubbish", whole[:10], tensor.read_bytes()):
        (folder / PICKER).write_bytes(content)
        with pytest.raises(FormatError, match=r"picker.pt does not fit card.json \(.+\); the checkpoint is damaged: train again"):
            load_picker(folder)


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    (folder / PICKER).unlink()
    with pytest.raises(FormatError, match=r"picker\.pt is missing; a checkpoint has it beside card\.json: copy the whole folder"):
        load_picker(folder)


@pytest.mark.parametrize(
    "network", [{**TINY, "width": 8}, {**TINY, "blocks": [1, 2]}, {"name": "another"}, {**TINY, "depth": 3}, {**TINY, "width": 3}]
)
def test_weights_of_another_network_are_refused(folder: Path, network) -> None:
    (folder / CARD).write_text(json.dumps({**asdict(CARD_OF_TWO), "network": network}))
    with pytest.raises(FormatError, match=r"does not fit card\.json"):
        load_picker(folder)


def test_files_that_would_run_code_are_refused(folder: Path) -> None:
    """Weights come from strangers."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (folder / "sprung",))

    torch.save(Trap(), folder / PICKER)
    with pytest.raises(FormatError, match=r"\(it holds other things than weights\)"):
        load_picker(folder)
    assert not (folder / "sprung").exists()


def test_a_card_that_claims_a_huge_network_is_refused_before_it_is_built(folder: Path) -> None:
    """Planted: the network built first, which takes what memory there is."""
    (folder / CARD).write_text(json.dumps({**asdict(CARD_OF_TWO), "network": {**TINY, "width": 100_000}}))
    with pytest.raises(FormatError, match=r"bytes, where the card's network has weights of \d[\d,]{9,}\); the checkpoint is damaged"):
        load_picker(folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_can_be_weighed_without_being_built(name: str) -> None:
    """At full width, in no memory."""
    card = replace(CARD_OF_TWO, network={"name": name})
    with torch.device("meta"):
        assert sum(value.numel() for value in card.build().state_dict().values()) > 10_000


def test_another_model_has_another_fingerprint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    same, other = tmp_path_factory.mktemp("same"), tmp_path_factory.mktemp("other")
    save_checkpoint(same, CARD_OF_TWO.with_thresholds({}, {}), new_picker(), job="another job")
    save_checkpoint(other, CARD_OF_TWO, new_picker(seed=1))
    assert fingerprint(folder) == fingerprint(str(same))
    assert fingerprint(folder) != fingerprint(other)
    assert len(fingerprint(folder)) == 12
    assert fingerprint(folder).startswith(fingerprint(folder, length=6))
