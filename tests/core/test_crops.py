"""Cubes read alone: the same values as those cut from the whole prepared volume, and no more of the file than they need."""

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.catalogue import CatalogueRow
from tomoray.crops import CROPS_AT_ONCE, Scales, read_crops
from tomoray.formats import open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.patches import cut
from tomoray.preprocessing import Preparation, prepare, prepare_box, prepare_whole
from tomoray.tomogram import Box, FormatError, Tomogram

SHAPE = (24, 29, 34)
VALUES = (np.random.default_rng(0).normal(size=SHAPE) ** 3 * 1e-5 + 3e-6).astype(np.float32)
CORNERS = np.array([[0, 0, 0], [3, 5, 7], [2, 0, 9]])
PATCH = 8
VOXEL = 10.0


class Recorded:
    """Values in memory that note which boxes were read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.boxes = values, list[Box]()
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, box: Box) -> Any:
        self.boxes.append(box)
        return self.values[box]

    @property
    def largest(self) -> int:
        """Voxels in the largest box so far."""
        return max(self.values[box].size for box in self.boxes)


def in_memory(values: np.ndarray = VALUES) -> tuple[Tomogram, Recorded]:
    recorded = Recorded(values)
    return Tomogram("TS_1", recorded, (VOXEL,) * 3, uri="folder/TS_1.mrc"), recorded


def row_of(values: np.ndarray = VALUES) -> CatalogueRow:
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    shape = (values.shape[0], values.shape[1], values.shape[2])
    return CatalogueRow("TS_1", "TS_1", "", shape, values.dtype.name, VOXEL, mean, std, float(values.min()), float(values.max()), "dark")


def written(kind: str, root: str) -> Tomogram:
    """The values as a file of some kind."""
    tomogram = Tomogram("TS_1", VALUES, (VOXEL,) * 3)
    uri = f"{root}/TS_1.{kind.removesuffix('3')}"
    if kind.startswith("mrc"):
        write_mrc(uri, tomogram)
    else:
        write_ome_zarr(uri, tomogram, zarr_format=3 if kind == "zarr3" else 2, chunk_vox=7)
    return open_tomogram(uri)


@pytest.mark.parametrize(("to_voxel", "clip_sd"), [(10.05, 0.0), (10.05, 1.5), (20.0, 0.0), (6.1, 1.5)])
@pytest.mark.parametrize("kind", ["zarr", "zarr3", "mrc", "mrc.gz", "mrc.bz2"])
def test_cubes_of_files_are_those_of_the_whole(kind: str, to_voxel: float, clip_sd: float, tmp_path: Path) -> None:
    """Planted: no margin for the blur; places off by half a voxel; clipped cubes scaled by what the catalogue says."""
    tomogram = written(kind, str(tmp_path))
    wanted = Preparation("bright", to_voxel, "dark", clip_sd)
    volume, voxel = prepare(tomogram, contrast="bright", to_voxel_angstrom=to_voxel, clip_sd=clip_sd)
    assert wanted.shape(tomogram) == volume.shape
    assert wanted.voxel_angstrom(tomogram) == voxel
    scales: Scales = {}
    for corners in (CORNERS, CORNERS, CORNERS.repeat(20, axis=0)):  # measured, read alone, and all from the whole once more
        crops = read_crops(tomogram, row_of(), corners, PATCH, wanted, scales)
        for corner, crop in zip(corners, crops, strict=True):
            np.testing.assert_allclose(crop, cut(volume, corner, PATCH), atol=1e-4)


def test_cubes_of_remote_files_are_those_of_the_whole(s3_bucket: str) -> None:
    for kind in ("mrc", "zarr"):
        tomogram = written(kind, s3_bucket)
        volume, _ = prepare(tomogram, contrast="dark", to_voxel_angstrom=VOXEL)
        crops = read_crops(tomogram, row_of(), CORNERS, PATCH, Preparation("dark", VOXEL), {})
        for corner, crop in zip(CORNERS, crops, strict=True):
            np.testing.assert_allclose(crop, cut(volume, corner, PATCH), atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    factor=st.floats(0.25, 2.5),
    clip_sd=st.sampled_from([0.0, 2.0]),
    place=st.tuples(*[st.floats(0, 1)] * 3),
    patch=st.integers(1, 12),
)
def test_any_box_is_that_of_the_whole(factor: float, clip_sd: float, place: tuple[float, float, float], patch: int) -> None:
    tomogram, recorded = in_memory()
    wanted = Preparation("bright", VOXEL / factor, "dark", clip_sd)
    volume, scale = prepare_whole(tomogram, wanted)
    recorded.boxes.clear()
    corner = np.floor(np.multiply(place, np.maximum(np.array(volume.shape) - 1, 0))).astype(int)
    z, y, x = (slice(int(c), int(c) + patch) for c in corner)
    np.testing.assert_allclose(prepare_box(tomogram, (z, y, x), wanted, scale), volume[z, y, x], atol=2e-4)
    margin = 2 + (2 * 3 * 0.5 / factor if factor < 1 else 0)  # of a blur three sigma wide on each side, sigma below half of 1 / factor
    for part, length in zip(recorded.boxes[0], (z, y, x), strict=True):
        assert part.stop - part.start <= (length.stop - length.start) / min(factor, 1) + margin + 2


@pytest.mark.parametrize("count", [1, 40, 47, 200])
def test_cubes_are_read_alone_while_that_takes_fewer_bytes(count: int) -> None:
    """46 cubes of 8^3 are as many voxels as the volume has. Planted: the rule turned round."""
    tomogram, recorded = in_memory()
    corners = CORNERS[:1].repeat(count, axis=0)
    crops = list(read_crops(tomogram, row_of(), corners, PATCH, Preparation("dark", VOXEL), {}))
    assert len(crops) == count
    assert recorded.largest == (PATCH**3 if count <= 46 else VALUES.size)
    assert len(recorded.boxes) == (count if count <= 46 else 1)


def test_the_mean_and_deviation_are_those_of_the_catalogue() -> None:
    """A row that says twice the deviation halves the values: nothing else was asked."""
    tomogram, recorded = in_memory()
    row = row_of()
    (crop,) = read_crops(tomogram, replace(row, std=2 * row.std), CORNERS[:1], PATCH, Preparation("dark", VOXEL), {})
    expected = (VALUES[:PATCH, :PATCH, :PATCH] - row.mean) / (2 * row.std)
    np.testing.assert_allclose(crop, expected, atol=1e-5)
    assert recorded.largest == PATCH**3


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shape_zyx": (24, 29, 35)}, Preparation("dark", VOXEL)),
        ({"dtype": "float16"}, Preparation("dark", VOXEL)),
        ({"std": 0.0}, Preparation("dark", VOXEL)),
        ({}, Preparation("dark", VOXEL, clip_sd=2.0)),
        ({}, Preparation("dark", 12.0)),
    ],
    ids=["another file", "another type", "no deviation", "clipped", "resampled"],
)
def test_what_the_catalogue_cannot_know_is_measured_once(changes: dict[str, Any], wanted: Preparation) -> None:
    """Planted: the catalogue believed of another file."""
    tomogram, recorded = in_memory()
    row, scales = replace(row_of(), **changes), dict[Any, Any]()
    volume, _ = prepare_whole(tomogram, wanted)
    recorded.boxes.clear()
    for visit in range(3):
        for corner, crop in zip(CORNERS, read_crops(tomogram, row, CORNERS, PATCH, wanted, scales), strict=True):
            np.testing.assert_allclose(crop, cut(volume, corner, PATCH), atol=1e-4)
        assert (recorded.largest == VALUES.size) == (visit == 0)
        recorded.boxes.clear()
    assert list(scales) == [(tomogram.uri, wanted)]


def test_cubes_reach_beyond_the_volume_as_cut_does() -> None:
    tomogram, _ = in_memory()
    volume, _ = prepare(tomogram, contrast="dark", to_voxel_angstrom=VOXEL)
    corner = np.array([[20, 24, 30]])
    (crop,) = read_crops(tomogram, row_of(), corner, PATCH, Preparation("dark", VOXEL), {})
    np.testing.assert_allclose(crop, cut(volume, corner[0], PATCH), atol=1e-5)
    assert (crop[4:] == 0).all()


def test_values_that_are_not_finite_are_refused_where_they_are_met() -> None:
    values = VALUES.copy()
    values[4, 5, 6] = np.nan
    tomogram, _ = in_memory(values)
    wanted = Preparation("dark", VOXEL)
    crops = read_crops(tomogram, row_of(), np.array([[16, 16, 16], [0, 0, 0]]), PATCH, wanted, {})
    assert np.isfinite(next(crops)).all()
    with pytest.raises(FormatError, match=r"^folder/TS_1.mrc: 1 of 512 values in a box are NaN or infinite; all must be finite: index it again"):
        next(crops)


class Far:
    """Values of a server that answers so many requests at once, or after a second what there is; `most` is how many there were."""

    def __init__(self, together: int) -> None:
        self.shape, self.dtype, self.crowd = VALUES.shape, VALUES.dtype, threading.Barrier(together, timeout=1)
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()

    def __getitem__(self, box: Box) -> Any:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        with contextlib.suppress(threading.BrokenBarrierError):
            self.crowd.wait()
        time.sleep(0.05)  # in which whoever else were asked would be seen
        with self.lock:
            self.at_once -= 1
        return VALUES[box]


@pytest.mark.parametrize(("uri", "at_once"), [("s3://bucket/TS_1.zarr", CROPS_AT_ONCE), ("folder/TS_1.zarr", 1)])
def test_some_cubes_are_fetched_ahead_from_a_server_and_none_on_this_machine(uri: str, at_once: int) -> None:
    """Planted: each waited for before the next is asked for; all asked for at once; threads for files of this machine, too."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.array(SHAPE) - PATCH, (3 * CROPS_AT_ONCE, 3))
    values, wanted = Far(at_once), Preparation("dark", VOXEL)
    cubes = list(read_crops(Tomogram("TS_1", values, (VOXEL,) * 3, uri=uri), row_of(), corners, PATCH, wanted, {}))
    assert values.most == at_once
    whole = prepare_whole(in_memory()[0], wanted)[0]
    for cube, corner in zip(cubes, corners, strict=True):
        np.testing.assert_allclose(cube, cut(whole, corner, PATCH), atol=1e-5)
