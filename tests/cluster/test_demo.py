"""The main job from its own file, as `make demo` runs it, but small."""

from pathlib import Path

import pytest

from tomoray import commands
from tomoray.catalogue import read_catalogue
from tomoray.config import read_settings
from tomoray.jobs import DemoJob
from tomoray.results import committed, find_tables

JOB = Path(__file__).parents[2] / "jobs" / "demo.toml"
SMALL = {
    "simulate.tomograms": 6,
    "simulate.shape_zyx": [48, 64, 64],
    "simulate.crowding": 8.0,
    "train.epochs": 1,
    "train.steps_per_epoch": 4,
    "train.network.width": 4,
    "train.network.blocks": [1, 1],
    "train.crops.patch_vox": 48,
    "train.validation.every_epochs": 1,
    "train.validation.tile_vox": 48,
    "pick.tile_vox": 48,
}


def test_the_demo_picks_what_it_has_not_trained_on_and_shows_it(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: tomograms of all splits picked."""
    folder = tmp_path / "demo"
    job = read_settings(DemoJob, JOB, overrides={**SMALL, "output": str(folder)})
    assert commands.run("demo", job) == 0
    held_back = {row.tomogram_id: row.run for row in read_catalogue(str(folder / "catalogue.parquet")) if row.split == "test"}
    assert 0 < len(held_back) < 6
    assert committed(find_tables(str(folder / "picks" / "candidates"))) == set(held_back)
    (picture,) = (folder / "score").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stem in held_back.values()
    report = folder / "score" / "report.html"
    assert "ribosome" in report.read_text()
    said = capsys.readouterr()
    assert str(report) in said.out + said.err
