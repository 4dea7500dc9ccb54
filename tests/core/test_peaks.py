"""Peaks against the dense definition, on maps with and without plateaus."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from tomoray.peaks import SLAB, Peaks, find_peaks, window_widths
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


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2 * SLAB + 2), st.integers(1, 9), st.integers(1, 9)),
    levels=st.sampled_from([1, 2, 3, 10, None]),
    width=st.sampled_from([1, 3, 5, 7]),
    floor=st.sampled_from([-1.0, 0.0, 0.34, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    turned=st.booleans(),
)
def test_equal_to_the_dense_definition(seed, shape, levels, width, floor, dtype, turned):
    """Planted: `>=` on both sides, so that plateaus keep all their cells; a window of the wrong width; a border of zeros; order by strides;
    slabs in another order."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=shape) if levels is None else rng.integers(0, levels + 1, shape) / levels
    scores = scores.astype(np.float32)
    if floor < 0:
        scores -= 0.5  # at the border, below zero: nothing outside may count as zero
    maps = torch.from_numpy(scores).to(dtype)[None]
    if turned:
        maps = maps.transpose(1, 3)
    scores, floor = maps[0].float().numpy(), float(torch.tensor(floor, dtype=dtype))
    peaks = find_peaks(maps, [width], floor=floor)
    assert {tuple(cell) for cell in peaks.cells_zyx.tolist()} == dense_peaks(scores, width, floor)
    assert len(peaks.cells_zyx) == len(set(map(tuple, peaks.cells_zyx.tolist())))
    np.testing.assert_array_equal(peaks.scores.numpy(), scores[tuple(peaks.cells_zyx.numpy().T)])


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blobs_with_flat_tops_keep_one_cell_each(sharpness: float, dtype: torch.dtype) -> None:
    """Planted: the comparison across faces strict on both sides, so that a plateau keeps no cell; the row along x without its tie-break."""
    axis = np.arange(30) - 14.5  # between cells, so that the eight in the middle are equal
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    scores = torch.from_numpy(np.clip(sharpness * (1 - radius / 12), 0, 1)).to(dtype)
    assert int((scores == scores.max()).sum()) >= 8
    for width in (3, 7):
        peaks = find_peaks(scores[None], [width], floor=0.02)
        assert {tuple(cell) for cell in peaks.cells_zyx.tolist()} == dense_peaks(scores.float().numpy(), width, 0.02)
    assert len(peaks.scores) >= 1


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


def gaussian(centre: np.ndarray, sigma: float) -> torch.Tensor:
    z, y, x = (np.exp(-((np.arange(24) - c) ** 2) / (2 * sigma**2)) for c in centre)
    return torch.from_numpy((z[:, None, None] * y[:, None] * x).astype(np.float32))


@pytest.mark.parametrize(("sigma", "factor"), [(1.5, 15), (2.25, 35), (3.75, 80)])
def test_refined_peaks_lie_nearer_to_the_centre(sigma: float, factor: float) -> None:
    """Planted: the shift doubled, of the wrong sign, or along the wrong axis."""
    centres = np.random.default_rng(0).uniform(10, 14, (40, 3))
    maps = torch.stack([gaussian(centre, sigma) for centre in centres])
    plain, refined = (find_peaks(maps, [7] * 40, floor=0.1, refine=refine) for refine in (False, True))
    errors = [np.sqrt(np.mean((peaks.cells_zyx.numpy() - centres) ** 2)) for peaks in (plain, refined)]
    assert errors[0] > factor * errors[1]
    assert refined.cells_zyx.dtype == torch.float32
    assert torch.equal(plain.scores, refined.scores)
    assert torch.equal(plain.cells_zyx, refined.cells_zyx.round().long())


def test_refinement_stays_within_half_a_cell_and_off_the_border() -> None:
    """Planted: no clip; a step beyond the border that wraps around; a shift up a slope without a top, or of 0 / 0 on a plateau."""
    scores = torch.zeros(1, 3, 3, 6)
    scores[0, 1, 1] = torch.tensor([0.9, 0.5, 0.4, 0.9, 0.9, 0.1])
    peaks = find_peaks(scores, [1], floor=0.45, refine=True)  # of width 1: every cell above the floor
    z, y, x = peaks.cells_zyx.T.tolist()
    assert z == y == [1.0] * 4
    assert x == pytest.approx([0, 3 + 0.5 * 0.5 / 0.5, 4 - 0.5 * 0.8 / 0.8, 1])
    slope = torch.tensor([0.1, 0.3, 0.4, 0.41]).reshape(1, 1, 1, 4)
    assert find_peaks(slope, [1], floor=0.2, refine=True).cells_zyx[:, 2].tolist() == pytest.approx([3, 2.5, 1.5])
    flat = find_peaks(torch.ones(1, 3, 3, 3), [1], floor=0.5, refine=True)
    assert flat.cells_zyx.tolist() == torch.cartesian_prod(*[torch.arange(3.0)] * 3).tolist()


def test_a_peak_of_half_precision_is_refined_in_single() -> None:
    """Planted: neighbours subtracted in the type of the map."""
    scores = gaussian(np.array([12.3, 11.8, 12.1]), 2.25)
    cells = [find_peaks(maps[None], [5], floor=0.1, refine=True).cells_zyx for maps in (scores.half(), scores.half().float())]
    assert torch.equal(*cells)


def test_windows_are_half_a_radius_wide_to_each_side() -> None:
    assert window_widths(CZII_PARTICLES, 10.0) == window_widths(CZII_PARTICLES, 10.012) == [3, 3, 5, 7, 7, 7]
    assert window_widths(CZII_PARTICLES, 20.0) == [1, 1, 3, 3, 3, 3]


def test_a_peak_lies_at_the_centre_of_its_cell() -> None:
    peaks = Peaks(torch.tensor([0]), torch.tensor([[0, 3, 10]]), torch.tensor([1.0]))
    assert peaks.positions_vox(2).tolist() == [[1.0, 7.0, 21.0]]
    assert peaks.positions_vox(1).tolist() == [[0.5, 3.5, 10.5]]
