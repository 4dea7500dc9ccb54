"""Validation without Ray: what is concluded from tomograms of which all, or only some, particles are marked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tomoray.catalogue import CatalogueRow
from tomoray.checkpoint import Card
from tomoray.config import read_settings
from tomoray.formats.czii import write_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import TrainJob
from tomoray.networks import Picker
from tomoray.tomogram import Picks, Tomogram
from tomoray.validation import Seen, conclude, find_candidates, look, measure_of

SHAPE = (32, 48, 48)


def job_with(**changes: Any) -> TrainJob:
    """A job of one class, 30 angstrom in radius."""
    told = {"particles": [{"name": "ball", "radius_angstrom": 30.0}], "voxel_angstrom": 10.0, "crops.patch_vox": 16}
    return read_settings(TrainJob, overrides=told | {key.replace("__", "."): value for key, value in changes.items()})


class Dark(torch.nn.Module):
    """A network that finds what is dark."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return -self.gain * torch.nn.functional.avg_pool3d(volume, 3, 1, 1) - 6


@pytest.fixture
def row(tmp_path: Path) -> CatalogueRow:
    """A tomogram of twelve dark balls in noise; all are known."""
    z, y, x = np.meshgrid([8, 24], [8, 24], [8, 24, 40], indexing="ij")
    places = np.column_stack([z.ravel(), y.ravel(), x.ravel()]) + 0.5
    values = 0.2 * np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for place in places:
        values[np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) + 0.5 - place, axis=-1) < 3] -= 3
    write_mrc(str(tmp_path / "TS_1.mrc"), Tomogram("TS_1", values, (10.0,) * 3))
    write_czii_csv(str(tmp_path / "TS_1.csv"), [Picks("TS_1", 10 * places, np.array(["ball"] * 12))])
    described = ("float32", 10.0, 0.0, 1.0, -4.0, 4.0, "dark")
    return CatalogueRow("TS_1", "TS_1", str(tmp_path / "TS_1.mrc"), SHAPE, *described, picks_uri=str(tmp_path / "TS_1.csv"), particles={"ball": 12})


def card_of(job: TrainJob) -> Card:
    return Card(job.particle_list(), 10.0, "dark", network={}, finder="greedy")


def test_a_picker_that_finds_everything(row: CatalogueRow) -> None:
    """Planted: soft F1 where it was not asked for, which costs a second look; a card without what was reached."""
    job = job_with()
    picker = Picker(Dark())
    seen = look(picker, card_of(job), row, job)
    assert seen.soft is None
    np.testing.assert_array_equal(seen.candidates.positions_zyx, find_candidates(picker, card_of(job), row, job).positions_zyx)
    card, metrics = conclude(card_of(job), [row], [seen], job)
    assert set(metrics) == {"val_f1", "val_f1/ball"}
    assert metrics["val_f1"] == 1.0
    assert card.validation["runs"] == ["TS_1"]
    assert 0 < card.thresholds["ball"] < 1
    assert len(look(picker, card_of(job), row, job_with(validation__floor=0.0)).candidates) > len(seen.candidates) >= 12
    assert set(conclude(card_of(job), [row], [seen], job_with(validation__objective="czii"))[1]) == {*metrics, "val_czii"}


def test_with_few_marks_soft_f1_and_the_expected_number_say_what_picks_alone_cannot(row: CatalogueRow) -> None:
    """Three of twelve are clicked; a network that finds all is good. Planted: marks of all particles in the soft F1; the count forgotten."""
    from tomoray.catalogue import with_clicks

    few, picker = with_clicks(row, 3, seed=0), Picker(Dark())
    job = job_with(validation__best_by="soft_f1", validation__expected_particles={"ball": 12})
    card, metrics = conclude(card_of(job), [few], [look(picker, card_of(job), few, job)], job)
    assert metrics["val_f1"] == pytest.approx(2 * 3 / (3 + 12)), "what is not clicked counts as false"
    assert metrics["val_soft_f1"] == card.validation["soft_f1"] > 0.3
    assert (find_candidates(picker, card, few, job).scores >= card.thresholds["ball"]).sum() == 12, "all of them are picked nevertheless"
    blind = Seen(find_candidates(picker, card, few, job), look(Picker(Dark()), card_of(job), few, job).soft * torch.tensor([0.0, 1.0, 1.0]))
    assert conclude(card_of(job), [few], [blind], job)[1]["val_soft_f1"] == 0


def test_the_measure_of_the_best_checkpoint() -> None:
    """Planted: thresholds for the CZII metric, but checkpoints by F1."""
    assert measure_of(job_with().validation) == "val_f1"
    assert measure_of(job_with(validation__objective="czii").validation) == "val_czii"
    assert measure_of(job_with(validation__objective="czii", validation__best_by="soft_f1").validation) == "val_soft_f1"
