"""Supervised training where only some particles are marked."""

import pytest
import torch

from tomoray.methods.supervised import UNKNOWN, Supervised
from tomoray.networks import AsymmetricUNet


@pytest.fixture
def method(particles) -> Supervised:
    torch.manual_seed(0)
    return Supervised(AsymmetricUNet(classes=2, width=4, blocks=(1, 1)), particles, 10.0, known_radii=2.0, intensity_strength=0.0)


def test_what_lies_near_a_marked_particle_is_known_for_every_class(method: Supervised) -> None:
    """Planted: known in the map of the particle's own class alone; radii in voxels instead of cells."""
    target = method.target(torch.tensor([[[0, 16.5, 16.5, 16.5], [-1, 0, 0, 0]]]), (32, 32, 32))
    known = target != UNKNOWN
    assert known[0, 0].equal(known[0, 1])
    axis = torch.arange(16) - 8
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    assert known[0, 0].equal(distance <= 2 * 60 / 20)
    assert target[0, 0, 8, 8, 8] == 1
    assert not target[0, 1][known[0, 1]].any(), "it is no particle of the other class"


def test_an_unmarked_particle_is_not_unlearned(method: Supervised, particles) -> None:
    """The loss pulls at scores near marked particles alone. Planted: the mask lost on the way from target to loss."""
    marked = torch.tensor([[[0, 8.0, 8.0, 8.0]]])
    logits = torch.zeros(1, 2, 24, 24, 24, requires_grad=True)
    for one, everywhere in ((method, False), (Supervised(method.network, particles, 10.0), True)):
        (slope,) = torch.autograd.grad(one.loss(logits, one.target(marked, (48, 48, 48))), logits)
        assert slope[0, :, 4, 4, 4].abs().min() > 0
        assert bool(slope[0, :, 18:, 18:, 18:].any()) == everywhere


def test_a_teachers_word_counts_everywhere(method: Supervised) -> None:
    logits = torch.zeros(1, 2, 16, 16, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(method.consistency(logits, torch.full((1, 2, 16, 16, 16), 0.1)), logits)
    assert slope.all()


def test_crops_without_a_marked_particle_teach_nothing(method: Supervised, make_crops) -> None:
    crops = make_crops()
    crops["particles"] = torch.full_like(crops["particles"], -1.0)
    loss, _ = method({"labelled": crops}, 0.0)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in method.parameters() if p.grad is not None)
