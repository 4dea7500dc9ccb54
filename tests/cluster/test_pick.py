"""Bulk picking under Ray: every tomogram exactly once, whatever happens."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import kill_actors

from tomoray import commands
from tomoray.catalogue import CatalogueRow, read_catalogue, read_row_picks, write_catalogue
from tomoray.checkpoint import read_card
from tomoray.cluster.pick import candidates_folder, pick_all
from tomoray.config import ConfigError
from tomoray.formats import open_tomogram
from tomoray.formats.candidates import read_candidates
from tomoray.formats.copick import read_copick_picks
from tomoray.formats.czii import read_czii_csv
from tomoray.formats.failures import read_failures
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import IndexJob, PickJob
from tomoray.preprocessing import resample
from tomoray.results import committed, table_uri
from tomoray.scoring import f1_score
from tomoray.tomogram import Tomogram

pytestmark = pytest.mark.usefixtures("local_ray")


def job_for(catalogue: str, checkpoint: str, output: Path, **options: object) -> PickJob:
    return PickJob(catalogue=catalogue, checkpoint=checkpoint, output=str(output), tile_vox=48, **options)  # type: ignore[arg-type]


def test_every_tomogram_is_picked_once_and_a_rerun_does_nothing(catalogue: str, checkpoint: str, tmp_path: Path) -> None:
    job = job_for(catalogue, checkpoint, tmp_path)
    picked = pick_all(job)
    rows = read_catalogue(catalogue)
    assert set(picked.picked) == {row.tomogram_id for row in rows}
    assert not picked.failures

    truth = [read_row_picks(row) for row in rows if row.split == "test"]
    particles = read_card(checkpoint).particles
    assert f1_score(truth, read_czii_csv(picked.picks_csv), particles).value > 0.6

    first = rows[0]
    candidates, about = read_candidates(table_uri(picked.candidates, first.tomogram_id))
    assert about["tile_vox"] == 48
    assert candidates.scores.min() >= job.floor
    kept = candidates.of("ribosome").scores >= read_card(checkpoint).thresholds["ribosome"]
    copick = read_copick_picks(str(tmp_path / "ExperimentRuns" / first.run / "Picks" / "tomoray_1_ribosome.json"))
    assert np.allclose(np.sort(copick.scores), np.sort(candidates.of("ribosome").scores[kept])), "scores must survive into every format"

    times = {path: path.stat().st_mtime_ns for path in Path(picked.candidates).iterdir()}
    again = pick_all(job)
    assert again.skipped == len(rows)
    assert {path: path.stat().st_mtime_ns for path in Path(picked.candidates).iterdir()} == times, "a rerun must not pick again"

    other = pick_all(job.model_copy(update={"views": 4, "splits": ("test",)}))
    assert other.candidates != picked.candidates, "other settings must not find these candidates"
    assert other.skipped == 0


def test_a_killed_actor_loses_no_tomogram(catalogue: str, checkpoint: str, tmp_path: Path) -> None:
    """`kill -9` of a predicting actor; planted mistake: with `max_task_retries=0` its tomogram ends in the failures."""
    (row, *_) = read_catalogue(catalogue)
    rows = [replace(row, tomogram_id=f"copy-{i:02d}", run=f"copy-{i:02d}", picks_uri="", split="unlabelled") for i in range(12)]
    copies = str(tmp_path / "copies.parquet")
    write_catalogue(copies, rows)
    job = job_for(copies, checkpoint, tmp_path / "out", actors=2, views=8, overlap=0.5)
    folder = candidates_folder(job, read_card(checkpoint))
    killed: list[int] = []
    killer = threading.Thread(target=kill_actors, args=(folder, (1,), killed), daemon=True)
    killer.start()
    picked = pick_all(job)
    killer.join(5)
    assert killed, "nothing was killed, so nothing was shown"
    assert not picked.failures
    assert sorted(path.name for path in Path(folder).iterdir()) == [f"copy-{i:02d}.parquet" for i in range(12)]
    runs = [picks.run for picks in read_czii_csv(picked.picks_csv)]
    assert len(runs) == len(set(runs)) == 12
    counts = {len(read_candidates(table_uri(folder, row.tomogram_id))[0]) for row in rows}
    assert len(counts) == 1, "twelve copies of a tomogram have equally many candidates"


def test_what_cannot_be_read_is_in_the_failures_table_and_in_the_exit_status(
    catalogue: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, *_ = read_catalogue(catalogue)
    volume = open_tomogram(good.uri, name="x").read()
    gaps = volume.copy()
    gaps[3, 4, 5] = np.nan
    rows = [good]
    for name, values in (("truncated", volume), ("nan", gaps), ("flat", np.zeros_like(volume))):
        path = tmp_path / f"{name}.mrc"
        write_mrc(path, Tomogram(name, values, (10.012,) * 3))
        rows.append(replace(good, tomogram_id=name, run=name, uri=str(path), picks_uri="", split="unlabelled"))
    (tmp_path / "truncated.mrc").write_bytes((tmp_path / "truncated.mrc").read_bytes()[:-5000])
    rows.append(replace(good, tomogram_id="gone", run="gone", uri=str(tmp_path / "gone.mrc"), picks_uri="", split="unlabelled"))
    rows.append(replace(good, tomogram_id="spacing", run="spacing", voxel_angstrom=7.0, picks_uri="", split="unlabelled"))
    mixed = str(tmp_path / "mixed.parquet")
    write_catalogue(mixed, rows)

    job = job_for(mixed, checkpoint, tmp_path / "out")
    assert commands.pick(job) == commands.SOME_FAILED
    said = capsys.readouterr()
    reasons = {f.tomogram_id: f.reason for f in read_failures(tmp_path / "out" / "failures.parquet")}
    assert set(reasons) == {"truncated", "nan", "flat", "gone", "spacing"}
    assert "bytes" in reasons["truncated"]
    assert "1 of" in reasons["nan"]
    assert "NaN or infinite" in reasons["nan"]
    assert "all values are 0" in reasons["flat"]
    assert "7.0" in reasons["spacing"] or "7 " in reasons["spacing"]
    assert "1 tomograms picked (0 before), 5 failed" in said.out + said.err
    assert {p.run for p in read_czii_csv(str(tmp_path / "out" / "picks.csv"))} == {good.run}

    write_mrc(tmp_path / "flat.mrc", Tomogram("flat", volume, (10.012,) * 3))
    again = pick_all(job)
    assert again.skipped == 1
    assert "flat" in again.picked, "what failed is tried again"


@pytest.mark.parametrize(("factor", "contrast"), [(1.0, "bright"), (0.75, "dark"), (4 / 3, "bright")])
def test_other_voxel_sizes_and_contrasts_give_picks_in_the_tomograms_own_coordinates(
    catalogue: str, checkpoint: str, tmp_path: Path, factor: float, contrast: str
) -> None:
    """Planted mistake: picks multiplied by the picker's voxel size are right for none of the resampled tomograms."""
    held_back = [row for row in read_catalogue(catalogue) if row.split == "test"]
    particles = read_card(checkpoint).particles
    truth = [read_row_picks(row) for row in held_back]
    plain = pick_all(job_for(_only(held_back, tmp_path / "plain.parquet"), checkpoint, tmp_path / "plain"))
    rows = []
    for row in held_back:
        tomogram = open_tomogram(row.uri, name=row.run)
        values = resample(tomogram.read(), factor) if factor != 1 else tomogram.read()
        values = -values if contrast == "bright" else values
        size = (10.012 / factor,) * 3  # exactly: 48 and 96 voxels become 36 and 72, or 64 and 128
        path = tmp_path / f"{row.run}.mrc"
        write_mrc(path, Tomogram(row.run, values, size))
        shape = tuple(int(n) for n in values.shape)
        rows.append(replace(row, uri=str(path), voxel_angstrom=size[0], contrast=contrast, shape_zyx=shape))  # type: ignore[arg-type]
    other = pick_all(job_for(_only(rows, tmp_path / "other.parquet"), checkpoint, tmp_path / "other"))
    assert not other.failures
    picks = [read_czii_csv(p.picks_csv) for p in (plain, other)]
    scores = [f1_score(truth, those, particles) for those in picks]
    assert scores[0].value > 0.6
    assert scores[1].value > scores[0].value - 0.2
    for particle in particles:  # held against the same picker's picks, since a small picker may itself be off by a voxel or two
        shift = f1_score(*picks, particles).of(particle.name).residual_zyx
        assert shift is not None
        assert max(map(abs, shift)) < 10.0, "resampling must not shift picks by a voxel"


def test_real_tomograms_are_indexed_and_picked(shared_data: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces of real tomograms of 10.5 and 23.2 angstrom, as MRC and in nine kinds of OME-Zarr, two of them damaged."""
    for name, errors in (("tomograms", 0), ("zarr", 1)):
        catalogue = str(tmp_path / f"{name}.parquet")
        indexed = commands.make_index(IndexJob(source=str(shared_data / name), output=catalogue, validation=0.0))
        said = capsys.readouterr()
        assert indexed == (commands.SOME_FAILED if errors else commands.DONE)
        assert "particles are taken to be dark, a guess" in said.out + said.err
        assert commands.pick(job_for(catalogue, checkpoint, tmp_path / name)) == commands.DONE
        rows = read_catalogue(catalogue)
        assert committed(next((tmp_path / name / "candidates").iterdir()).as_posix()) == {row.tomogram_id for row in rows}
        for row in rows:
            candidates, _ = read_candidates(next((tmp_path / name / "candidates").rglob(f"{row.tomogram_id}.parquet")))
            extent = np.multiply(row.shape_zyx, row.voxel_angstrom)
            assert (candidates.positions_zyx > 0).all()
            assert (candidates.positions_zyx < extent + row.voxel_angstrom).all()


def test_a_job_without_anything_to_pick_says_so(catalogue: str, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tomogram of split unlabelled; there are 'test', 'train', 'validation'"):
        pick_all(job_for(catalogue, checkpoint, tmp_path, splits=("unlabelled",)))
    rows = read_catalogue(catalogue)
    twice = _only([rows[0], replace(rows[0], tomogram_id="again")], tmp_path / "twice.parquet")
    with pytest.raises(ConfigError, match=f"{rows[0].run} stand there more than once"):
        pick_all(job_for(twice, checkpoint, tmp_path))
    with pytest.raises(ConfigError, match="thresholds: proteasome is no class of"):
        pick_all(job_for(catalogue, checkpoint, tmp_path, thresholds={"proteasome": 0.5}))


def _only(rows: list[CatalogueRow], path: Path) -> str:
    write_catalogue(path, rows)
    return str(path)
