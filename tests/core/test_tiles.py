"""Tiles that a budget decides: they cover, they overlap, and none does less."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.tiles import OVERLAP_VOX, Window, blending_weights, tile_of_least_work


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 330).map(lambda n: 2 * n)] * 3), budget=st.integers(96**3, 300**3))
def test_tiles_of_a_budget_cover_the_volume_and_overlap(shape, budget):
    """Planted: overlaps that rounding to the stride eats into; tiles beyond the budget; a last tile that ends before the volume."""
    corners, tile = Window(budget_vox=budget).tiles(shape, 2)
    assert math.prod(tile) <= max(budget, 96**3)
    for axis, (length, edge) in enumerate(zip(shape, tile, strict=True)):
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] == 0
        assert starts[-1] + edge == length
        assert all(start % 2 == 0 for start in starts)
        assert all(b - a <= edge - OVERLAP_VOX for a, b in pairwise(starts))
    assert len(corners) == len(set(corners)) == math.prod(len({c[axis] for c in corners}) for axis in range(3))


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(20, 200).map(lambda n: 2 * n)] * 3), budget=st.integers(96**3, 200**3))
def test_no_other_equal_tiles_compute_less(shape, budget):
    """Against every number of tiles along every axis; planted: the largest tile that fits, which may have to overlap by half."""
    least = math.inf
    for counts in product(range(1, 14), repeat=3):
        tile = [n if k == 1 else 2 * math.ceil((n + (k - 1) * OVERLAP_VOX) / k / 2) for n, k in zip(shape, counts, strict=True)]
        if math.prod(tile) <= budget and all(k == 1 or t >= 2 * OVERLAP_VOX for t, k in zip(tile, counts, strict=True)):
            least = min(least, math.prod(counts) * math.prod(tile))
    tile = tile_of_least_work(shape, budget, 2)
    corners, _ = Window(budget_vox=budget).tiles(shape, 2)
    assert len(corners) * math.prod(tile) <= least


def test_a_volume_within_the_budget_is_seen_whole() -> None:
    assert Window(budget_vox=184 * 630 * 630).tiles((184, 630, 630), 2) == ([(0, 0, 0)], [184, 630, 630])
    assert Window().tiles((20, 30, 40), 2) == ([(0, 0, 0)], [20, 30, 40])
    corners, tile = Window().tiles((184, 630, 630), 2)
    assert (len(corners), tile) == (9, [184, 232, 232])
    assert math.prod(tile) * 9 < 1.23 * 184 * 630 * 630


@pytest.mark.parametrize(("window", "smaller"), [(Window(), Window(budget_vox=5_000_000)), (Window(96), Window(76)), (Window(16), Window(16))])
def test_a_smaller_window_has_half_the_voxels(window: Window, smaller: Window) -> None:
    assert window.smaller() == smaller


def test_weights_are_highest_in_the_middle_and_never_zero() -> None:
    weights = blending_weights((6, 9, 12), torch.device("cpu")).numpy()
    assert weights.shape == (6, 9, 12)
    assert np.unravel_index(weights.argmax(), weights.shape)[1] == 4
    assert weights.min() >= 1e-3
    assert np.allclose(weights, weights[::-1, ::-1, ::-1])
