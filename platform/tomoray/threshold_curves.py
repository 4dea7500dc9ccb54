"""What every threshold would count, tomogram by tomogram: from this all choices of thresholds follow without matching again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from tomoray.matching import pair_runs
from tomoray.scoring import f_beta
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

Matching = Literal["one_to_one", "many_to_many"]

SAME = 1e-12  # values of the objective closer than this are one plateau


@dataclass(frozen=True)
class Objective:
    """What thresholds maximise: F_beta of counts summed over tomograms.

    Attributes
    ----------
    beta
        How many times recall counts as much as precision.
    matching
        `one_to_one` as `scoring.f1_score` counts, `many_to_many` as `scoring.czii_score`.
    radius_fraction
        How near a candidate must be to a particle to find it, in radii of the class, inclusive.
    """

    beta: float = 1.0
    matching: Matching = "one_to_one"
    radius_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < np.inf or not 0 < self.radius_fraction < np.inf:
            raise ValueError(f"objective: beta {self.beta} and radius_fraction {self.radius_fraction}; both must be positive numbers: correct them")
        if self.matching not in ("one_to_one", "many_to_many"):
            raise ValueError(f"objective: matching {self.matching!r} is unknown; it must be 'one_to_one' or 'many_to_many': correct it")


OBJECTIVES: Mapping[str, Objective] = {"f1": Objective(), "czii": Objective(4.0, "many_to_many")}


@dataclass(frozen=True)
class Curves:
    """Precision, recall and F_beta of one class against its threshold, counts summed over tomograms.

    Attributes
    ----------
    thresholds
        `(m,)` every score that occurs, descending: at each, candidates that score as much or more are picks.
    precision, recall, f_beta
        `(m,)`; recall and F are NaN for a class without truth. Many-to-many precision can exceed 1, as `scoring.czii_score` says.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f_beta: NDArray[np.float64]


@dataclass(frozen=True)
class HitTable:
    """The candidates of one class in all tomograms, the highest score first, and what each adds to the counts.

    Attributes
    ----------
    scores
        `(n,)`, descending.
    runs
        `(n,)` number of the tomogram.
    gains
        `(n,)` how many particles the candidate finds that those above it have not: 0 or 1 one-to-one, any number many-to-many.
    truths
        `(runs,)` particles of each tomogram.
    """

    scores: NDArray[np.float64]
    runs: NDArray[np.int64]
    gains: NDArray[np.int64]
    truths: NDArray[np.int64]

    @staticmethod
    def of(pairs: Sequence[tuple[Picks, Picks]], limit_angstrom: float, matching: Matching) -> HitTable:
        """Return the table of (truth, candidates) of one class, a pair per tomogram, as `scoring.pair_runs` makes them."""
        scores = np.concatenate([candidates.scores for _, candidates in pairs])
        runs = np.repeat(np.arange(len(pairs)), [len(candidates) for _, candidates in pairs])
        gains = np.concatenate([_gains(true, candidates, limit_angstrom, matching) for true, candidates in pairs])
        order = np.argsort(-scores, kind="stable")
        return HitTable(scores[order], runs[order], gains[order], np.array([len(true) for true, _ in pairs]))

    def curves(self, beta: float) -> Curves:
        """Return precision, recall and F at every score that occurs."""
        last = np.flatnonzero(np.diff(self.scores, append=-np.inf))  # of candidates with equal scores
        tp, picks, truths = np.cumsum(self.gains)[last], last + 1, self.truths.sum()
        recall = np.divide(tp, truths, out=np.full(len(last), np.nan), where=truths > 0)
        return Curves(self.scores[last], tp / picks, recall, f_beta(tp, truths, picks, beta))

    def optima(self, weights: NDArray[np.int64], beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the best threshold and its F for every row of `weights`, `(sets, runs)`: how often each tomogram counts.

        Exact, and both `(sets,)`; NaN for a set in which nothing is found. F rises only where a candidate finds something, so other
        scores need not be tried. The best F holds for a range of thresholds, down to the next candidate; the widest is halved.
        """
        levels = np.unique(-self.scores[self.gains > 0])
        ends = np.searchsorted(-self.scores, levels, side="right")  # this many candidates reach each level
        count = ends[-1] if len(ends) else 0
        cells = self.runs[:count], np.searchsorted(ends, np.arange(count), side="right")
        gains, picks = (csr_array((new, cells), shape=(len(self.truths), len(ends))) for new in (self.gains[:count], np.ones(count, dtype=np.int64)))
        thresholds, values = np.full((2, len(weights)), np.nan)
        for row in range(len(weights)) if count else ():
            gained, picked = weights[row] @ gains, weights[row] @ picks
            curve = f_beta(gained.cumsum(), weights[row] @ self.truths, picked.cumsum(), beta)
            best = np.flatnonzero((curve >= curve.max() - SAME) & (gained > 0))
            if len(best):
                thresholds[row], values[row] = self._middle(ends[best], weights[row]), curve.max()
        return thresholds, values

    def held_out(self, thresholds: NDArray[np.float64], beta: float) -> float:
        """Return F with a threshold of its own for every tomogram, `(runs,)`, counts summed."""
        picked = self.scores >= thresholds[self.runs]
        return float(f_beta(self.gains[picked].sum(), self.truths.sum(), picked.sum(), beta))

    def _middle(self, ends: NDArray[np.intp], weights: NDArray[np.int64]) -> float:
        """Return the middle of the widest range of thresholds that keep one of these numbers of candidates, of tomograms that count.

        Below the lowest candidate nothing is known, so a range with none below it ends at that score.
        """
        ranges: list[tuple[float, float]] = []
        for end in ends.tolist():
            below, top = end, float(self.scores[end - 1])
            while below < len(self.scores) and not weights[self.runs[below]]:
                below += 1
            low = float(self.scores[below]) if below < len(self.scores) else top
            ranges.append((ranges.pop()[0] if ranges and ranges[-1][1] == top else top, low))  # those that touch are one
        high, low = max(ranges, key=lambda range_: range_[0] - range_[1])
        middle = low + (high - low) / 2
        return middle if middle > low else high  # neighbouring floats have no middle


def hit_tables(
    truth: Sequence[Picks], candidates: Sequence[Picks], particles: Sequence[Particle] = CZII_PARTICLES, objective: Objective = OBJECTIVES["f1"]
) -> dict[str, HitTable]:
    """Return class -> its table, over the tomograms of the truth.

    Raises
    ------
    ValueError
        As `scoring.pair_runs`.
    """
    pairs = pair_runs(truth, candidates, particles)
    limits = {p.name: objective.radius_fraction * p.radius_angstrom for p in particles}
    return {name: HitTable.of([(t.of(name), c.of(name)) for t, c in pairs], limit, objective.matching) for name, limit in limits.items()}


def threshold_curves(
    truth: Sequence[Picks], candidates: Sequence[Picks], particles: Sequence[Particle] = CZII_PARTICLES, objective: Objective = OBJECTIVES["f1"]
) -> dict[str, Curves]:
    """Return class -> precision, recall and F against its threshold, over the tomograms of the truth.

    Raises
    ------
    ValueError
        As `scoring.pair_runs`.
    """
    return {name: table.curves(objective.beta) for name, table in hit_tables(truth, candidates, particles, objective).items()}


def _gains(truth: Picks, candidates: Picks, limit_angstrom: float, matching: Matching) -> NDArray[np.int64]:
    gains = np.zeros(len(candidates), dtype=np.int64)
    if not len(truth) or not len(candidates):
        return gains
    order = np.argsort(-candidates.scores, kind="stable")
    # columns reversed as in `scoring`, so that a distance at the limit rounds alike
    axes = slice(None, None, -1) if matching == "many_to_many" else slice(None)
    trees = KDTree(truth.positions_zyx[:, axes]), KDTree(candidates.positions_zyx[order][:, axes])
    near = trees[0].sparse_distance_matrix(trees[1], limit_angstrom, output_type="ndarray")
    if matching == "many_to_many":
        first = np.full(len(truth), len(order))
        np.minimum.at(first, near["i"], near["j"])
        found = first[first < len(order)]
    else:
        found = _growing(near["i"], near["j"])
    np.add.at(gains, order[found], 1)
    return gains


def _growing(truths: NDArray[np.intp], candidates: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the candidates that make the largest one-to-one matching grow, of those near a truth, numbered by descending score.

    The matching stays the largest possible at every step, since a larger one must contain an augmenting path that begins at the
    newcomer (Berge 1957); so it counts what `match_one_to_one` counts.
    """
    near: dict[int, list[int]] = defaultdict(list)
    order = np.argsort(candidates, kind="stable")
    for candidate, truth in zip(candidates[order].tolist(), truths[order].tolist(), strict=True):
        near[candidate].append(truth)
    owner: dict[int, int] = {}  # truth -> candidate
    return np.array([candidate for candidate in near if _augment(candidate, near, owner)], dtype=np.intp)


def _augment(newcomer: int, near: Mapping[int, Sequence[int]], owner: dict[int, int]) -> bool:
    """Give the newcomer a truth, moving earlier owners to other truths where that frees one; return whether it worked."""
    reached_from: dict[int, int] = {}  # truth -> the candidate that wants it
    held = {newcomer: -1}  # candidate -> the truth that it would give up
    waiting = [newcomer]
    while waiting:
        candidate = waiting.pop()
        for truth in near[candidate]:
            if truth in reached_from:
                continue
            reached_from[truth] = candidate
            if truth in owner:
                held[owner[truth]] = truth
                waiting.append(owner[truth])
                continue
            while truth >= 0:
                owner[truth] = reached_from[truth]
                truth = held[owner[truth]]
            return True
    return False
