"""Peaks against the dense definition, on maps with and without plateaus."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from tomoray.peaks import Peaks, find_peaks, window_widths
from tomoray.tomogram import CZII_PARTICLES


def dense_peaks(scores: np.ndarray, width: int, floor: float) -> set[tuple[int, ...]]:
    """Cells above the floor that nothing in their window beats, and nothing before them in memory equals: by definition, cell by cell."""
    reach = width // 2
    highest = maximum_filter(scores, size=width, mode="constant", cval=-np.inf)
    order = np.arange(scores.size).reshape(scores.shape)
    found = set()
    for cell in zip(*np.nonzero((scores == highest) & (scores > floor)), strict=True):
        window = tuple(slice(max(0, c - reach), c + reach + 1) for c in cell)
        if order[cell] == order[window][scores[window] == scores[cell]].min():
            found.add(tuple(int(c) for c in cell))
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    levels=st.sampled_from([1, 2, 3, 10, None]),
    width=st.sampled_from([1, 3, 5, 7]),
    floor=st.sampled_from([-1.0, 0.0, 0.34, 0.9]),
)
def test_equal_to_the_dense_definition(seed, shape, levels, width, floor):
    """Planted: `>=` on both sides, so that plateaus keep all their cells; a window of the wrong width; a border of zeros."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=shape) if levels is None else rng.integers(0, levels + 1, shape) / levels
    scores = scores.astype(np.float32)
    if floor < 0:
        scores -= 0.5  # at the border, below zero: nothing outside may count as zero
    peaks = find_peaks(torch.from_numpy(scores)[None], [width], floor=floor)
    assert {tuple(cell) for cell in peaks.cells_zyx.tolist()} == dense_peaks(scores, width, floor)
    assert len(peaks.cells_zyx) == len(set(map(tuple, peaks.cells_zyx.tolist())))
    np.testing.assert_array_equal(peaks.scores.numpy(), scores[tuple(peaks.cells_zyx.numpy().T)])


def test_smooth_maps_agree_with_max_pooling() -> None:
    torch.manual_seed(0)
    scores = torch.rand(6, 20, 24, 28)
    widths = [3, 3, 5, 7, 7, 7]
    peaks = find_peaks(scores, widths, floor=0.5)
    for label, width in enumerate(widths):
        pooled = torch.nn.functional.max_pool3d(scores[label][None], width, stride=1, padding=width // 2)[0]
        expected = ((scores[label] == pooled) & (scores[label] > 0.5)).nonzero()
        found = peaks.cells_zyx[peaks.labels == label]
        assert sorted(found.tolist()) == expected.tolist()


def test_sorted_by_class_then_by_falling_score() -> None:
    scores = torch.zeros(3, 8, 8, 8)
    scores[2, 1, 1, 1], scores[0, 5, 5, 5], scores[0, 1, 1, 1], scores[2, 6, 1, 6] = 0.3, 0.9, 0.5, 0.7
    peaks = find_peaks(scores, [3, 3, 3], floor=0.1)
    assert peaks.labels.tolist() == [0, 0, 2, 2]
    assert peaks.scores.tolist() == pytest.approx([0.9, 0.5, 0.7, 0.3])
    assert peaks.cells_zyx.tolist() == [[5, 5, 5], [1, 1, 1], [6, 1, 6], [1, 1, 1]]
    assert peaks.labels.dtype == peaks.cells_zyx.dtype == torch.int64
    assert peaks.scores.dtype == torch.float32


@pytest.mark.parametrize(("distance", "survivors"), [(1, 1), (3, 1), (4, 2)])
def test_two_peaks_in_one_window_leave_the_higher(distance: int, survivors: int) -> None:
    scores = torch.zeros(1, 5, 5, 12)
    scores[0, 2, 2, 2], scores[0, 2, 2, 2 + distance] = 0.8, 0.9
    peaks = find_peaks(scores, [7], floor=0.1)
    assert peaks.cells_zyx.tolist() == [[2, 2, 2 + distance], [2, 2, 2]][:survivors]


def test_the_floor_itself_is_not_above_the_floor() -> None:
    scores = torch.tensor([0.5, 0, 0, 0, 0.25]).reshape(1, 1, 1, 5)
    assert find_peaks(scores, [3], floor=0.25).cells_zyx.tolist() == [[0, 0, 0]]
    assert len(find_peaks(scores, [3], floor=0.5).scores) == 0


def test_an_empty_map_has_no_peaks() -> None:
    peaks = find_peaks(torch.zeros(2, 4, 4, 4), [3, 7], floor=0.02)
    assert peaks.labels.shape == peaks.scores.shape == (0,)
    assert peaks.cells_zyx.shape == peaks.positions_vox(2).shape == (0, 3)


def test_windows_are_half_a_radius_wide_to_each_side() -> None:
    assert window_widths(CZII_PARTICLES, 10.0) == window_widths(CZII_PARTICLES, 10.012) == [3, 3, 5, 7, 7, 7]
    assert window_widths(CZII_PARTICLES, 20.0) == [1, 1, 3, 3, 3, 3]


def test_a_peak_lies_at_the_centre_of_its_cell() -> None:
    peaks = Peaks(torch.tensor([0]), torch.tensor([[0, 3, 10]]), torch.tensor([1.0]))
    assert peaks.positions_vox(2).tolist() == [[1.0, 7.0, 21.0]]
    assert peaks.positions_vox(1).tolist() == [[0.5, 3.5, 10.5]]
