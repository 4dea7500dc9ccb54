"""Loss functions, as pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Reduce = Literal["joint", "per_class"]


def reweighted_mse(scores: Tensor, target: Tensor, *, background_weight: float = 4.0, reduce: Reduce = "joint", eps: float = 1e-6) -> Tensor:
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
    """
    if scores.shape != target.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and target {tuple(target.shape)} must have the same shape")
    over = (0, 2, 3, 4) if reduce == "per_class" else (0, 1, 2, 3, 4)
    error = (target - scores).square()
    foreground = (target * error).sum(over) / (target.sum(over) + eps)
    background = ((1 - target) * error).sum(over) / ((1 - target).sum(over) + eps)
    return (foreground + background_weight * background).mean()


def sigmoid_ramp(progress: float, length: float) -> float:
    """Return the weight `exp(-5 (1 - progress / length)^2)`, which rises to 1 at `length` (Laine & Aila 2017; Tarvainen & Valpola 2017)."""
    return math.exp(-5 * (1 - min(progress / length, 1.0)) ** 2) if length > 0 else 1.0
