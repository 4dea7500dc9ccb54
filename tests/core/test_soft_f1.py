"""Soft F1 against answers known by construction, and over the crops of a volume against one look at all of it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tomoray.soft_f1 import soft_counts, soft_counts_of, soft_f1
from tomoray.targets import ball_masks


def marked(cells: int, classes: int = 1) -> Tensor:
    """One crop of 64 cells, of which the first few are marked."""
    mask = torch.zeros(1, classes, 4, 4, 4)
    mask[:, :].flatten(2)[..., :cells] = 1
    return mask


@pytest.mark.parametrize(
    ("inside", "outside", "f1"),
    [(1.0, 0.0, 1.0), (0.5, 0.0, 2 / 3), (1.0, 1.0, 2 * 16 / (64 + 16)), (0.0, 0.3, 0.0), (0.8, 0.1, 2 * 12.8 / (12.8 + 4.8 + 16))],
)
def test_soft_f1_of_constant_scores(inside: float, outside: float, f1: float) -> None:
    """16 of 64 cells are marked. Planted: the mean score outside for the sum; recall over all cells."""
    mask = marked(16)
    counts = soft_counts(mask * inside + (1 - mask) * outside, mask)
    assert soft_f1(counts).item() == pytest.approx(f1)
    precision, recall = 16 * inside / (16 * inside + 48 * outside), inside
    assert soft_f1(counts).item() == pytest.approx(2 * precision * recall / (precision + recall) if inside else 0.0)


def test_crops_without_marks_do_not_count_and_sums_add_up() -> None:
    """Planted: false scores counted in crops that nobody looked at; a class judged in crops that show marks of another."""
    torch.manual_seed(0)
    scores, mask = torch.rand(4, 2, 4, 4, 4), torch.cat([marked(5, 2), marked(0, 2), marked(9, 2), marked(0, 2)])
    mask[2, 1] = 0
    together = soft_counts(scores, mask)
    apart = sum(soft_counts(scores[i : i + 1], mask[i : i + 1]) for i in range(4))
    torch.testing.assert_close(together, apart)
    assert together[:, 2].tolist() == [14, 5]
    assert together[1, 1].item() == pytest.approx(scores[0, 1].sum().item())
    everything = soft_counts(scores, torch.ones_like(scores))
    assert together[0, 1].item() < everything[0, 1].item() / 1.5
    assert soft_f1(soft_counts(scores, torch.zeros_like(mask))).isnan().all(), "nothing is marked, so nothing is known"


class Likeness(nn.Module):
    """A picker whose scores are the volume, at full resolution or averaged."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.gain = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, volume: Tensor) -> Tensor:
        self.seen += len(volume)
        return self.gain * nn.functional.avg_pool3d(volume, self.stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_crops_of_a_volume_are_those_that_something_reaches_into(stride: int) -> None:
    """Planted: a particle beyond a crop's face whose ball reaches in is forgotten there; crops without marks given to the network."""
    volume = np.random.default_rng(0).random((32, 48, 40)).astype(np.float32)
    points = np.array([[0, 8.0, 8.0, 8.0], [0, 15.0, 8.0, 8.0], [0, 24.5, 40.2, 30.9]])  # the second lies across a face
    picker, radii = Likeness(stride), [4 / stride]
    counts = soft_counts_of(picker, volume, points, radii, 16)
    padded = torch.zeros(32, 48, 48)
    padded[:, :, :40] = torch.from_numpy(volume)
    mask = ball_masks(torch.tensor(points, dtype=torch.float32)[None], radii, padded.shape, stride=stride)
    scores = nn.functional.avg_pool3d(padded[None, None], stride)
    edge = 16 // stride
    cubes = [t.unfold(2, edge, edge).unfold(3, edge, edge).unfold(4, edge, edge).reshape(-1, 1, edge, edge, edge) for t in (scores, mask)]
    torch.testing.assert_close(counts, soft_counts(*cubes), rtol=1e-5, atol=1e-5)
    assert counts[0, 2] == mask.sum()
    assert picker.seen < 18, "of 18 cubes"
    assert soft_counts_of(picker, volume, points[:0], radii, 16).tolist() == [[0, 0, 0]]
