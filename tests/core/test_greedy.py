"""Greedy picking against the plain search: the highest cell of the whole map, again and again."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.peaks import find_greedy, find_peaks


def plain_search(scores: np.ndarray, radius: float, floor: float, limit: int | None, shape: str) -> tuple[list[list[int]], list[float]]:
    """Take the highest cell of all, the first in memory among equals, and clear all within the radius, by definition."""
    left = scores.astype(np.float64)
    grid = np.moveaxis(np.indices(left.shape), 0, -1)
    cells, tops = [], []
    while limit is None or len(cells) < limit:
        cell = np.unravel_index(left.argmax(), left.shape)
        if not left[cell] > floor:
            break
        cells.append([int(c) for c in cell])
        tops.append(left[cell])
        away = np.abs(grid - cell)
        left[(np.linalg.norm(away, axis=-1) if shape == "sphere" else away.max(-1)) <= radius] = -np.inf
    return cells, tops


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(*[st.integers(1, 20)] * 3),
    levels=st.sampled_from([1, 3, 10, None]),
    radius=st.sampled_from([1, 1.5, 2, 3.7, 9]),
    shape=st.sampled_from(["sphere", "cube"]),
    floor=st.sampled_from([-np.inf, 0.0, 0.1, 0.7]),
    limit=st.sampled_from([0, 1, 7, 30]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_equal_to_the_plain_search(seed, size, levels, radius, shape, floor, limit, dtype):
    """Planted: equal scores taken block by block instead of in memory's order; `<` for `<=` within the ball; a floor not rounded like the map."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-0.5, 1, size) if levels is None else rng.integers(0, levels + 1, size) / levels
    scores = torch.from_numpy(values).to(dtype)
    found = find_greedy(scores[None], [radius], floor=floor, limit=limit, shape=shape)
    cells, tops = plain_search(scores.float().numpy(), radius, float(torch.tensor(floor, dtype=dtype)), limit, shape)
    assert found.cells_zyx.tolist() == cells
    assert found.scores.tolist() == tops


@pytest.mark.parametrize(("shape", "radius"), [("sphere", 2.5), ("sphere", 5.2), ("cube", 3.0)])
def test_without_a_limit_nothing_above_the_floor_is_left(shape: str, radius: float) -> None:
    """Planted: a block dropped from the queue once its top was cleared by a pick in another block."""
    scores = np.random.default_rng(1).uniform(size=(18, 20, 33)).astype(np.float32)
    found = find_greedy(torch.from_numpy(scores)[None], [radius], floor=0.3, shape=shape)  # type: ignore[arg-type]
    cells, tops = plain_search(scores, radius, 0.3, None, shape)
    assert len(cells) > 30
    assert found.cells_zyx.tolist() == cells
    assert found.scores.tolist() == tops


def test_each_class_has_its_own_radius_and_limit() -> None:
    """Planted: picks of one class clear the map of the next; the limit shared by all classes."""
    scores = torch.rand(3, 12, 20, 20, generator=torch.Generator().manual_seed(0))
    found = find_greedy(scores, [0, 3, 1.5], floor=0.5, limit=9)
    assert found.labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    for label, radius in enumerate((0, 3, 1.5)):
        assert found.cells_zyx[found.labels == label].tolist() == plain_search(scores[label].numpy(), radius, 0.5, 9, "sphere")[0]
    assert found.labels.dtype == found.cells_zyx.dtype == torch.int64
    assert found.scores.dtype == torch.float32


def test_well_separated_blobs_are_the_local_peaks() -> None:
    """Planted: a ball that clears too little, so that the flank of a blob is picked as well."""
    axis = torch.arange(48.0)
    near = [torch.exp(-((axis - centre) ** 2) / 8) for centre in (10, 36)]
    scores = (
        torch.stack([z[:, None, None] * y[:, None] * x for z in near for y in near for x in near])
        .mul(torch.arange(2, 10)[:, None, None, None])
        .amax(0)
    )
    greedy = find_greedy(scores[None], [6], floor=0.1)
    peaks = find_peaks(scores[None], [7], floor=0.1)
    assert len(peaks.scores) == 8
    assert greedy.cells_zyx.tolist() == peaks.cells_zyx.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_floor_itself_is_not_above_the_floor(dtype: torch.dtype) -> None:
    """Planted: scores compared with a floor that keeps more digits than they do."""
    scores = torch.full((1, 4, 4, 4), 0.1).to(dtype)
    scores[0, 0, 0, 0] = 0.5
    assert len(find_greedy(scores, [1], floor=0.1).scores) == len(find_peaks(scores, [1], floor=0.1).scores) == 1


def test_an_empty_map_has_no_picks() -> None:
    found = find_greedy(torch.zeros(2, 4, 4, 4), [3, 7], floor=0.02)
    assert found.labels.shape == found.scores.shape == (0,)
    assert found.cells_zyx.shape == (0, 3)


@pytest.mark.parametrize(("options", "message"), [({"shape": "cubes"}, "must be 'sphere' or 'cube'"), ({"radii_cells": [-1.0]}, "at least 0")])
def test_what_would_never_end_or_be_misread_is_refused(options: dict, message: str) -> None:
    """Planted: a negative radius, which clears nothing, so that one cell is picked for ever."""
    with pytest.raises(ValueError, match=message):
        find_greedy(torch.ones(1, 4, 4, 4), **{"radii_cells": [1.0], "floor": 0.0, **options})


def test_many_picks_read_little_of_the_map() -> None:
    """Planted: the plain search's reading of the whole map for each pick."""
    scores = torch.rand(64, 256, 256, generator=torch.Generator().manual_seed(0))
    whole_map, greedy = [], []
    for _ in range(3):
        began = time.process_time()
        scores.argmax()
        whole_map.append(time.process_time() - began)
        began = time.process_time()
        assert len(find_greedy(scores[None], [4.0], floor=0.0, limit=100).scores) == 100
        greedy.append(time.process_time() - began)
    assert min(greedy) < 100 * min(whole_map) / 3
