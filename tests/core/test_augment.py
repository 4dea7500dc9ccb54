"""Augmentation: volume and target move together, every pose comes up, and sizes are what they say."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tomoray.augment import blur, change_gamma, random_flips_and_turns, random_intensity


def marked(count: int, shape: tuple[int, int, int], voxel: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Crops with one bright voxel, and targets `(b, 2, ...)` whose second class marks its cell."""
    volume, target = torch.zeros(count, 1, *shape), torch.zeros(count, 2, *(n // 2 for n in shape))
    volume[(slice(None), 0, *voxel)] = 1
    target[(slice(None), 1, *(v // 2 for v in voxel))] = 1
    return volume, target


@pytest.mark.parametrize("shape", [(12, 16, 16), (12, 16, 20)])
def test_volume_and_target_move_together(shape: tuple[int, int, int]) -> None:
    """Planted: a target that is turned the other way, or not at all."""
    torch.manual_seed(0)
    volume, target = random_flips_and_turns(*marked(64, shape, (3, 4, 9)))
    assert volume.shape == (64, 1, *shape)
    assert target.shape == (64, 2, *(n // 2 for n in shape))
    assert (volume.nonzero()[:, 2:] // 2).tolist() == target.nonzero()[:, 2:].tolist()
    assert volume.sum() == target.sum() == 64
    assert target[:, 0].count_nonzero() == 0


@pytest.mark.parametrize(("shape", "poses"), [((6, 8, 8), 16), ((6, 8, 10), 8)])
def test_every_pose_that_keeps_the_missing_wedge_comes_up(shape: tuple[int, int, int], poses: int) -> None:
    """Two ways up times the eight of a square, or the four of a rectangle; the beam stays along z."""
    torch.manual_seed(0)
    crop = torch.rand(1, 1, *shape)
    volume, _ = random_flips_and_turns(crop.repeat(400, 1, 1, 1, 1), torch.zeros(400, 1, 3, *(n // 2 for n in shape[1:])))
    distinct, counts = torch.unique(volume.flatten(1), dim=0, return_counts=True)
    assert len(distinct) == poses
    assert counts.min() > 400 / poses / 3
    profile = crop.mean((0, 1, 3, 4))
    for seen in volume.mean((1, 3, 4)):
        assert torch.allclose(seen, profile) or torch.allclose(seen, profile.flip(0))


@pytest.mark.parametrize("change", [random_intensity, lambda v: random_flips_and_turns(v, v)[0]])
def test_a_seed_decides_and_each_crop_draws_its_own(change) -> None:
    volume = torch.rand(1, 1, 8, 8, 8).repeat(8, 1, 1, 1, 1)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(change(volume))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(torch.unique(drawn[0].flatten(1), dim=0)) > 1


def test_strength_0_changes_nothing() -> None:
    volume = torch.randn(4, 1, 8, 8, 8)
    assert torch.equal(random_intensity(volume, strength=0), volume)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_sizes_of_noise_and_brightness_are_as_stated(strength: float) -> None:
    """On empty crops only brightness and noise show: up to 0.2 and 0.1 at strength 1, each in half of the crops."""
    torch.manual_seed(0)
    changed = random_intensity(torch.zeros(400, 1, 8, 8, 8), strength=strength)
    mean, std = changed.mean((1, 2, 3, 4)), changed.std((1, 2, 3, 4))
    noisy = std > 1e-4
    assert 0.42 < noisy.float().mean() < 0.58
    torch.testing.assert_close(std[noisy], torch.full_like(std[noisy], 0.1 * strength), rtol=0.15, atol=0)
    quiet = mean[~noisy]
    assert quiet.abs().max() <= 0.2 * strength + 1e-5
    assert quiet.abs().max() > 0.15 * strength
    assert 0.35 < (quiet.abs() < 1e-5).float().mean() < 0.65


def test_the_input_is_left_alone() -> None:
    volume, target = torch.rand(8, 1, 8, 8, 8), torch.rand(8, 1, 4, 4, 4)
    before = volume.clone(), target.clone()
    random_intensity(volume)
    random_flips_and_turns(volume, target)
    assert torch.equal(volume, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize("sigma", [0.25, 0.7, 1.0, 2.5])
def test_blur_is_a_gaussian_that_keeps_the_mean(sigma: float) -> None:
    crop = np.random.default_rng(0).normal(size=(9, 14, 11)).astype(np.float32)
    blurred = blur(torch.from_numpy(crop)[None], sigma)[0].numpy()
    np.testing.assert_allclose(blurred, gaussian_filter(crop, sigma, mode="nearest", radius=max(1, round(3 * sigma))), atol=1e-5)
    point = torch.zeros(1, 21, 21, 21)
    point[0, 10, 10, 10] = 1
    assert blur(point, sigma).sum().item() == pytest.approx(1, rel=1e-5)
    assert torch.allclose(blur(torch.full((1, 5, 6, 7), 3.0), sigma), torch.tensor(3.0))


def test_no_blur_and_no_gamma_change_nothing() -> None:
    crop = torch.randn(1, 4, 4, 4)
    assert torch.equal(blur(crop, 0.0), crop)
    assert torch.equal(change_gamma(crop, 1.0), crop)


@pytest.mark.parametrize("gamma", [0.8, 1.25, 2.0])
def test_gamma_bends_values_within_their_range(gamma: float) -> None:
    crop = torch.tensor([-3.0, -1.0, 1.0, 5.0]).reshape(1, 1, 2, 2)
    bent = change_gamma(crop, gamma).flatten().tolist()
    assert bent == pytest.approx([-3, -3 + 8 * 0.25**gamma, -3 + 8 * 0.5**gamma, 5], rel=1e-5)
    assert torch.allclose(change_gamma(torch.full((1, 2, 2, 2), 7.0), gamma), torch.tensor(7.0))


def test_gamma_stays_between_four_fifths_and_five_fourths() -> None:
    """With every value 0 or 1 except one half, that voxel tells the gamma of crops that are otherwise unchanged."""
    torch.manual_seed(0)
    crop = torch.zeros(2000, 1, 4, 4, 4)
    crop[..., 0] = 1
    crop[..., 1, 1, 1] = 0.5
    changed = random_intensity(crop)
    plain = (changed.amin((1, 2, 3, 4)) == 0) & (changed.amax((1, 2, 3, 4)) == 1)
    gamma = changed[plain][:, 0, 1, 1, 1].log() / math.log(0.5)
    bent = gamma[(gamma - 1).abs() > 1e-4]
    assert len(bent) > 10
    assert bent.min() >= 0.8 - 1e-4
    assert bent.max() <= 1.25 + 1e-4
    assert bent.min() < 0.9
    assert bent.max() > 1.1
