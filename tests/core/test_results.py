"""Picks derived from candidates tables: any thresholds, any number of tables, no network and no Ray."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tomoray import commands, results
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.cli import main
from tomoray.config import ConfigError
from tomoray.formats.candidates import encode_candidates
from tomoray.formats.copick import read_copick_picks
from tomoray.formats.czii import read_czii_csv
from tomoray.formats.star import read_star, read_star_picks
from tomoray.jobs import ThresholdJob
from tomoray.tomogram import Particle, Picks

CARD = Card(
    (Particle("small", 60.0), Particle("large", 100.0)),
    10.0,
    "dark",
    {"name": "asymmetric_unet", "width": 4, "blocks": [1, 1]},
    thresholds={"small": 0.25, "large": 0.5},
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A card with thresholds; weights are not needed."""
    folder = tmp_path / "picker"
    folder.mkdir()
    save_checkpoint(folder, CARD, CARD.build())
    (folder / "picker.pt").unlink()
    return str(folder)


@pytest.fixture
def tables(tmp_path: Path, checkpoint: str) -> Path:
    """Three tables of ten candidates, scores 0.05 to 0.95, classes in turn."""
    folder = tmp_path / "picks" / "candidates" / "0123"
    folder.mkdir(parents=True)
    names = np.array(["small", "large"] * 5)
    for i in range(3):
        picks = Picks(f"TS_{i}", np.full((10, 3), 10.0 * i) + np.arange(10)[:, None], names, np.arange(10) / 10 + 0.05)
        about = {"checkpoint": checkpoint, "floor": 0.02, "voxel_angstrom": 10.0, "extent_angstrom": [100.0, 200.0, 300.0]}
        (folder / f"id-{i}.parquet").write_bytes(encode_candidates(picks, about))
    (folder / ".id-3.parquet.0123abcd.partial").mkdir()  # as a killed writer leaves
    return folder


def counts(uri: Path) -> dict[str, tuple[int, int]]:
    """Run -> how many picks of each class a CSV holds."""
    return {p.run: (len(p.of("small")), len(p.of("large"))) for p in read_czii_csv(str(uri))}


def test_thresholds_of_the_card_that_the_tables_name(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: one threshold for all classes; a leftover of a killed writer taken for a table."""
    assert main(["threshold", str(tables), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "21 picks of 3 tomograms" in said.out + said.err
    assert counts(tmp_path / "out" / "picks.csv") == {f"TS_{i}": (4, 3) for i in range(3)}, "0.25 keeps 0.25 to 0.85; 0.5 keeps 0.55 to 0.95"
    copick = read_copick_picks(str(tmp_path / "out" / "ExperimentRuns" / "TS_2" / "Picks" / "tomoray_1_large.json"))
    assert copick.scores == pytest.approx([0.55, 0.75, 0.95])
    assert copick.positions_zyx[0].tolist() == [25.0, 25.0, 25.0]


def test_other_thresholds_replace_what_lies_there(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: no file for a class without picks, so that the old one stays; given thresholds ignored."""
    job = ThresholdJob(candidates=str(tables.parent), output=str(tmp_path / "out"), thresholds={"small": 0.01})
    assert commands.threshold(job) == commands.DONE
    said = capsys.readouterr()
    assert "thresholds of small lie below 0.02, under which `tomoray pick` kept no candidates" in said.out + said.err
    assert counts(tmp_path / "out" / "picks.csv")["TS_0"] == (5, 3)
    commands.threshold(job.model_copy(update={"thresholds": {"large": 1.0}}))
    assert counts(tmp_path / "out" / "picks.csv")["TS_0"] == (4, 0)
    assert len(read_copick_picks(str(tmp_path / "out" / "ExperimentRuns" / "TS_0" / "Picks" / "tomoray_1_large.json"))) == 0
    commands.threshold(job.model_copy(update={"output": str(tmp_path / "csv"), "copick": False, "star": False}))
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["picks.csv"]


def test_a_dry_run_and_its_faults(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: files written by a dry run; Ray imported where nothing needs it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    output = tmp_path / "out"
    assert main(["threshold", str(tables), "--output", str(output), "--dry-run"]) == 0
    assert "would apply small 0.25, large 0.50 to 3 tables" in capsys.readouterr().out
    assert not output.exists()
    assert main(["threshold", str(tables), "--thresholds", "{medium = 0.5}"]) == 2
    assert "medium is no class of the checkpoint; its classes are small, large" in capsys.readouterr().err
    assert main(["threshold", str(tmp_path / "picker")]) == 2
    assert "there are none in it; give the one that `tomoray pick` printed" in capsys.readouterr().err
    (tables.parent / "4567").mkdir()
    (tables.parent / "4567" / "id-0.parquet").write_bytes((tables / "id-0.parquet").read_bytes())
    with pytest.raises(ConfigError, match=r"there are several in it: .*0123, .*4567"):
        results.find_tables(str(tables.parent))


def test_every_class_needs_a_threshold() -> None:
    untrained = Card(CARD.particles, 10.0, "dark", {})
    assert results.choose(untrained, {"large": 0.5, "small": 0.1}) == {"small": 0.1, "large": 0.5}
    with pytest.raises(ConfigError, match="none for small on the checkpoint's card; every class needs one"):
        results.choose(untrained, {"large": 0.5})


def test_so_many_as_are_asked_for(tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Planted: the N first instead of the N best; N in all tomograms together; a class without a number picked without a threshold."""
    job = ThresholdJob(candidates=str(tables.parent), output=str(tmp_path / "out"), numbers={"small": 2})
    commands.threshold(job)
    assert counts(tmp_path / "out" / "picks.csv") == {f"TS_{i}": (2, 3) for i in range(3)}
    (picks, *_) = read_czii_csv(str(tmp_path / "out" / "picks.csv"))
    assert picks.of("small").positions_zyx[:, 0].tolist() == [6.0, 8.0], "candidates 6 and 8 score highest"
    assert not caplog.messages
    commands.threshold(job.model_copy(update={"numbers": {"small": 2, "large": 9}}))
    assert counts(tmp_path / "out" / "picks.csv") == {f"TS_{i}": (2, 5) for i in range(3)}
    assert min(caplog.messages).startswith("id-0: 5 candidates of large, fewer than 9; pick again with a lower floor")
    with pytest.raises(ConfigError, match="small: both a threshold and a number are given; picks are chosen by one of them: remove the other"):
        results.choose(CARD, {"small": 0.5}, {"small": 3})
    with pytest.raises(ConfigError, match="numbers: smal is no class of the checkpoint; its classes are small, large"):
        results.choose(CARD, {}, {"smal": 3})


def test_star_files_hold_the_picks_of_all_tomograms_with_their_scores(tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Planted: scores of 1 for all; positions from the corner; STAR files of which nobody knows the centre."""
    commands.threshold(ThresholdJob(candidates=str(tables.parent), output=str(tmp_path / "out")))
    uri = str(tmp_path / "out" / "star" / "large.star")
    (block,) = read_star(uri).values()
    assert block["rlnTomoName"] == ["TS_0"] * 3 + ["TS_1"] * 3 + ["TS_2"] * 3
    assert [float(value) for value in block["rlnAutopickFigureOfMerit"][:3]] == pytest.approx([0.55, 0.75, 0.95])
    assert float(block["rlnCenteredCoordinateZAngst"][0]) == 5.0 - 50.0
    back = read_star_picks(uri, "TS_2", particle="large", shape_zyx=(10, 20, 30), voxel_angstrom=10.0)
    np.testing.assert_allclose(back.positions_zyx, [[25.0] * 3, [27.0] * 3, [29.0] * 3])
    old = Picks("TS_9", np.zeros((1, 3)), np.array(["small"]), np.array([0.9]))
    (tables / "id-9.parquet").write_bytes(encode_candidates(old, {"floor": 0.02}))
    results.write_picks(str(tmp_path / "new"), str(tables), {"id-9"}, CARD.thresholds)
    assert caplog.messages == ["TS_9: no STAR files, since tables of an older version do not say where its centre is; pick again to have them"]
    assert not (tmp_path / "new" / "star").exists()
