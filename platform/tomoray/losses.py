"""Loss functions, as pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduce = Literal["joint", "per_class"]


def reweighted_mse(
    scores: Tensor, target: Tensor, *, background_weight: float = 4.0, reduce: Reduce = "joint", known: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Return the squared error of heat maps, with the target as the weight of foreground and its complement as that of background.

    `sum(Y (Y - S)^2) / sum(Y) + w * sum((1 - Y)(Y - S)^2) / sum(1 - Y)` (Lin et al. 2025, arXiv 2510.22454, with `w` = 4; the
    "balanced loss" of the fourth place of the CZII challenge with `w` = 1). For a constant score `c` against ones and zeros it is
    `(1 - c)^2 + w c^2`.

    Parameters
    ----------
    scores, target
        `(b, classes, d, h, w)` in [0, 1].
    background_weight
        `w` above.
    reduce
        `joint` sums over batch, classes and cells together, as in the paper, so that a large particle weighs more than a small one;
        `per_class` forms the ratios for every class and averages them.
    known
        Which cells count, 1 or 0, of a shape that can be stretched to the target's; all by default.
    """
    if scores.shape != target.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and target {tuple(target.shape)} must have the same shape")
    over = (0, 2, 3, 4) if reduce == "per_class" else (0, 1, 2, 3, 4)
    cells: Tensor | float = target.numel() / (target.shape[1] if reduce == "per_class" else 1)
    if known is not None:
        known = known.to(target).expand_as(target)
        scores, target, cells = scores * known, target * known, known.sum(over, keepdim=True)
    mass = target.sum(over, keepdim=True)
    weight = torch.lerp(background_weight / (cells - mass + eps), 1 / (mass + eps), target)  # of Y and of 1 - Y, in one pass
    return (weight * (target - scores).square()).sum() / mass.numel()


def weighted_cross_entropy(logits: Tensor, target: Tensor, *, class_weight: float = 256.0, background_weight: float = 1.0) -> Tensor:
    """Return the cross-entropy of classes and background, the last channel, with a particle's cell worth `class_weight` others.

    `sum_c w_c mean(-Y_c log softmax(logits)_c)`, the mean over batch and cells (first place of the CZII challenge, segmentation half, with
    256 or 64). The weights are not normalised: all logits 0, `n` channels and a share `f` of particles give `(w f + 1 - f) ln n`.

    Parameters
    ----------
    logits, target
        `(b, classes + 1, d, h, w)`; targets may be soft and sum to 1 over the channels.
    """
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must have the same shape, background last")
    terms = -(target * logits.log_softmax(dim=1)).mean((0, 2, 3, 4))
    return class_weight * terms[:-1].sum() + background_weight * terms[-1]


def dice_loss(scores: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return 1 less the mean over channels of the Dice overlap, `(2 sum(S Y) + smooth) / (sum(S) + sum(Y) + smooth)`.

    Sums run over batch and cells, so that a class which one crop lacks is no riddle (Milletari et al. 2016, arXiv 1606.04797, with the sum
    instead of squares, as in DeepFinder, Moebel et al. 2021). An absent class that no cell claims costs nothing.

    Parameters
    ----------
    scores, target
        `(b, channels, d, h, w)` in [0, 1].
    """
    if scores.shape != target.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and target {tuple(target.shape)} must have the same shape")
    over = (0, 2, 3, 4)
    overlap = (2 * (scores * target).sum(over) + smooth) / (scores.sum(over) + target.sum(over) + smooth)
    return 1 - overlap.mean()


def without_weights(probabilities: Tensor, *, class_weight: float = 256.0, background_weight: float = 1.0) -> Tensor:
    """Return the target `(b, classes + 1, ...)` of `weighted_cross_entropy` whose best answer these probabilities are: `q_c ~ p_c / w_c`.

    A network that learns with weights exaggerates: where a particle lies with a chance `q` it says `w q / (w q + 1 - q)`. A student that
    takes this for the truth exaggerates it anew, and its teacher follows, until all is particles.
    """
    weights = probabilities.new_full((probabilities.shape[1], 1, 1, 1), class_weight)
    weights[-1] = background_weight
    shares = probabilities / weights
    return shares / shares.sum(1, keepdim=True)


def sigmoid_ramp(progress: float, length: float) -> float:
    """Return the weight `exp(-5 (1 - progress / length)^2)`, which rises to 1 at `length` (Laine & Aila 2017; Tarvainen & Valpola 2017)."""
    return math.exp(-5 * (1 - min(progress / length, 1.0)) ** 2) if length > 0 else 1.0
