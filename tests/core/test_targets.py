"""Heat maps: widths of the paper, height 1 where a particle lies, and mirrored particles for mirrored maps."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tomoray.targets import gaussian_heatmaps, heatmap_sigmas, pad_particles, reach_vox
from tomoray.tomogram import CZII_PARTICLES, Particle

SIGMAS = heatmap_sigmas(CZII_PARTICLES, 10.0)
FERRITIN, RIBOSOME = 0, 3


def batch(*points: tuple[float, float, float, float]) -> Tensor:
    """One crop's particles: class, z, y, x in voxels."""
    return torch.tensor(points, dtype=torch.float32).reshape(1, -1, 4)


def test_widths_are_half_the_radius() -> None:
    assert pytest.approx([1.5, 1.625, 2.25, 3.75, 3.25, 3.375]) == SIGMAS
    assert heatmap_sigmas(CZII_PARTICLES, 5.0, stride=4) == pytest.approx(SIGMAS)


@pytest.mark.parametrize("shape", [(24, 24, 24), (20, 32, 26), (21, 17, 30)])
def test_the_peak_is_1_in_the_cell_that_holds_the_particle(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    for position in rng.uniform(0, shape, (20, 3)):
        maps = gaussian_heatmaps(batch((RIBOSOME, *position)), SIGMAS, shape)
        assert maps.shape == (1, 6, *(math.ceil(n / 2) for n in shape))
        assert maps.amax() == 1
        assert maps.argmax() == np.ravel_multi_index((0, RIBOSOME, *(int(p // 2) for p in position)), maps.shape)
        assert maps.count_nonzero() == maps[:, RIBOSOME].count_nonzero()


def test_values_one_cell_off() -> None:
    maps = gaussian_heatmaps(batch((FERRITIN, 20, 20, 20), (RIBOSOME, 20, 20, 20)), SIGMAS, (40, 40, 40))[0]
    assert maps[FERRITIN, 10, 10, 11].item() == pytest.approx(0.801, abs=5e-4)
    assert maps[RIBOSOME, 11, 10, 10].item() == pytest.approx(0.965, abs=5e-4)
    assert maps[FERRITIN, 9, 11, 12].item() == pytest.approx(math.exp(-(1 + 1 + 4) / (2 * 1.5**2)))


def test_the_mass_of_a_particle() -> None:
    """53 cells for apo-ferritin, 830 for the ribosome: what the joint loss weighs them by."""
    maps = gaussian_heatmaps(batch((FERRITIN, 48, 48, 48), (RIBOSOME, 48, 48, 48)), SIGMAS, (96, 96, 96))[0]
    assert maps.sum((1, 2, 3))[[FERRITIN, RIBOSOME]].tolist() == pytest.approx([53.2, 830.5], rel=2e-3)


def test_where_particles_overlap_the_larger_value_counts() -> None:
    """Planted: maps that are added up."""
    one, other = (RIBOSOME, 12, 12, 10), (RIBOSOME, 12, 12, 16)
    both = gaussian_heatmaps(batch(one, other), SIGMAS, (24, 24, 24))
    apart = [gaussian_heatmaps(batch(p), SIGMAS, (24, 24, 24)) for p in (one, other)]
    torch.testing.assert_close(both, torch.maximum(*apart), rtol=0, atol=0)
    assert both.amax() == 1


@pytest.mark.parametrize(("size", "agree"), [(24, True), (30, True), (25, False)])
def test_mirrored_particles_give_mirrored_maps_for_even_sizes_only(size: int, agree: bool) -> None:
    points = torch.tensor(np.random.default_rng(1).uniform(0, size, (1, 5, 4)), dtype=torch.float32)
    points[..., 0] = torch.tensor([0, 1, 2, 3, 4])
    for axis in range(3):
        mirrored = points.clone()
        mirrored[..., 1 + axis] = size - points[..., 1 + axis]
        maps = gaussian_heatmaps(points, SIGMAS, (size,) * 3)
        of_mirrored = gaussian_heatmaps(mirrored, SIGMAS, (size,) * 3)
        assert torch.allclose(of_mirrored, maps.flip(2 + axis), atol=1e-6) is agree


def test_the_halo_of_a_particle_outside_reaches_in() -> None:
    maps = gaussian_heatmaps(batch((RIBOSOME, -3.0, 10.5, 25.0)), SIGMAS, (20, 20, 20))[0, RIBOSOME]  # cell -2, 5, 12
    assert maps[0, 5, 9].item() == pytest.approx(math.exp(-(4 + 9) / (2 * 3.75**2)))
    assert 0 < maps.amax() < 1


def test_padding_leaves_no_trace() -> None:
    crops = [torch.tensor([[0.0, 4, 4, 4]]), torch.empty(0, 4), torch.tensor([[1.0, 8, 8, 8], [2.0, 3, 3, 3]])]
    padded = pad_particles(crops)
    assert padded.shape == (3, 2, 4)
    assert padded[1].tolist() == [[-1] * 4] * 2
    maps = gaussian_heatmaps(padded, SIGMAS, (16, 16, 16))
    assert maps[1].count_nonzero() == 0
    for crop, alone in zip(maps, crops, strict=True):
        torch.testing.assert_close(crop, gaussian_heatmaps(alone[None], SIGMAS, (16, 16, 16))[0], rtol=0, atol=0)


@pytest.mark.parametrize("crops", [[], [torch.empty(0, 4)] * 2])
def test_crops_without_particles_are_a_batch_too(crops: list[Tensor]) -> None:
    maps = gaussian_heatmaps(pad_particles(crops), SIGMAS, (8, 8, 8))
    assert maps.shape == (len(crops), 6, 4, 4, 4)
    assert maps.count_nonzero() == 0


def test_a_crop_hears_of_particles_as_far_away_as_they_can_be_seen() -> None:
    """Planted mistake: a fixed reach, which is too short for a class larger than those of CZII."""
    large = (Particle("small", 50.0), Particle("large", 300.0))
    reach = reach_vox(large, 10.0)
    assert reach == pytest.approx(45.0)
    just_outside = torch.tensor([[[1.0, 16.0, 16.0, 32.0 + reach]]])
    edge = gaussian_heatmaps(just_outside, heatmap_sigmas(large, 10.0), (32, 32, 32))[0, 1, 8, 8, -1]
    assert edge == pytest.approx(0.011, abs=0.002), "exp(-9 / 2): what is left out is less than that"
