"""Connected components: what hangs together is one candidate, at its centroid, with its mean score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tomoray.checkpoint import Card, load_picker, read_card, save_checkpoint
from tomoray.networks import Picker
from tomoray.peaks import find_components
from tomoray.picking import pick
from tomoray.tiles import Window
from tomoray.tomogram import Particle


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> Tensor:
    """Whether the centre of each cell lies in a ball; `centre` in cells from the map's corner."""
    z, y, x = (torch.arange(n) + 0.5 - c for n, c in zip(shape, centre, strict=True))
    return z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < radius**2


def test_cells_that_share_a_corner_are_one_component_of_26_neighbours_and_two_of_6() -> None:
    """Two balls that touch in one corner only."""
    scores = torch.zeros(1, 12, 12, 12)
    for corner in (2, 5):
        scores[0, corner : corner + 3, corner : corner + 3, corner : corner + 3] = 0.9
    assert find_components(scores).positions_vox(1).tolist() == [[5.0, 5.0, 5.0]]
    assert find_components(scores, connectivity=6).positions_vox(1).tolist() == [[3.5] * 3, [6.5] * 3]
    assert len(find_components(scores, connectivity=18).scores) == 2


@pytest.mark.parametrize("centre", [(8.0, 9.0, 10.0), (8.5, 9.5, 7.5)])
@pytest.mark.parametrize("radius", [1.5, 3.2, 5.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_centroid_of_a_ball_is_its_centre(centre, radius: float, stride: int) -> None:
    """Planted: indices taken for centres, half a cell off."""
    scores = 0.8 * ball((18, 20, 22), centre, radius).float()[None]
    found = find_components(scores)
    assert found.positions_vox(stride).numpy() == pytest.approx(stride * np.array([centre]))
    assert found.scores.tolist() == pytest.approx([0.8])
    assert (found.labels.dtype, found.cells_zyx.dtype, found.scores.dtype) == (torch.int64, torch.float32, torch.float32)


def test_the_background_takes_what_the_classes_leave() -> None:
    """Planted: a fixed threshold of one half; ties given to a class."""
    cells = [(0.4, 0.1), (0.4, 0.25), (0.5, 0.0), (0.0, 0.6), (0.34, 0.36), (0.1, 0.1)]  # background: 0.5, 0.35, 0.5, 0.4, 0.3, 0.8
    scores = torch.zeros(2, 1, 1, 2 * len(cells))
    for place, (first, second) in enumerate(cells):
        scores[:, 0, 0, 2 * place] = torch.tensor([first, second])
    found = find_components(scores)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.cells_zyx[:, 2].tolist() == [2.0, 6.0, 8.0]
    assert found.scores.tolist() == pytest.approx([0.4, 0.6, 0.36])


def test_classes_that_touch_stay_apart() -> None:
    scores = torch.zeros(2, 4, 4, 8)
    scores[0, ..., :4], scores[1, ..., 4:] = 0.7, 0.9
    found = find_components(scores)
    assert (found.labels.tolist(), found.positions_vox(2).tolist()) == ([0, 1], [[4, 4, 4], [4, 4, 12]])


def test_sorted_by_class_then_by_falling_mean_score() -> None:
    scores = torch.zeros(3, 3, 3, 12)
    for label, x, score in ((2, 0, 0.6), (0, 2, 0.7), (2, 4, 0.9), (0, 6, 0.8)):
        scores[label, 1, 1, x] = score
    scores[0, 1, 1, 8:10] = torch.tensor([0.55, 0.95])
    found = find_components(scores)
    assert found.labels.tolist() == [0, 0, 0, 2, 2]
    assert found.scores.tolist() == pytest.approx([0.8, 0.75, 0.7, 0.9, 0.6])
    assert found.cells_zyx[:, 2].tolist() == [6.0, 8.5, 2.0, 4.0, 0.0]


def test_small_and_faint_components_are_left_out() -> None:
    scores = torch.zeros(1, 1, 1, 16)
    for start, length, score in ((0, 1, 0.9), (2, 2, 0.8), (6, 3, 0.7), (11, 4, 0.6)):
        scores[..., start : start + length] = score
    assert find_components(scores).scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert find_components(scores, min_cells=3).scores.tolist() == pytest.approx([0.7, 0.6])
    assert find_components(scores, floor=0.65).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize("score", [0.0, 0.2])
def test_nothing_but_background_has_no_components(score: float) -> None:
    found = find_components(torch.full((2, 4, 5, 6), score))
    assert found.labels.shape == found.scores.shape == (0,)
    assert found.positions_vox(2).shape == (0, 3)


class Blobs(torch.nn.Module):
    """Logits of class and background at stride 1: dark voxels are particles."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, volume: Tensor) -> Tensor:
        return torch.cat([-self.scale * volume, self.scale * volume], dim=1)


def test_picking_with_components_finds_whole_particles_across_tiles() -> None:
    """A flat disc of equal scores: as peaks it would be placed at its first cell, and cut in two by tiles."""
    inside = ball((20, 40, 40), (10.0, 20.0, 20.0), 5.0)
    volume = torch.where(inside, -1.0, 1.0).numpy()
    particles, voxel = (Particle("ball", 50.0),), (10.0, 10.0, 10.0)
    found = {
        finder: pick(Picker(Blobs(), "softmax"), volume, particles, voxel, run="TS_1", window=Window(tile_vox=16), floor=0.1, finder=finder)
        for finder in ("peaks", "components")
    }
    assert found["components"].positions_zyx.tolist() == [[100.0, 200.0, 200.0]]
    assert found["components"].scores.tolist() == pytest.approx([1 / (1 + np.exp(-6))])
    assert found["peaks"].positions_zyx.tolist() != found["components"].positions_zyx.tolist()


def test_a_card_keeps_the_finder(tmp_path: Path) -> None:
    """And one that says nothing of it means peaks."""
    card = Card((Particle("x", 60.0),), 10.0, "dark", network={"name": "deepfinder"}, activation="softmax", finder="components")
    picker = card.build()
    save_checkpoint(tmp_path, card, picker)
    loaded, again = load_picker(tmp_path)
    assert again == read_card(tmp_path) == card
    assert (loaded.stride, again.finder) == (1, "components")
    with torch.no_grad():
        volume = torch.randn(1, 1, 10, 12, 8)
        assert torch.equal(loaded(volume), picker.eval()(volume))
    assert replace(card, finder="peaks") == Card(card.particles, 10.0, "dark", network={"name": "deepfinder"}, activation="softmax")
