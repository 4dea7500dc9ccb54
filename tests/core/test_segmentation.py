"""The segmentation baseline: spheres as targets, overlap as loss, and a toy on which it learns to place particles."""

import math

import pytest
import torch

from tomoray.losses import dice_loss
from tomoray.methods import METHODS, activation_of, build_method
from tomoray.methods.segmentation import Segmentation
from tomoray.networks import DeepFinder, build_picker
from tomoray.peaks import find_components
from tomoray.picking import pick
from tomoray.targets import sphere_masks, with_background
from tomoray.tomogram import Particle
from tomoray.training import fit

TWO = (Particle("small", 60.0), Particle("large", 100.0))


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("centre", [(16.0, 20.0, 24.0), (17.0, 19.0, 23.0)])
def test_a_sphere_is_round_and_lies_around_its_particle(stride: int, centre) -> None:
    """Planted: cells measured from their corner, half a cell off."""
    radius = 10 / stride
    mask = sphere_masks(points((1, *centre)), [3.0, radius], (32, 40, 48), stride=stride)
    assert mask.shape == (1, 2, 32 // stride, 40 // stride, 48 // stride)
    assert not mask[0, 0].any()
    assert mask[0, 1].unique().tolist() == [0, 1]
    assert float(mask[0, 1].sum()) == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.08)
    found = find_components(mask[0])
    assert found.positions_vox(stride)[0].tolist() == pytest.approx(centre)


def test_neighbours_of_half_the_radius_stay_apart_and_of_the_whole_radius_merge() -> None:
    """Why `radius_fraction` is a half: two particles in contact."""
    touching = points((0, 16, 16, 9.2), (0, 16, 16, 21.2))
    for fraction, count in ((0.5, 1), (1.0, 1)):
        method = Segmentation(DeepFinder(2), TWO[:1], 10.0, radius_fraction=fraction)
        assert method.radii == [6 * fraction]
        count = len(find_components(method.target(touching, (32, 32, 32))[0]).scores)
        assert count == (2 if fraction == 0.5 else 1)


def test_overlapping_spheres_are_parted_where_they_are_equally_deep() -> None:
    mask = sphere_masks(points((0, 8, 8, 8), (1, 8, 8, 14)), [4.0, 8.0], (16, 16, 32), stride=1)[0]
    assert mask.sum(0).max() == 1
    row = mask[:, 8, 8]  # centres of cells lie half a voxel beside y = z = 8
    assert row[0, 6:10].tolist() == [1, 1, 1, 1]
    assert row[0, 10:].tolist() == [0] * 22  # |x - 8| / 4 > |x - 14| / 8 from x = 10 on
    assert row[1, 10:21].all()
    equal = sphere_masks(points((0, 4, 4, 4), (1, 4, 4, 4)), [2.0, 2.0], (8, 8, 8), stride=1)[0]
    assert equal.unique().tolist() == [0, 0.5]


def test_the_smallest_sphere_holds_the_cell_of_its_particle() -> None:
    """Planted: a sphere that no cell's centre lies in, and so a particle that the network is told not to see."""
    torch.manual_seed(0)
    for position in torch.rand(200, 3) * 8:
        mask = sphere_masks(points((0, *position.tolist())), [0.1], (8, 8, 8))[0, 0]
        assert mask[tuple((position // 2).long())] == 1
    assert not sphere_masks(points((-1, 4, 4, 4)), [3.0], (8, 8, 8)).any(), "padding is no particle"


def test_dice_by_its_formula() -> None:
    target = torch.zeros(2, 2, 2, 2, 2)
    target[:, 0, 0], target[:, 1, 1] = 1, 1
    assert float(dice_loss(target, target)) == 0
    assert float(dice_loss(1 - target, target, smooth=0)) == 1
    assert float(dice_loss(torch.full_like(target, 0.5), target, smooth=0)) == pytest.approx(0.5)  # 2 * 4 / (8 + 8) overlaps
    empty = torch.zeros(1, 1, 4, 4, 4)
    assert float(dice_loss(empty, empty)) == 0
    assert float(dice_loss(empty + 1, empty)) == pytest.approx(64 / 65)
    with pytest.raises(ValueError, match="must have the same shape"):
        dice_loss(target, target[:, :1])


def test_the_loss_is_zero_for_the_truth_and_counts_the_background() -> None:
    for weight in (0.0, 1.0):
        method = Segmentation(DeepFinder(3), TWO, 10.0, cross_entropy_weight=weight)
        target = method.target(points((0, 4, 4, 4), (1, 10, 10, 10)), (16, 16, 16))
        right = 50 * with_background(target)
        assert float(method.loss(right, target)) == pytest.approx(0, abs=1e-5)
        assert float(method.loss(right.roll(1, dims=1), target)) > 0.5
        assert float(method.loss(torch.zeros_like(right), target)) > 0.5 + weight


def test_logits_of_equal_size_cost_the_cross_entropy_of_chance() -> None:
    without, beside = (Segmentation(DeepFinder(3), TWO, 10.0, cross_entropy_weight=weight) for weight in (0.0, 2.0))
    target = without.target(points((0, 4, 4, 4)), (16, 16, 16))
    logits = torch.zeros(1, 3, 16, 16, 16)
    assert float(beside.loss(logits, target) - without.loss(logits, target)) == pytest.approx(2 * math.log(3), rel=1e-5)


def test_the_method_says_how_to_pick() -> None:
    assert activation_of(name="segmentation") == "softmax"
    assert METHODS["segmentation"].finder == "components"
    assert METHODS["supervised"].finder == "peaks"


def test_it_learns_to_place_particles(make_crops) -> None:
    """From the loss to picks: every particle of a crop that it learned by heart, and nothing else, within a voxel."""
    torch.manual_seed(0)
    network = build_picker("asymmetric_unet", classes=2, activation="softmax", width=8, blocks=(1, 1)).network
    method = build_method(network, TWO, 10.0, name="segmentation", intensity_strength=0.5)
    crops = make_crops(seed=3)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = [epoch.metrics["loss"] for epoch in fit(method, optimizer, {"labelled": [crops] * 20}, epochs=4, steps_per_epoch=20)]
    assert losses[-1] < 0.4 * losses[0]
    found = pick(method.picker(), crops["volume"][0, 0].numpy(), TWO, (10.0,) * 3, run="TS_1", finder=method.finder)
    truth = crops["particles"][0]
    assert len(found) == len(truth) == 4
    for label, *position in truth.tolist():
        near = found.of(TWO[int(label)].name).positions_zyx / 10 - position
        assert ((near**2).sum(1) ** 0.5).min() < 1


def test_deepfinder_learns_too(make_crops) -> None:
    """At stride 1 and without normalisation."""
    torch.manual_seed(0)
    method = build_method(DeepFinder(3), TWO, 10.0, name="segmentation", intensity_strength=0.0)
    crops = make_crops(seed=3, size=16)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    losses = [epoch.metrics["loss"] for epoch in fit(method, optimizer, {"labelled": [crops] * 6}, epochs=3, steps_per_epoch=6)]
    assert losses[-1] < 0.8 * losses[0]
