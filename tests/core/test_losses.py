"""The reweighted squared error against values worked out by hand."""

import pytest
import torch
from torch import Tensor

from tomoray.losses import reweighted_mse

ONE_HOT = torch.zeros(8)
ONE_HOT[3] = 1


def heatmap(values: Tensor | list[float]) -> Tensor:
    """One crop and one class, its cells in a row."""
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, 1, 1, -1)


@pytest.mark.parametrize(
    ("target", "scores", "expected"),
    [
        (ONE_HOT, ONE_HOT, 0.0),
        (ONE_HOT, torch.zeros(8), 1.0),
        (ONE_HOT, torch.ones(8), 4.0),
        (ONE_HOT, torch.full((8,), 0.5), 1.25),
        (ONE_HOT, torch.full((8,), 0.2), 0.8),
        (ONE_HOT, torch.full((8,), 0.7), 0.3**2 + 4 * 0.7**2),
        (torch.zeros(8), torch.full((8,), 0.1), 0.04),
        (torch.ones(8), torch.zeros(8), 1.0),
        (torch.full((8,), 0.5), torch.zeros(8), 1.25),
        ([1, 0.5, 0.25, 0], [0.8, 0.4, 0.4, 0.1], 0.0855952),
    ],
)
def test_values_worked_out_by_hand(target: Tensor, scores: Tensor, expected: float) -> None:
    assert reweighted_mse(heatmap(scores), heatmap(target)).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_best_constant_is_one_fifth() -> None:
    """lambda / (1 + lambda) at 1 / (1 + lambda): background weighs four times as much as particles."""
    c = torch.tensor(0.2, requires_grad=True)
    loss = reweighted_mse(c.expand(1, 1, 2, 2, 2), ONE_HOT.reshape(1, 1, 2, 2, 2))
    (slope,) = torch.autograd.grad(loss, c)
    assert loss.item() == pytest.approx(0.8, rel=1e-5)
    assert slope.item() == pytest.approx(0, abs=1e-5)


def test_background_weight_is_lambda() -> None:
    assert reweighted_mse(heatmap(torch.ones(8)), heatmap(ONE_HOT), background_weight=1.0).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("reduce", ["joint", "per_class"])
@pytest.mark.parametrize("axis", [0, 2, 4])
def test_more_of_the_same_is_worth_the_same(reduce, axis) -> None:
    torch.manual_seed(0)
    scores, target = torch.rand(2, 3, 4, 4, 4), torch.rand(2, 3, 4, 4, 4)
    once = reweighted_mse(scores, target, reduce=reduce)
    twice = reweighted_mse(torch.cat([scores] * 2, axis), torch.cat([target] * 2, axis), reduce=reduce)
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


@pytest.mark.parametrize("reduce", ["joint", "per_class"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_crops_without_particles_or_background_give_a_finite_loss_and_slope(reduce, value) -> None:
    scores = torch.full((2, 3, 2, 2, 2), 0.3, requires_grad=True)
    loss = reweighted_mse(scores, torch.full_like(scores, value), reduce=reduce)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad * (0.3 - value) > 0).all()  # towards the target


def test_per_class_is_the_mean_over_classes_and_joint_favours_the_large() -> None:
    target = torch.zeros(2, 2, 4, 4, 4)
    target[0, 0, 0, 0, 0] = 1
    target[:, 1, :2] = 1
    scores = torch.cat([torch.zeros(2, 1, 4, 4, 4), target[:, 1:]], dim=1)  # the small class is missed, the large one found
    each = [reweighted_mse(scores[:, c : c + 1], target[:, c : c + 1]).item() for c in range(2)]
    assert each == pytest.approx([1, 0], abs=1e-5)
    assert reweighted_mse(scores, target, reduce="per_class").item() == pytest.approx(0.5, rel=1e-4)
    assert reweighted_mse(scores, target).item() == pytest.approx(1 / 65, rel=1e-4)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"scores \(1, 2, 4, 4, 4\) and target \(1, 1, 4, 4, 4\) must have the same shape"):
        reweighted_mse(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))


@pytest.mark.parametrize("reduce", ["joint", "per_class"])
def test_cells_that_are_not_known_do_not_count(reduce) -> None:
    """The loss of what is known alone, whatever stands elsewhere. Planted: unknown cells counted among the background's."""
    torch.manual_seed(0)
    scores, target = torch.rand(2, 3, 2, 2, 8, requires_grad=True), torch.rand(2, 3, 2, 2, 8)
    known = torch.zeros(2, 1, 2, 2, 8)
    known[..., :5] = 1
    odd = torch.where(known > 0, target, -1.0)
    loss = reweighted_mse(scores, odd, reduce=reduce, known=known)
    assert loss.item() == pytest.approx(reweighted_mse(scores[..., :5], target[..., :5], reduce=reduce).item(), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, scores)
    assert not slope[..., 5:].any()
    assert slope[..., :5].all()
    nothing = reweighted_mse(scores, odd, reduce=reduce, known=torch.zeros_like(known))
    assert nothing.item() == 0
