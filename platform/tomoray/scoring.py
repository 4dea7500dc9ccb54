"""How good picks are: the CZII metric bit for bit, and F1 with one-to-one matching, with intervals over tomograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoray.matching import Positions, found_within, match_one_to_one, pair_runs, positions_by_class
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScore:
    """What became of one class: counts summed over tomograms, and their F.

    Attributes
    ----------
    name
        The class.
    tp, fp, fn
        Found, picked in vain, missed. The CZII metric can make `fp` negative (see `czii_score`).
    value
        F of these counts; NaN for a class without truth.
    interval
        95 % bootstrap interval of `value`; None where there is none to give.
    residual_zyx
        Mean of (pick - truth) over matched pairs, angstrom: not near zero where coordinates have an offset.
        None without matched pairs, and for the CZII metric, which makes no pairs.
    """

    name: str
    tp: int
    fp: int
    fn: int
    value: float
    interval: Interval | None = None
    residual_zyx: tuple[float, float, float] | None = None

    @property
    def truths(self) -> int:
        """Number of particles that are there."""
        return self.tp + self.fn

    @property
    def picks(self) -> int:
        """Number of picks."""
        return self.tp + self.fp

    @property
    def precision(self) -> float:
        """Share of the picks that are right; NaN without picks."""
        return self.tp / self.picks if self.picks else math.nan

    @property
    def recall(self) -> float:
        """Share of the particles that were found; NaN without particles."""
        return self.tp / self.truths if self.truths else math.nan


@dataclass(frozen=True)
class Score:
    """The result of one measure: a headline, the classes behind it, and the tomograms behind those.

    Attributes
    ----------
    value
        The headline; NaN where no class has both truth and weight.
    interval
        95 % bootstrap interval of `value` over tomograms; None if there is one tomogram only.
    classes
        One entry per particle, in the order given.
    runs
        The tomograms that were scored: those of the truth.
    """

    value: float
    interval: Interval | None
    classes: tuple[ClassScore, ...]
    runs: tuple[str, ...]

    def of(self, name: str) -> ClassScore:
        """Return the entry of one class."""
        return next(c for c in self.classes if c.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return the score as plain numbers, lists and dicts; what is undefined is None, so that it is valid JSON."""
        low, high = self.interval or (None, None)
        classes = [_class_row(c) for c in self.classes]
        return {"value": _plain(self.value), "low": low, "high": high, "runs": list(self.runs), "classes": classes}


def czii_score(
    truth: Sequence[Picks],
    picks: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    beta: float = 4.0,
    distance_factor: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Return the official metric of the CZII Kaggle challenge (Peck et al. 2025), quirks included.

    A particle is found when any pick of its class lies within `distance_factor` radii, inclusive. Matching is many-to-many: one
    pick can find two particles, which makes `fp` (picks minus found particles) negative and F larger than 1. Counts are
    summed over tomograms before F is taken. The headline divides by the sum of *all* weights, so a class that is absent from the
    truth lowers the best score that can be had.

    Raises
    ------
    ValueError
        As `pair_runs`; or if no particle has a weight.
    """
    pairs = pair_runs(truth, picks, particles)
    weights = np.array([p.metric_weight for p in particles])
    if not weights.sum() > 0:
        raise ValueError(f"czii_score: the weights of {[p.name for p in particles]} sum to {weights.sum()}; give at least one a metric_weight")
    counts = _Counts.of(pairs, particles)
    for row, column, t, c in positions_by_class(pairs, particles):
        counts.tp[row, column] = found_within(t, c, distance_factor * particles[column].radius_angstrom)
    has_truth = counts.truths.sum(axis=0) > 0
    share = float(weights[has_truth].sum() / weights.sum())
    return _score(counts, particles, weights, beta=beta, share=share, draws=_draws(len(pairs), resamples, seed))


def f1_score(
    truth: Sequence[Picks],
    picks: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    radius_fraction: float = 0.5,
    distance_angstrom: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Return F1 with one-to-one matching within `radius_fraction` radii, or within a distance where one is given, inclusive.

    Of all pairings the one with most pairs counts, and of these the one with the smallest sum of distances. The headline is the
    unweighted mean over classes that have truth and a positive `metric_weight`: with the CZII classes it leaves out beta-amylase,
    as SemiETPicker's tables do (arXiv 2510.22454, whose table 1 is the mean of its table 2 without that class).

    Raises
    ------
    ValueError
        As `pair_runs`.
    """
    pairs = pair_runs(truth, picks, particles)
    counts = _Counts.of(pairs, particles)
    residuals: list[list[Positions]] = [[np.empty((0, 3))] for _ in particles]
    for row, column, t, c in positions_by_class(pairs, particles):
        i, j = match_one_to_one(t, c, distance_angstrom or radius_fraction * particles[column].radius_angstrom)
        counts.tp[row, column] = len(i)
        residuals[column].append(c[j] - t[i])
    means = [_mean_position(np.concatenate(parts)) for parts in residuals]
    return _score(counts, particles, _that_count(particles), beta=1.0, draws=_draws(len(pairs), resamples, seed), residuals=means)


def f1_many_to_many(
    truth: Sequence[Picks],
    picks: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    distance_angstrom: float,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Return F1 as TomoPicker's tables count (bioRxiv 2024.11.04.620735): each particle and each pick looks for a partner of its own.

    A particle is found when any pick lies within the distance, inclusive, and a pick is false when no particle does. One pick can find two
    particles, and then there are more found and false ones than picks, as in those tables; `czii_score` calls picks beyond the found ones
    false. Headline as of `f1_score`.

    Raises
    ------
    ValueError
        As `pair_runs`.
    """
    pairs = pair_runs(truth, picks, particles)
    counts = _Counts.of(pairs, particles)
    for row, column, t, c in positions_by_class(pairs, particles):
        counts.tp[row, column] = found_within(t, c, distance_angstrom)
        counts.picks[row, column] = counts.tp[row, column] + len(c) - found_within(c, t, distance_angstrom)
    return _score(counts, particles, _that_count(particles), beta=1.0, draws=_draws(len(pairs), resamples, seed))


def precision_at_n(
    truth: Sequence[Picks],
    candidates: Sequence[Picks],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    radius_fraction: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Return the share that is right of the N best candidates of each class in each tomogram, where N is how many particles there are.

    No threshold is needed, and precision, recall and F1 are the same number; what is missing to N counts as wrong. TomoPicker's tables
    are of this kind, their N being near the number of particles. Matching and headline as of `f1_score`.

    Raises
    ------
    ValueError
        As `pair_runs`.
    """
    found = pair_runs(truth, candidates, particles)
    pairs = [(true, all_found.highest({p.name: len(true.of(p.name)) for p in particles})) for true, all_found in found]
    counts = _Counts.of(pairs, particles)
    for row, column, t, c in positions_by_class(pairs, particles):
        counts.tp[row, column] = len(match_one_to_one(t, c, radius_fraction * particles[column].radius_angstrom)[0])
    counts = replace(counts, picks=counts.truths)
    return _score(counts, particles, _that_count(particles), beta=1.0, draws=_draws(len(pairs), resamples, seed))


def score_picks(
    truth: Sequence[Picks], picks: Sequence[Picks], particles: Sequence[Particle] = CZII_PARTICLES, *, distance_angstrom: float | None = None
) -> dict[str, Score]:
    """Return the scores that a report shows: F1 at 0.5 and 0.75 radii, one-to-one, and the CZII metric; with a distance also F1 within it.

    Raises
    ------
    ValueError
        As `pair_runs`.
    """
    scores = {
        "F1@0.5r": f1_score(truth, picks, particles, radius_fraction=0.5),
        "F1@0.75r": f1_score(truth, picks, particles, radius_fraction=0.75),
        "F4 (CZII)": czii_score(truth, picks, particles),
    }
    if distance_angstrom is None:
        return scores
    one_to_one = f1_score(truth, picks, particles, distance_angstrom=distance_angstrom)
    many_to_many = f1_many_to_many(truth, picks, particles, distance_angstrom=distance_angstrom)
    return scores | {f"F1@{distance_angstrom:g}A": one_to_one, f"F1@{distance_angstrom:g}A many-to-many": many_to_many}


def agreement(picks: Picks, others: Picks, distance_angstrom: float) -> float:
    """Return the F1 of picks against other picks of the same tomogram, one to one within a distance, all classes together; 1 if there are none."""
    if not len(picks) and not len(others):
        return 1.0
    names = {*picks.names.tolist(), *others.names.tolist()}
    pairs = (match_one_to_one(others.of(name).positions_zyx, picks.of(name).positions_zyx, distance_angstrom) for name in names)
    return 2 * sum(len(found) for found, _ in pairs) / (len(picks) + len(others))


def f_beta(tp: ArrayLike, truths: ArrayLike, picks: ArrayLike, beta: float) -> NDArray[np.float64]:
    """Return F_beta of counts, elementwise: (1 + b²) tp / (b² truths + picks); NaN where there is no truth."""
    true, found = np.asarray(truths, dtype=np.float64), (1 + beta**2) * np.asarray(tp, dtype=np.float64)
    everything = beta**2 * true + np.asarray(picks)
    return np.asarray(np.divide(found, everything, out=np.full(everything.shape, np.nan), where=true > 0))


@dataclass(frozen=True)
class _Counts:
    """Found, true and picked particles, each `(runs, classes)`. They add up, which is what makes the bootstrap cheap."""

    runs: tuple[str, ...]
    tp: NDArray[np.int64]
    truths: NDArray[np.int64]
    picks: NDArray[np.int64]

    @staticmethod
    def of(pairs: Sequence[tuple[Picks, Picks]], particles: Sequence[Particle]) -> _Counts:
        truths, picks = (np.array([[np.sum(pair[side].names == p.name) for p in particles] for pair in pairs], dtype=np.int64) for side in (0, 1))
        return _Counts(tuple(true.run for true, _ in pairs), np.zeros_like(truths), truths, picks)


def _score(
    counts: _Counts,
    particles: Sequence[Particle],
    weights: NDArray[np.float64],
    *,
    beta: float,
    draws: NDArray[np.int64],
    share: float = 1.0,
    residuals: Sequence[tuple[float, float, float] | None] | None = None,
) -> Score:
    tp, truths, picks = (part.sum(axis=0) for part in (counts.tp, counts.truths, counts.picks))
    values = f_beta(tp, truths, picks, beta)
    resampled = f_beta(draws @ counts.tp, draws @ counts.truths, draws @ counts.picks, beta)  # (resamples, classes)
    classes = tuple(
        ClassScore(p.name, int(tp[k]), int(picks[k] - tp[k]), int(truths[k] - tp[k]), float(values[k]), _interval(resampled[:, k]), residual)
        for k, (p, residual) in enumerate(zip(particles, residuals or [None] * len(particles), strict=True))
    )
    headline = float(share * _weighted_mean(values, weights)) if share else 0.0
    return Score(headline, _interval(share * _weighted_mean(resampled, weights)), classes, counts.runs)


def _that_count(particles: Sequence[Particle]) -> NDArray[np.float64]:
    """Return 1 for each class that enters the headline of F1, 0 for the others."""
    return np.array([float(p.metric_weight > 0) for p in particles])


def _draws(runs: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often each run occurs in each resample, `(resamples, runs)`; no resample of a single run."""
    return np.asarray(np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples if runs > 1 else 0))


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is defined: a resample may have lost a class's truth."""
    present = weights * ~np.isnan(values)
    total = present.sum(axis=-1)
    weighted = (present * np.nan_to_num(values)).sum(axis=-1)
    return np.asarray(np.divide(weighted, total, out=np.full(total.shape, np.nan), where=total > 0))


def _interval(values: NDArray[np.float64]) -> Interval | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _mean_position(positions_zyx: Positions) -> tuple[float, float, float] | None:
    if not len(positions_zyx):
        return None
    z, y, x = positions_zyx.mean(axis=0).tolist()
    return z, y, x


def _class_row(c: ClassScore) -> dict[str, Any]:
    row = asdict(c)
    low, high = row.pop("interval") or (None, None)
    residual = row.pop("residual_zyx")
    row |= {"value": _plain(c.value), "low": low, "high": high, "precision": _plain(c.precision), "recall": _plain(c.recall)}
    return row | {"residual_zyx": list(residual) if residual else None}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
