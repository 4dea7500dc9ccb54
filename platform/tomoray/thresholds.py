"""Which candidates to keep: per-class score thresholds, chosen exactly on tomograms whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tomoray.threshold_curves import OBJECTIVES, HitTable, Objective, hit_tables
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

Regularise = Literal["none", "bootstrap", "leave_one_out"]

DEFAULT_THRESHOLD = 0.5  # where the data do not decide


@dataclass(frozen=True)
class Threshold:
    """The threshold of one class and what it rests on.

    Attributes
    ----------
    threshold
        Candidates with this score or a higher one are picks.
    value
        The objective there, on the tomograms it was chosen on (too good for others); NaN for a class without truth.
    truths, candidates
        How many particles and candidates it was chosen from.
    note
        Why the threshold is the default; empty where it was chosen.
    expected
        What to expect of other tomograms: the objective where every tomogram has the threshold that the others chose, counts summed.
        None without regularisation, where there is only one tomogram, and for a default.
    """

    threshold: float
    value: float
    truths: int
    candidates: int
    note: str = ""
    expected: float | None = None

    @property
    def is_default(self) -> bool:
        """Whether the data did not decide."""
        return bool(self.note)


def choose_thresholds(
    truth: Sequence[Picks],
    candidates: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    objective: Objective | str = "f1",
    regularise: Regularise = "none",
    expected: Mapping[str, float] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Threshold]:
    """Return for every class the threshold with the best F over the given tomograms, summed over all of them.

    Exact, not a grid: F changes only at scores that occur. `value` is what `scoring.f1_score` ("f1") or `scoring.czii_score`
    ("czii", beta 4, many-to-many) says of the class after `apply_thresholds`; an `Objective` says any other F. A best F holds for a
    range of thresholds; we take the middle of the widest, since a threshold at a score is the one most fitted to these very tomograms:
    on CZII, scores on the seven tomograms that thresholds were tuned on were 0.02 to 0.06 above those elsewhere. Use tomograms
    that training has not seen.

    `bootstrap` takes the mean of the best thresholds of resampled sets of tomograms: where F peaks jumps from set to set, its mean
    less (bagging, Breiman 1996). `leave_one_out` takes the mean over the sets that lack one tomogram. Both say in `expected` what to
    promise, and that is what they are for: on simulated splits the promise of the plain choice was 0.013 too high and theirs 0.003 to 0.005 too
    low, while what other tomograms scored changed by -0.001 to 0.002 (`tests/benchmarks/threshold_regularisation.py`).

    Where only some particles are marked, `expected` says class -> how many lie in one tomogram. A candidate that finds none of the marked
    ones may then be right: see `beta_of_marked`. Precision is estimated from what is found of the marked, so `value` is an estimate too.

    Raises
    ------
    ValueError
        As `scoring.pair_runs`; or if the objective or the way to regularise is unknown.
    """
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"choose_thresholds: objective {objective!r} is unknown; it must be 'f1' or 'czii': correct it, or give an Objective")
        objective = OBJECTIVES[objective]
    if regularise not in get_args(Regularise):
        known = ", ".join(map(repr, get_args(Regularise)))
        raise ValueError(f"choose_thresholds: regularise {regularise!r} is unknown; it must be one of {known}: correct it")
    tables, chosen = hit_tables(truth, candidates, particles, objective), dict[str, Threshold]()
    for name, table in tables.items():
        beta, scale = beta_of_marked(objective.beta, int(table.truths.sum()), (expected or {}).get(name, 0.0) * len(table.truths))
        chosen[name] = _scaled(choose_threshold(table, beta, regularise, resamples=resamples, seed=seed), scale)
    return chosen


def beta_of_marked(beta: float, marked: int, number: float) -> tuple[float, float]:
    """Return with which beta, and times what, the F of some marked particles is an estimate of F_beta of all `number` of them.

    If marked ones are like the others, `tp` found of `m` marked stand for `N tp / m` found of `N`, and F_beta of these is
    `(1 + b^2) (N tp / m) / (b^2 N + picks)`: but for a factor the F of the marked ones alone with beta `b sqrt(N / m)`. Who clicked one
    particle in nine chooses thresholds for recall three times as important, and does not lose the eight others to a high threshold.
    """
    if not marked or number <= marked:
        return beta, 1.0
    share = number / marked
    return beta * share**0.5, share * (1 + beta**2) / (1 + share * beta**2)


def _scaled(choice: Threshold, scale: float) -> Threshold:
    expected = None if choice.expected is None else scale * choice.expected
    return replace(choice, value=scale * choice.value, expected=expected)


def choose_threshold(table: HitTable, beta: float = 1.0, regularise: Regularise = "none", *, resamples: int = 200, seed: int = 0) -> Threshold:
    """Return the threshold of one class, as `choose_thresholds` does."""
    truths, candidates, runs = int(table.truths.sum()), len(table.scores), len(table.truths)
    if not truths or not table.gains.any():
        note = "no truth" if not truths else "no candidate lies near a truth" if candidates else "no candidates"
        return Threshold(DEFAULT_THRESHOLD, 0.0 if truths else float("nan"), truths, candidates, note)
    if regularise == "none" or runs == 1:
        threshold, value = (float(best[0]) for best in table.optima(np.ones((1, runs), dtype=np.int64), beta))
        return Threshold(threshold, value, truths, candidates)
    weights = 1 - np.eye(runs, dtype=np.int64)
    if regularise == "bootstrap":
        weights = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    optima, _ = table.optima(weights, beta)
    threshold = float(_means(optima, np.ones((len(optima), 1), dtype=np.bool_))[0])
    others = _means(optima, weights == 0)  # for each tomogram, of the sets without it
    value = table.held_out(np.full(runs, threshold), beta)
    return Threshold(threshold, value, truths, candidates, expected=table.held_out(others, beta))


def apply_thresholds(candidates: Picks, thresholds: Mapping[str, float]) -> Picks:
    """Return the candidates whose score reaches the threshold of their class.

    Raises
    ------
    ValueError
        If a class has no threshold.
    """
    missing = sorted(set(candidates.names.tolist()) - set(thresholds))
    if missing:
        raise ValueError(
            f"candidates of {candidates.run!r}: no threshold for {', '.join(map(repr, missing))}; every class must have one, there are "
            f"{', '.join(thresholds) or 'none'}: add it, or remove the class from the candidates"
        )
    needed = np.array([thresholds[name] for name in candidates.names.tolist()], dtype=np.float64)
    return candidates[candidates.scores >= needed]


def _means(optima: NDArray[np.float64], take: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for every column of `take`, `(sets, columns)`, the mean of the optima it takes; the default where none of them is a number."""
    usable = take & np.isfinite(optima)[:, None]
    lowest = np.nanmin(optima, initial=np.inf)  # what is added to it is 0 where all agree, and no candidate is lost to rounding
    sums, counts = np.where(np.isfinite(optima), optima - lowest, 0.0) @ usable, usable.sum(axis=0)
    means = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return np.where(counts > 0, lowest + means, DEFAULT_THRESHOLD)
