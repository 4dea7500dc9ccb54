"""Risks of marked and unmarked cells against values worked out by hand, their limits, and the clip of the non-negative one."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor

from tomoray.losses import dice_loss
from tomoray.risks import bernoulli_kl, binomial_penalty, gamma_of, ge_binomial_risk, kl_risk, pn_risk, pu_risk

LOGITS, TARGET = torch.tensor([2.0, 0.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
LN_2 = math.log(2)


def noise(shape: tuple[int, ...] = (2, 4, 4, 4), marked: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and a target with a share of marked cells."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator), (torch.rand(shape, generator=generator) < marked).float()


@pytest.mark.parametrize("prior", [0.02, 0.1, 0.5])
def test_a_network_that_knows_nothing(prior: float) -> None:
    """Planted: a positive term without its prior; a background that counts marked cells too."""
    zero = torch.zeros(4)
    assert pn_risk(zero, TARGET, prior).item() == pytest.approx(LN_2)
    assert pu_risk(zero, TARGET, prior)[0].item() == pytest.approx(LN_2)
    assert kl_risk(zero, TARGET, prior, slack=0).item() == pytest.approx(LN_2)


def test_the_divergence_by_hand() -> None:
    """The code's and the paper's, which has the sides the other way round. Planted: `direction` mixed up; a slack of 1."""
    prior, half = torch.tensor(0.1), torch.tensor(0.5)
    assert bernoulli_kl(prior, half).item() == pytest.approx(0.36806, abs=1e-5)
    assert bernoulli_kl(prior, half, "paper").item() == pytest.approx(0.5108, abs=1e-4)
    for direction, expected in (("code", 3.6806), ("paper", 5.108)):
        assert kl_risk(torch.zeros(4), TARGET, 0.1, gamma=0, direction=direction).item() == pytest.approx(expected, abs=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["code", "paper"])
def test_the_divergence_is_least_where_both_agree(direction) -> None:
    """Planted: the entropy of the prior left out, so that agreement costs something; a sign lost in the second half."""
    for prior in (0.02, 0.3, 0.5, 0.9):
        shares = torch.linspace(0.01, 0.99, 99, requires_grad=True)
        values = bernoulli_kl(torch.tensor(prior), shares, direction)
        (slopes,) = torch.autograd.grad(values.sum(), shares)
        away = (shares - prior).abs() > 1e-3
        assert torch.equal(slopes[away].sign(), (shares - prior)[away].sign())
        assert (values[away] > 0).all()
        assert values[~away].tolist() == pytest.approx([0], abs=1e-6)
    torch.testing.assert_close(bernoulli_kl(torch.tensor(0.5), shares, direction), bernoulli_kl(torch.tensor(0.5), 1 - shares, direction))


@pytest.mark.parametrize(("prior", "risk", "background"), [(0.1, 0.713262, 0.672258), (0.3, 0.513262, 0.390251), (0.9, 0.455772, -0.455772)])
def test_the_toy_batch_and_its_flip(prior: float, risk: float, background: float) -> None:
    """At 0.9 the risk of background is negative, and only its negative is minimised.

    Planted: the clip as a `max` with 0, which leaves the positive term to be minimised; a flip that keeps the sign.
    """
    logits = LOGITS.clone().requires_grad_()
    found, clipped = pu_risk(logits, TARGET, prior)
    assert found.item() == pytest.approx(risk, abs=1e-6)
    assert clipped.item() is (background < 0)
    positive, negative, unlabelled = 0.410038, 1.410038, 0.813262
    assert background == pytest.approx(unlabelled - prior * negative, abs=1e-6)
    assert risk == pytest.approx(-background if background < 0 else prior * positive + background, abs=2e-6)
    (slope,) = torch.autograd.grad(found, logits)
    of_background = torch.cat([-prior * LOGITS[:2].sigmoid() / 2, LOGITS[2:].sigmoid() / 2])
    of_positives = torch.cat([-prior * (-LOGITS[:2]).sigmoid() / 2, torch.zeros(2)])
    torch.testing.assert_close(slope, -of_background if background < 0 else of_background + of_positives)
    assert kl_risk(LOGITS, TARGET, 0.5, gamma=0).item() == pytest.approx(0, abs=1e-6), "the mean score of the unmarked cells is a half"


def test_the_clip_is_that_of_kiryo_and_others() -> None:
    """Algorithm 1 of nnPU with gamma 1 and beta 0, its loss the logistic one. Planted: unmarked cells that hold the marked ones too."""
    met = set()
    for seed in range(20):
        logits, target = noise(seed=seed)
        marked, rest = logits[target == 1], logits[target == 0]
        for prior in (0.05, 0.5, 0.95):
            negative_part = F.softplus(rest).mean() - prior * F.softplus(marked).mean()
            expected = prior * F.softplus(-marked).mean() + negative_part if negative_part >= 0 else -negative_part
            found, clipped = pu_risk(logits, target, prior)
            assert found.item() == pytest.approx(expected.item(), rel=1e-5)
            met.add(bool(clipped))
    assert met == {True, False}


def test_without_clip_the_risk_is_linear_in_marked_cells() -> None:
    """l(s, 0) - l(s, 1) = s. Planted: gamma on one of the two terms only."""
    logits, target = noise()
    gamma = gamma_of(target, 1.0)
    found, clipped = pu_risk(logits, target, 0.1, gamma=gamma)
    assert not clipped
    expected = F.softplus(logits[target == 0]).mean() - 0.1 * gamma * logits[target == 1].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gamma_gives_each_marked_cell_a_weight() -> None:
    """Planted: the number of crops for that of cells."""
    logits, target = noise()
    marked = F.softplus(-logits[target == 1])
    with_gamma = kl_risk(logits, target, 0.1, gamma=gamma_of(target, 100.0), slack=0)
    assert with_gamma.item() == pytest.approx(100 / target.numel() * marked.sum().item(), rel=1e-5)


def test_where_all_are_marked_pn_is_the_mean_cross_entropy() -> None:
    logits, target = noise()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    assert pn_risk(logits, target, target.mean()).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("marked", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_batches_of_one_kind_and_sure_networks_stay_finite(marked: float, scale: float) -> None:
    """Planted: means over nothing; the logarithm of a score that is 0."""
    logits, _ = noise()
    target = torch.full_like(logits, marked)
    logits = (scale * logits).requires_grad_()
    for risk in (pn_risk, kl_risk, ge_binomial_risk, lambda *given, **options: pu_risk(*given, **options)[0]):
        loss = risk(logits, target, 0.1, gamma=gamma_of(target, 10.0))
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert slope.isfinite().all()
    assert pu_risk(logits, torch.zeros_like(logits), 0.1)[0].item() == pytest.approx(F.softplus(logits).mean().item(), rel=1e-5)


def all_numbers(scores: Tensor, prior: float) -> float:
    """The penalty by its definition: over all numbers of particles."""
    p = scores.double()
    k = torch.arange(len(p) + 1.0, dtype=torch.float64)
    q = (-((p.sum() - k) ** 2) / (2 * (p * (1 - p)).sum())).softmax(0)
    return -float((q * torch.from_numpy(binom.logpmf(k.numpy(), len(p), prior))).sum())


@pytest.mark.parametrize(("n", "prior"), [(4, 0.5), (50, 0.1), (100_000, 0.04)])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0])
def test_a_window_is_enough_for_the_binomial_penalty(n: int, prior: float, shift: float) -> None:
    """Planted: a window of two deviations."""
    scores = (torch.randn(n, generator=torch.Generator().manual_seed(n)) + shift).sigmoid()
    assert binomial_penalty(scores, prior).item() == pytest.approx(all_numbers(scores, prior), rel=1e-6)


def test_the_binomial_penalty_draws_the_mean_score_to_the_prior() -> None:
    """Planted: weights cut off from the scores, and so no slope at all."""
    for level, sign in ((0.02, -1), (0.3, 1)):
        scores = torch.full((500,), level, requires_grad=True)
        (slope,) = torch.autograd.grad(binomial_penalty(scores, 0.1), scores)
        assert (slope.sign() == sign).all()


def test_of_many_cells_the_binomial_penalty_looks_at_some() -> None:
    logits, target = torch.full((20, 20, 20), -2.0), torch.zeros(20, 20, 20)
    target[0, 0, 0] = 1
    expected = binomial_penalty(torch.full((1024,), 1 / (1 + math.exp(2))), 0.05)
    assert ge_binomial_risk(logits, target, 0.05, gamma=0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_soft_f1_of_the_authors_is_the_dice_overlap() -> None:
    """Their validation: precision is the share of scores in marked cells, recall the mean score there."""
    logits, target = noise()
    scores = logits.sigmoid()
    precision, recall = scores[target == 1].sum() / scores.sum(), scores[target == 1].mean()
    f1 = 2 * precision * recall / (precision + recall)
    assert 1 - dice_loss(scores[:, None], target[:, None], smooth=0).item() == pytest.approx(f1.item(), rel=1e-5)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"logits \(4,\) and target \(2,\) must have the same shape"):
        pn_risk(LOGITS, TARGET[:2], 0.1)
