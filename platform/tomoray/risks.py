"""Risks of learning from a few marked particles, where what is not marked may be a particle all the same, as pure functions of tensors.

Uddin et al. 2024 (TomoPicker, bioRxiv 2024.11.04.620735), after Bepler et al. 2019 (Topaz) and Kiryo et al. 2017 (nnPU). Each function takes the
logits of one class and a target of the same shape, 1 in marked cells (P) and 0 in all others (U), and takes means over the cells of the
whole batch. The loss of a cell is the logistic one, `l(s, 1) = ln(1 + exp(-s))` and `l(s, 0) = l(s, 1) + s`. A batch without marked cells
has no terms of them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["code", "paper"]

BINOMIAL_CELLS = 1024  # of a batch that the binomial penalty looks at; Topaz looks at 256, and of all cells the penalty would drown the rest
WINDOW_SD = 6.0  # what lies further from the mean of a Gaussian weighs nothing
TINY = 1e-30


def gamma_of(target: Tensor, weight: float) -> Tensor:
    """Return `weight * |P| / N`, with which each marked cell weighs `weight` others: `gamma * E_P[l]` is `weight / N * sum_P l`."""
    return weight * target.mean()


def pn_risk(logits: Tensor, target: Tensor, prior: float | Tensor, *, gamma: float | Tensor = 1.0) -> Tensor:
    """Return `pi g E_P[l(s, 1)] + (1 - pi) E_U[l(s, 0)]`: what is not marked counts as background (TomoPicker, eq. 2).

    With `gamma` 1 and the share of marked cells for `prior` it is the mean cross-entropy.
    """
    positive, _, unlabelled = _terms(logits, target)
    return prior * gamma * positive + (1 - prior) * unlabelled


def pu_risk(logits: Tensor, target: Tensor, prior: float, *, gamma: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Return the non-negative risk of positive and unlabelled cells, and whether its clip is active (Kiryo et al. 2017, algorithm 1).

    The risk of background, `Q = E_U[l(s, 0)] - pi g E_P[l(s, 0)]`, cannot be negative. While it is not, the risk is `pi g E_P[l(s, 1)] + Q`,
    which equals `E_U[l(s, 0)] - pi g E_P[s]`; where it is, the network has learned the marked particles by heart, and `-Q` alone
    drives it back.
    """
    positive, negative, unlabelled = _terms(logits, target)
    background = unlabelled - prior * gamma * negative
    clipped = background < 0
    return torch.where(clipped, -background, prior * gamma * positive + background), clipped.detach()


def kl_risk(
    logits: Tensor, target: Tensor, prior: float, *, gamma: float | Tensor = 1.0, slack: float = 10.0, direction: Direction = "code"
) -> Tensor:
    """Return `g E_P[l(s, 1)] + slack * KL(pi || p)`, where `p` is the mean score of the unmarked cells and `prior` what it should be.

    TomoPicker's equation 6 has the two sides of the divergence the other way round than its code; `direction` says which.
    """
    positive, _, _ = _terms(logits, target)
    divergence = bernoulli_kl(logits.new_tensor(prior), _mean(logits.sigmoid(), 1 - target), direction)
    return gamma * positive + slack * divergence


def bernoulli_kl(prior: Tensor, share: Tensor, direction: Direction = "code") -> Tensor:
    """Return the divergence of two chances: `KL(prior || share)` as the code has it, `KL(share || prior)` as the paper has it."""
    p, q = (prior, share) if direction == "code" else (share, prior)
    return torch.xlogy(p, p) - torch.xlogy(p, q.clamp_min(TINY)) + torch.xlogy(1 - p, 1 - p) - torch.xlogy(1 - p, (1 - q).clamp_min(TINY))


def ge_binomial_risk(logits: Tensor, target: Tensor, prior: float, *, gamma: float | Tensor = 1.0, slack: float = 1.0) -> Tensor:
    """Return `g E_P[l(s, 1)] + slack * penalty`, with `binomial_penalty` over unmarked cells, some of them drawn at random where many.

    Bepler et al. 2019 call it GE-binomial; unlike the divergence it leaves room for chance.
    """
    positive, _, _ = _terms(logits, target)
    scores = logits[target < 0.5].sigmoid()
    if len(scores) > BINOMIAL_CELLS:
        scores = scores[torch.randint(len(scores), (BINOMIAL_CELLS,), device=scores.device)]
    return gamma * positive + slack * binomial_penalty(scores, prior).to(positive.dtype)


def binomial_penalty(scores: Tensor, prior: float) -> Tensor:
    """Return `-sum_k q_k ln Binom(k; n, pi)` of `n` scores: how unlikely the number of particles is that they stand for.

    That number is normal, `q = softmax(-(mu - k)^2 / (2 var))` with `mu = sum p` and `var = sum p (1 - p)`, so that only numbers within six
    standard deviations of `mu` are summed over. In float64, since the terms cancel.
    """
    n, p = len(scores), scores.double()
    mean, variance = p.sum(), (p * (1 - p)).sum() + 1e-10
    reach = math.ceil(WINDOW_SD * math.sqrt(variance.item())) + 1
    middle = round(mean.item())
    k = torch.arange(max(0, middle - reach), min(n, middle + reach) + 1, device=p.device, dtype=p.dtype)
    weights = (-((mean - k) ** 2) / (2 * variance)).softmax(0)
    choices = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return -(weights * (choices + k * math.log(prior) + (n - k) * math.log1p(-prior))).sum()


def _terms(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `E_P[l(s, 1)]`, `E_P[l(s, 0)]` and `E_U[l(s, 0)]`."""
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must have the same shape")
    negative = F.softplus(logits)
    return _mean(F.softplus(-logits), target), _mean(negative, target), _mean(negative, 1 - target)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean, 0 where nothing weighs."""
    return (values * weights).sum() / weights.sum().clamp_min(TINY)
