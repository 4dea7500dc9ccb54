"""Tomograms rewritten for training: what they hold, how exact it is, what is done again, and what is refused."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tomoray import ingest, storage
from tomoray.catalogue import CatalogueRow, read_row_picks
from tomoray.formats import open_tomogram
from tomoray.formats.czii import write_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.ingest import ChunkLayout, finished_rows, ingest_tomogram
from tomoray.preprocessing import prepare
from tomoray.tomogram import FormatError, Picks, Tomogram

SHAPE = (20, 26, 30)
LAYOUT = ChunkLayout(4, 8)
NOISE = np.random.default_rng(0).normal(size=SHAPE)


def tomogram_row(root: Path | str, values: np.ndarray, name: str = "TS_1", ending: str = "mrc", **changes: Any) -> CatalogueRow:
    """The row of values that are written to a file, as indexing would make it."""
    uri = f"{root}/{name}.{ending}"
    tomogram = Tomogram(name, values, (10.0, 10.0, 10.0), (5.0, 6.0, 7.0))
    write_mrc(uri, tomogram) if ending == "mrc" else write_ome_zarr(uri, tomogram, chunk_vox=16)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    row = CatalogueRow(name, name, uri, SHAPE, values.dtype.name, 10.0, mean, std, float(values.min()), float(values.max()), "bright")
    return replace(row, **changes)


@pytest.mark.parametrize("ending", ["mrc", "zarr"])
@pytest.mark.parametrize(("offset", "spread"), [(3e-6, 1e-5), (1000.0, 1.0), (0.0, 1e6)], ids=["czii", "offset", "large"])
def test_float16_sees_what_training_saw_before(ending: str, offset: float, spread: float, tmp_path: Path) -> None:
    """Planted: values cast as they lie in the file, where float16 has no digits."""
    row = tomogram_row(tmp_path, (NOISE * spread + offset).astype(np.float32), ending=ending, split="train")
    new, note = ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
    assert (new.dtype, note, new.uri) == ("float16", "", str(tmp_path / "out" / "tomograms" / "TS_1.zarr"))
    before, _ = prepare(open_tomogram(row.uri), contrast="bright", to_voxel_angstrom=10.0)
    ingested = open_tomogram(new.uri)
    after, voxel = prepare(ingested, contrast="bright", to_voxel_angstrom=10.0)
    np.testing.assert_allclose(after, before, atol=2.1e-3)  # half of what lies between two numbers of float16 below 8
    assert np.sqrt(np.mean((after - before) ** 2)) < 4e-4
    assert (voxel, ingested.origin_angstrom) == ((10.0,) * 3, (5.0, 6.0, 7.0))
    values = ingested.read().astype(np.float64)
    assert (new.mean, new.std) == (pytest.approx(values.mean(), abs=1e-12), pytest.approx(values.std(), rel=1e-12))
    assert (new.minimum, new.maximum) == (values.min(), values.max())
    kept = {name: getattr(new, name) for name in ("tomogram_id", "run", "shape_zyx", "voxel_angstrom", "contrast", "split")}
    assert kept == {name: getattr(row, name) for name in kept}


def test_the_original_values_can_be_had_back(tmp_path: Path) -> None:
    row = tomogram_row(tmp_path, (NOISE * 1e-5 + 3e-6).astype(np.float32))
    new, _ = ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
    about = json.loads((Path(new.uri) / "zarr.json").read_text())["attributes"]["tomoray"]
    assert about["source"] == row.uri
    original = open_tomogram(new.uri).read().astype(float) * about["source_std"] + about["source_mean"]
    np.testing.assert_allclose(original, open_tomogram(row.uri).read(), atol=3e-8)


def test_values_that_float16_would_lose_are_kept_in_float32(tmp_path: Path) -> None:
    """One voxel of 1e12 leaves the others within a millionth of a deviation. Planted: error relative to all values, outliers too."""
    values = NOISE.astype(np.float32)
    values[3, 4, 5] = 1e12
    row = tomogram_row(tmp_path, values)
    new, note = ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
    assert new.dtype == "float32"
    assert note.startswith(f"{row.uri}: float16 would be off by ")
    assert note.endswith("kept in float32")
    forced, note = ingest_tomogram(tomogram_row(tmp_path, NOISE.astype(np.float32)), str(tmp_path / "out"), ChunkLayout(4, 8, half=False))
    assert (forced.dtype, note) == ("float32", "")


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16"])
def test_values_of_two_bytes_stay_as_they_are(dtype: str, tmp_path: Path) -> None:
    values = (NOISE * 20).astype(dtype)
    new, _ = ingest_tomogram(tomogram_row(tmp_path, values), str(tmp_path / "out"), LAYOUT)
    assert new.dtype == dtype
    assert np.array_equal(open_tomogram(new.uri).read(), values)


def test_files_are_few_and_chunks_fit_the_crop(tmp_path: Path) -> None:
    layout = ChunkLayout.for_crops(96)
    assert (layout.chunk_vox, layout.shard_vox) == (48, 240)
    assert ChunkLayout.for_crops(32, shard_vox=8) == ChunkLayout(16, 16)
    new, _ = ingest_tomogram(tomogram_row(tmp_path, NOISE.astype(np.float32)), str(tmp_path / "out"), ChunkLayout.for_crops(16, shard_vox=32))
    array = zarr.open_group(new.uri, mode="r")["0"]
    assert (array.chunks, array.shards) == ((8, 8, 8), (24, 32, 32))
    assert sum(path.is_file() for path in Path(new.uri).rglob("*")) == 3  # one shard, and two files that say what it is


def test_picks_are_carried_over(tmp_path: Path) -> None:
    picks = Picks("TS_1", np.array([[10.5, 20.25, 30.125], [100.0, 101.0, 102.0]]), np.array(["a_b", "c d"]))
    write_czii_csv(tmp_path / "picks.csv", [picks])
    row = tomogram_row(tmp_path, NOISE.astype(np.float32), picks_uri=str(tmp_path / "picks.csv"), particles={"a_b": 1, "c d": 1})
    new, _ = ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
    assert new.picks_uri == str(tmp_path / "out" / "picks" / "TS_1.csv")
    carried = read_row_picks(new)
    np.testing.assert_array_equal(carried.positions_zyx, picks.positions_zyx)
    assert carried.names.tolist() == ["a_b", "c d"]
    assert new.particles == row.particles


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/out"


def test_what_is_done_is_known_by_its_mark(output: str, tmp_path: Path) -> None:
    """Planted: marks that do not change with the layout, or with the file."""
    rows = [tomogram_row(tmp_path, NOISE.astype(np.float32), name) for name in ("TS_1", "TS_2")]
    assert finished_rows(rows, output, LAYOUT) == {}
    new, _ = ingest_tomogram(rows[0], output, LAYOUT)
    assert finished_rows(rows, output, LAYOUT) == {"TS_1": new}
    assert finished_rows([replace(rows[0], split="test")], output, LAYOUT) == {"TS_1": replace(new, split="test")}
    for others, layout in ((rows, ChunkLayout(4, 16)), ([replace(rows[0], mean=0.5)], LAYOUT), (rows[1:], LAYOUT)):
        assert finished_rows(others, output, layout) == {}
    storage.remove(storage.join(output, "rows"))
    assert storage.exists(new.uri)
    assert finished_rows(rows, output, LAYOUT) == {}


def test_nothing_is_marked_that_reads_back_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: marked before it is verified; not verified."""
    row, out = tomogram_row(tmp_path, NOISE.astype(np.float32)), str(tmp_path / "out")

    def write_and_change(uri: str, tomogram: Tomogram, **options: Any) -> None:
        write_ome_zarr(uri, tomogram, **options)
        zarr.open_group(uri)["0"][1, 2, 3] = 77.0  # with a good checksum

    monkeypatch.setattr(ingest, "write_ome_zarr", write_and_change)
    with pytest.raises(FormatError, match=r"TS_1\.zarr: reads back otherwise than it was written; .*: ingest it again"):
        ingest_tomogram(row, out, LAYOUT)
    assert finished_rows([row], out, LAYOUT) == {}
    monkeypatch.undo()
    new, _ = ingest_tomogram(row, out, LAYOUT)
    assert finished_rows([row], out, LAYOUT) == {"TS_1": new}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape_zyx": (20, 26, 31)}, "not the file that was indexed"),
        ({"std": 2.0}, "mean and deviation are not those that the catalogue states; make the catalogue again"),
        ({"mean": 0.2}, "mean and deviation are not those"),
        ({"std": 1e-9}, "mean and deviation are not those"),
    ],
)
def test_a_catalogue_of_other_files_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = tomogram_row(tmp_path, NOISE.astype(np.float32), **changes)
    with pytest.raises(FormatError, match=message):
        ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
    assert finished_rows([row], str(tmp_path / "out"), LAYOUT) == {}


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    row = tomogram_row(tmp_path, NOISE.astype(np.float32))
    values = NOISE.astype(np.float32)
    values[1, 1, 1:3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_mrc(row.uri, Tomogram("TS_1", values, (10.0,) * 3))
    with pytest.raises(FormatError, match=r"TS_1\.mrc: 2 values are NaN or infinite; all must be finite"):
        ingest_tomogram(row, str(tmp_path / "out"), LAYOUT)
