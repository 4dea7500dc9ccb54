"""From rows to crops, as a reading task cuts them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_jobs import PARTICLES

from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.cluster.data import CropSource, crop_stream, cut_crops, plan
from tomoray.formats import open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import CropSettings
from tomoray.preprocessing import prepare
from tomoray.tomogram import Tomogram

EDGE = 48


@pytest.fixture
def rows(catalogue: str) -> tuple[CatalogueRow, ...]:
    return tuple(row for row in read_catalogue(catalogue) if row.split == "train")[:2]


def crops_of(rows: tuple[CatalogueRow, ...], visits: int, settings: CropSettings, clip_sd: float = 0.0) -> list[tuple[int, np.ndarray]]:
    """Every crop of the first visits, with the row that it is of."""
    source = CropSource(rows, PARTICLES, rows[0].voxel_angstrom, "dark", settings, seed=3, clip_sd=clip_sd)
    found = []
    for item in plan(len(rows), 0, visits, seed=3):
        for block in cut_crops({key: np.array([value]) for key, value in item.items()}, source=source):
            found += [(item["row"], volume) for volume in block["volume"]]
    return found


def volume_of(row: CatalogueRow, clip_sd: float = 0.0) -> np.ndarray:
    tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom)
    return prepare(tomogram, contrast="dark", to_voxel_angstrom=row.voxel_angstrom, clip_sd=clip_sd)[0]


def test_a_grid_shows_every_voxel_of_every_tomogram_once_in_each_pass(rows: tuple[CatalogueRow, ...]) -> None:
    """Planted: visits counted over all tomograms instead of over one, so that half of the cubes are left out."""
    settings = CropSettings(patch_vox=EDGE, per_visit=2, layout="grid")
    crops = crops_of(rows, visits=4, settings=settings)
    for index, row in enumerate(rows):
        volume = volume_of(row)
        assert volume.shape == (EDGE, 2 * EDGE, 2 * EDGE)
        seen = np.sort(np.concatenate([crop.ravel() for of, crop in crops if of == index]))
        np.testing.assert_allclose(seen, np.sort(volume.astype(np.float16).ravel()), rtol=1e-3)  # float16 may round the other way


def test_crops_come_from_clipped_volumes_where_that_is_asked_for(rows: tuple[CatalogueRow, ...]) -> None:
    """Planted: clipping when picking, but not when training."""
    settings = CropSettings(patch_vox=EDGE, per_visit=8)
    crops = crops_of(rows[:1], visits=1, settings=settings, clip_sd=1.0)
    highest = volume_of(rows[0], clip_sd=1.0).max()
    assert max(crop.max() for _, crop in crops) == pytest.approx(highest, rel=1e-3)
    assert highest < volume_of(rows[0]).max() / 2


def test_the_same_visit_cuts_the_same_crops(rows: tuple[CatalogueRow, ...]) -> None:
    settings = CropSettings(patch_vox=EDGE, per_visit=4)
    first, again = (crops_of(rows, visits=2, settings=settings) for _ in range(2))
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][1], first[1][1])


def test_crops_arrive_in_the_order_of_the_plan_although_some_take_longer(local_ray: None, rows: tuple[CatalogueRow, ...], tmp_path: Path) -> None:
    """Planted: blocks passed on as they are ready."""
    large = Tomogram("large", np.random.default_rng(0).standard_normal((96, 192, 192), dtype=np.float32), (10.0,) * 3)
    write_mrc(tmp_path / "large.mrc", large)  # clipping asks for all of it, in each process that has not seen it yet
    slow = replace(rows[0], tomogram_id="large", run="large", uri=str(tmp_path / "large.mrc"), shape_zyx=large.shape, voxel_angstrom=10.0)
    settings = CropSettings(patch_vox=EDGE, per_visit=2, readers=4)
    source = CropSource((slow, *rows), PARTICLES, 10.0, "dark", settings, seed=3, labelled=False, clip_sd=3.0)
    visits = [{key: np.array([value]) for key, value in item.items()} for item in plan(3, 0, 24, seed=3)]
    expected = [block["volume"] for visit in visits for block in cut_crops(visit, source=source)]
    found = [batch["volume"] for batch in crop_stream(source, lambda: (0, 24))().iter_batches(batch_size=2)]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
