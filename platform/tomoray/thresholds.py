"""Which candidates to keep: per-class score thresholds, chosen exactly on tomograms whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tomoray.scoring import f_beta, pair_runs
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

Objective = Literal["f1", "czii"]

DEFAULT_THRESHOLD = 0.5  # where the data do not decide
CZII_BETA = 4.0
SAME = 1e-12  # values of the objective closer than this are one plateau


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
    """

    threshold: float
    value: float
    truths: int
    candidates: int
    note: str = ""

    @property
    def is_default(self) -> bool:
        """Whether the data did not decide."""
        return bool(self.note)


def choose_thresholds(
    truth: Sequence[Picks],
    candidates: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    objective: Objective = "f1",
    radius_fraction: float = 0.5,
) -> dict[str, Threshold]:
    """Return for every class the threshold with the best F over the given tomograms, summed over all of them.

    Exact, not a grid: F changes only at scores that occur. `value` is what `scoring.f1_score` ("f1") or `scoring.czii_score`
    ("czii", beta 4, many-to-many) says of the class after `apply_thresholds`. A best F holds for a range of thresholds; we take
    the middle of the widest, since a threshold at a score is the one most fitted to these very tomograms: on CZII,
    thresholds tuned on seven tomograms lost 0.05 and more elsewhere. Use tomograms that training has not seen.

    Raises
    ------
    ValueError
        As `scoring.pair_runs`; or if the objective is unknown.
    """
    if objective not in ("f1", "czii"):
        raise ValueError(f"choose_thresholds: objective {objective!r} is unknown; it must be 'f1' or 'czii': correct it")
    pairs = pair_runs(truth, candidates, particles)
    return {p.name: _choose(p, [(t.of(p.name), c.of(p.name)) for t, c in pairs], objective, radius_fraction) for p in particles}


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


def _choose(particle: Particle, pairs: Sequence[tuple[Picks, Picks]], objective: Objective, radius_fraction: float) -> Threshold:
    truths, scores = sum(len(true) for true, _ in pairs), np.sort(np.concatenate([c.scores for _, c in pairs]))
    if not truths or not len(scores):
        note = "no truth" if not truths else "no candidates"
        return Threshold(DEFAULT_THRESHOLD, 0.0 if truths else float("nan"), truths, len(scores), note)
    find = _hits_one_to_one if objective == "f1" else _hits_czii
    hits = [score for true, c in pairs for score in find(true, c, radius_fraction * particle.radius_angstrom)]
    if not hits:
        return Threshold(DEFAULT_THRESHOLD, 0.0, truths, len(scores), "no candidate lies near a truth")
    levels, counts = np.unique(scores, return_counts=True)
    found = np.bincount(np.searchsorted(levels, hits), minlength=len(levels))
    levels, tp, picks = levels[::-1], np.cumsum(found[::-1]), np.cumsum(counts[::-1])  # with the threshold at each score, from the highest
    curve = f_beta(tp, np.full(len(tp), truths), picks, 1.0 if objective == "f1" else CZII_BETA)
    return Threshold(_middle(levels, curve), float(curve.max()), truths, len(scores))


def _middle(levels: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """Return the middle of the widest range of thresholds where the curve is at its maximum; `levels` descend."""
    best = np.flatnonzero(curve >= curve.max() - SAME)
    plateaus = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    below = np.append(levels[1:], levels[-1])  # the next lower score; below the lowest nothing is known, so it stays itself
    high, low = max(((levels[p[0]], below[p[-1]]) for p in plateaus), key=lambda range_: range_[0] - range_[1])
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)  # neighbouring floats have no middle


def _hits_one_to_one(truth: Picks, candidates: Picks, limit_angstrom: float) -> list[float]:
    """Return the scores of the candidates that make the largest one-to-one matching grow.

    Candidates come in descending order. The matching stays the largest possible at every step, since a larger one must
    contain an augmenting path that begins at the newcomer (Berge 1957); so it counts what `match_one_to_one` counts.
    """
    if not len(truth) or not len(candidates):
        return []
    order = np.argsort(-candidates.scores, kind="stable")
    near = KDTree(candidates.positions_zyx[order]).query_ball_tree(KDTree(truth.positions_zyx), limit_angstrom)
    owner: dict[int, int] = {}  # truth -> candidate
    return [float(candidates.scores[c]) for place, c in enumerate(order) if near[place] and _augment(place, near, owner)]


def _augment(newcomer: int, near: Sequence[list[int]], owner: dict[int, int]) -> bool:
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


def _hits_czii(truth: Picks, candidates: Picks, limit_angstrom: float) -> list[float]:
    """Return for every truth that can be found the highest score that finds it."""
    if not len(truth) or not len(candidates):
        return []
    near = KDTree(truth.positions_zyx).query_ball_tree(KDTree(candidates.positions_zyx), limit_angstrom)
    return [float(candidates.scores[found].max()) for found in near if found]
