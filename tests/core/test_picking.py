"""Picking: tiles that leave no seam, views that agree, and candidates that lie where the network saw them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tomoray.inference import for_inference
from tomoray.networks import AsymmetricUNet, Picker
from tomoray.peaks import find_peaks
from tomoray.picking import pick, predict
from tomoray.targets import gaussian_heatmaps, heatmap_sigmas
from tomoray.tiles import Window, tile_starts
from tomoray.tomogram import CZII_PARTICLES, Particle

VOXEL = (10.0, 10.0, 10.0)


class Pointwise(nn.Module):
    """Score each cell by its own voxels alone: two classes, bright and dark."""

    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([8.0, -3.0]))

    def forward(self, volume: Tensor) -> Tensor:
        return F.avg_pool3d(volume, 2) * self.gain.reshape(1, 2, 1, 1, 1) - 2


class HalvingConvolution(nn.Module):
    """A convolution with random weights and stride 2."""

    stride = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 2, 3, stride=2, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.convolution(volume)  # type: ignore[no-any-return]


def small_unet() -> Picker:
    """A network whose scores vary as those of a trained one do."""
    torch.manual_seed(0)
    network = AsymmetricUNet(classes=2, width=4, blocks=(1, 1))
    nn.init.normal_(network.head.weight, std=0.3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the mean of all it has seen
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 1, 32, 32, 32))
    return Picker(network)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 350).map(lambda n: 2 * n),
    tile=st.integers(8, 64).map(lambda n: 2 * n),
    overlap=st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 0.9)),
    stride=st.sampled_from([1, 2]),
)
def test_tiles_cover_an_axis_from_end_to_end(length, tile, overlap, stride):
    """Planted: an overlap that rounding to the stride makes smaller; tiles that are seen twice."""
    starts = tile_starts(length, tile, int(tile * (1 - overlap)), stride)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(start % stride == 0 for start in starts)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(stride, tile * (1 - overlap) + 1e-9)).all()


def test_a_czii_tomogram_takes_300_tiles_of_the_paper() -> None:
    assert [len(tile_starts(n, 90, 67, 2)) for n in (184, 630, 630)] == [3, 10, 10]
    assert tile_starts(96, 96, 72, 2) == tile_starts(50, 96, 72, 2) == [0]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("views", [1, 4, 8])
def test_a_constant_answer_stays_constant(overlap: float, views: int) -> None:
    """Planted: weights that are added but not divided by."""
    picker = Picker(Pointwise())
    nn.init.zeros_(picker.network.gain)
    scores = predict(picker, noise(33, 47, 64), window=Window(16, overlap, views))
    assert scores.shape == (2, 17, 24, 32)
    torch.testing.assert_close(scores, torch.full_like(scores, 1 / (1 + math.exp(2))))


@pytest.mark.parametrize("shape", [(32, 48, 40), (37, 51, 40), (20, 33, 61), (5, 40, 17)])
@pytest.mark.parametrize("window", [Window(16, 0.0), Window(16, 0.5), Window(30, 0.25, views=4), Window(18, 0.3, views=8)])
def test_tiles_and_views_agree_with_the_whole_for_a_network_that_looks_at_single_cells(shape, window) -> None:
    """Planted: a view that is not mirrored back; a tile put down one cell off."""
    picker, volume = Picker(Pointwise()), noise(*shape)
    even = np.pad(volume, [(0, n % 2) for n in shape])
    with torch.no_grad():
        expected = picker.eval()(torch.from_numpy(even)[None, None])[0]
    torch.testing.assert_close(predict(picker, volume, window=window), expected)


def test_eight_views_are_equivariant_and_four_are_not() -> None:
    """The four views of the paper, three of them mirrored along one axis each, form no group."""
    picker, volume = Picker(HalvingConvolution()), noise(24, 20, 28)
    defects = {}
    for views in (1, 4, 8):
        scores = predict(picker, volume, window=Window(32, views=views))
        mirrored = predict(picker, np.flip(volume, (0, 2)), window=Window(32, views=views))
        defects[views] = float((mirrored - scores.flip(1, 3)).abs().max())
    assert defects[8] < 1e-6
    assert defects[4] > 1e-2
    assert defects[1] > 1e-2


@pytest.mark.parametrize("shape", [(16, 17, 33), (7, 40, 31), (45, 18, 2)])
def test_odd_and_flat_volumes_are_picked(shape: tuple[int, int, int]) -> None:
    scores = predict(small_unet(), noise(*shape), window=Window(16, 0.25))
    assert scores.shape == (2, *(math.ceil(n / 2) for n in shape))
    assert scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()


def test_overlapping_tiles_come_closer_to_the_whole() -> None:
    """Planted: equal weights (0.81 of the error without overlap, here 0.62), and weights that favour a tile's border (1.07)."""
    picker, volume = small_unet(), noise(64, 64, 64)
    whole = predict(picker, volume, window=Window(64))
    apart, overlapping = ((whole - predict(picker, volume, window=Window(32, overlap))).abs().mean() for overlap in (0.0, 0.5))
    assert 0 < overlapping < 0.7 * apart


@pytest.mark.parametrize("window", [Window(16, 0.25), Window(64), Window(20, 0.5, views=8)])
@pytest.mark.parametrize("shape", [(40, 44, 60), (41, 45, 61)])
def test_a_candidate_lies_at_the_centre_of_the_cell_that_lights_up(window: Window, shape: tuple[int, int, int]) -> None:
    """Planted: x, y, z; a cell's corner for its centre; voxels for angstrom; the mean voxel size on every axis."""
    volume = np.zeros(shape, dtype=np.float32)
    cells = [(3, 17, 29), (15, 2, 11)]
    for (z, y, x), value in zip(cells, (1.0, 0.5), strict=True):
        volume[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = value
    volume[24:26, 24:26, 40:42] = -2.0
    voxel = (10.0, 10.01, 10.02)
    classes = (Particle("bright", 60.0), Particle("dark", 60.0))
    picks = pick(Picker(Pointwise()), volume, classes, voxel, run="TS_1", window=window, floor=0.3)
    assert picks.run == "TS_1"
    assert picks.names.tolist() == ["bright", "bright", "dark"]
    np.testing.assert_allclose(picks.positions_zyx, (np.array([*cells, (12, 12, 20)]) + 0.5) * 2 * voxel)
    assert picks.scores.tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (6, 2, 4)], rel=1e-5)


def test_windows_and_floor_decide_what_is_kept() -> None:
    volume = np.zeros((16, 16, 32), dtype=np.float32)
    for x, value in ((4, 1.0), (10, 0.9), (24, 0.8)):
        volume[6:8, 6:8, x : x + 2] = value
    for radius, floor, expected in ((60.0, 0.3, 3), (150.0, 0.3, 2), (150.0, 0.989, 1), (60.0, 0.999, 0)):
        classes = (Particle("bright", radius), Particle("dark", radius))
        assert len(pick(Picker(Pointwise()), volume, classes, VOXEL, run="TS_1", floor=floor)) == expected


@pytest.mark.parametrize("label", [0, 3])
def test_encoding_and_decoding_positions_is_unbiased(label: int) -> None:
    """Within half a stride, and zero on average: no offset of half a voxel hides between targets and peaks."""
    rng = np.random.default_rng(0)
    points = np.column_stack([np.full(400, label), rng.uniform(0, 16, (400, 3))])
    sigmas = heatmap_sigmas(CZII_PARTICLES, 10.0)
    maps = gaussian_heatmaps(torch.tensor(points, dtype=torch.float32)[:, None], sigmas, (16, 16, 16))
    found = [find_peaks(crop[label, None], [3], floor=0.5).positions_vox(2).numpy() for crop in maps]
    assert all(len(positions) == 1 for positions in found)
    error = np.concatenate(found) - points[:, 1:]
    assert np.abs(error).max() <= 1 + 1e-5
    assert np.abs(error.mean(axis=0)).max() < 3 * (2 / 12**0.5) / 400**0.5


@pytest.mark.parametrize("mode", [True, False])
def test_every_module_is_left_in_the_mode_it_was_in(mode: bool) -> None:
    """Planted: `picker.train(mode)`, which would wake a teacher that its method keeps in eval mode."""
    picker = small_unet().train(mode)
    picker.network.stem.train(not mode)
    before = {name: module.training for name, module in picker.named_modules()}
    state = {key: value.clone() for key, value in picker.state_dict().items()}
    predict(picker, noise(16, 16, 16))
    assert {name: module.training for name, module in picker.named_modules()} == before
    assert len(set(before.values())) == 2
    for key, value in picker.state_dict().items():
        assert torch.equal(value, state[key]), key  # running means do not move while picking


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_scores_of_lower_precision_are_float32_and_close(precision) -> None:
    picker, volume = small_unet(), noise(20, 24, 28)
    exact, rounded = predict(picker, volume), predict(for_inference(picker, precision), volume)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().mean() < 0.05 * exact.std()
    if precision == "bf16":
        assert not torch.equal(exact, rounded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_vox": 14}, "tile_vox 14: it must be even and at least 16"),
        ({"tile_vox": 97}, "tile_vox 97: it must be even and at least 16"),
        ({"overlap": 1.0}, r"overlap 1.0: it must lie in \[0, 1\)"),
        ({"overlap": -0.1}, r"overlap -0.1: it must lie in \[0, 1\)"),
        ({"views": 2}, "views 2: it must be one of 1, 4, 8"),
    ],
)
def test_windows_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Window(**options)
