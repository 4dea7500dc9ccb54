"""Ingesting under Ray: what is made, what goes on after a failure, and what a rerun leaves alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tomoray.catalogue import read_catalogue, read_row_picks, write_catalogue
from tomoray.cluster.ingest import ingest_all
from tomoray.formats import open_tomogram
from tomoray.formats.failures import read_failures
from tomoray.jobs import IngestJob
from tomoray.preprocessing import prepare


def test_a_catalogue_is_rewritten_and_a_rerun_does_what_is_missing(local_ray: None, catalogue: str, tmp_path: Path) -> None:
    rows = read_catalogue(catalogue)[:3]
    broken = replace(rows[1], uri=str(tmp_path / "nowhere.zarr"))
    write_catalogue(tmp_path / "catalogue.parquet", [rows[0], broken, rows[2]])
    job = IngestJob(catalogue=str(tmp_path / "catalogue.parquet"), output=str(tmp_path / "out"), patch_vox=48, shard_vox=48)
    ingested = ingest_all(job)
    assert (ingested.rows, ingested.now) == (2, 2)
    (failure,) = read_failures(tmp_path / "out" / "failures.parquet")
    assert failure.tomogram_id == broken.tomogram_id
    assert "nowhere.zarr" in failure.reason
    new = read_catalogue(ingested.catalogue)
    assert [row.tomogram_id for row in new] == [rows[0].tomogram_id, rows[2].tomogram_id]
    for before, after in zip((rows[0], rows[2]), new, strict=True):
        volumes = [prepare(open_tomogram(row.uri), contrast="dark", to_voxel_angstrom=row.voxel_angstrom)[0] for row in (before, after)]
        np.testing.assert_allclose(volumes[1], volumes[0], atol=1e-2)
        assert len(read_row_picks(after)) == len(read_row_picks(before))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tomograms").rglob("zarr.json")}
    write_catalogue(tmp_path / "catalogue.parquet", rows)
    again = ingest_all(job)
    assert (again.rows, again.now, again.failures) == (3, 1, ())
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
