"""What thresholds chosen on seven tomograms promise, and what they give on fifty others: plain, bootstrapped, left one out.

    python tests/benchmarks/threshold_regularisation.py [--splits 200] [--chosen-on 7] [--used-on 50] [--seed 0] [--sharpness 1]

Candidates are simulated: six classes with about the numbers of particles per tomogram of CZII. A particle is found with a score whose logit
is normal, or has no candidate; false candidates have logits that fall off exponentially above the floor. Every tomogram has a difficulty
of its own, which lowers scores of particles, raises those of false candidates and makes these more; a part of it is shared by its
classes. Both headlines are means over classes, as `scoring` takes them. Of each: quartiles over splits of what was promised less
what was obtained, of its size, of what was obtained, and of what was obtained less what the plain optimum obtained.
Beside the two ways that `choose_thresholds` offers stand two that it does not: the median of the resampled optima, and the top of
the mean of the resampled curves. `best there` is the optimum of the fifty themselves, which nobody can choose. All logits are
multiplied by the sharpness: a network that is surer of itself ranks alike, but means of thresholds lie elsewhere.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import time
from dataclasses import dataclass

import numpy as np

from tomoray.scoring import f_beta
from tomoray.threshold_curves import OBJECTIVES, HitTable, Objective
from tomoray.thresholds import choose_threshold
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

FLOOR = 0.02
SPACING_ANGSTROM = 400.0  # more than any class's reach, so that no candidate finds a neighbour
RESAMPLES = 200
Promise = tuple[float, float]  # threshold, promised F


@dataclass(frozen=True)
class Class:
    """Particles and false candidates per tomogram, the share with a candidate, mean logit of these, and decay of the false ones' logits."""

    truths: float
    false: float
    found: float
    logit: float
    decay: float


CLASSES = (  # in the order of CZII_PARTICLES, the third and fifth hard as they are there
    Class(40, 150, 0.97, 1.2, 0.8),
    Class(10, 150, 0.80, -1.2, 0.8),
    Class(12, 200, 0.85, -1.0, 0.8),
    Class(35, 100, 0.97, 1.5, 0.8),
    Class(30, 250, 0.90, -0.7, 0.8),
    Class(9, 40, 0.99, 2.0, 0.7),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("splits", 200), ("chosen-on", 7), ("used-on", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sharpness", type=float, default=1.0)
    options = parser.parse_args()
    print(f"{options.splits} splits: chosen on {options.chosen_on} tomograms, used on {options.used_on}; sharpness {options.sharpness:g}")
    print("medians [quartiles] over splits")
    for name, objective in OBJECTIVES.items():
        began = time.perf_counter()
        rng = np.random.default_rng(options.seed)
        rows = [one_split(objective, options.chosen_on, options.used_on, options.sharpness, rng) for _ in range(options.splits)]
        report(name, {rule: np.array([row[rule] for row in rows]) for rule in rows[0]}, time.perf_counter() - began)


def one_split(objective: Objective, chosen_on: int, used_on: int, sharpness: float, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return of every rule the (promised, obtained) headline."""
    shared = rng.normal(size=chosen_on + used_on)
    weights = np.array([p.metric_weight if objective.matching == "many_to_many" else float(p.metric_weight > 0) for p in CZII_PARTICLES])
    outcomes: dict[str, list[Promise]] = {}
    for particle, kind in zip(CZII_PARTICLES, CLASSES, strict=True):
        difficulty = 0.7 * shared + 0.7 * rng.normal(size=len(shared))
        pairs = [simulate(f"TS_{run}", particle, kind, d, sharpness, rng) for run, d in enumerate(difficulty)]
        limit = objective.radius_fraction * particle.radius_angstrom
        mine, others = (HitTable.of(part, limit, objective.matching) for part in (pairs[:chosen_on], pairs[chosen_on:]))
        for rule, (threshold, promised) in rules(mine, others, objective.beta).items():
            obtained = others.held_out(np.full(used_on, threshold), objective.beta)
            outcomes.setdefault(rule, []).append((promised, obtained))
    return {rule: tuple(np.average(values, axis=0, weights=weights)) for rule, values in outcomes.items()}


def rules(mine: HitTable, others: HitTable, beta: float) -> dict[str, Promise]:
    plain, bootstrap, left_out = (choose_threshold(mine, beta, how, resamples=RESAMPLES) for how in ("none", "bootstrap", "leave_one_out"))
    draws = np.random.default_rng(0).multinomial(len(mine.truths), np.full(len(mine.truths), 1 / len(mine.truths)), size=RESAMPLES)
    optima, _ = mine.optima(draws, beta)
    top, best = top_of_mean_curve(mine, draws, beta), choose_threshold(others, beta)
    return {
        "plain": (plain.threshold, plain.value),
        "plain, promise of leave-one-out": (plain.threshold, left_out.expected or plain.value),
        "bootstrap": (bootstrap.threshold, bootstrap.expected or plain.value),
        "leave one out": (left_out.threshold, left_out.expected or plain.value),
        "(median of resampled optima)": (float(np.nanmedian(optima)), plain.value),
        "(top of the mean curve)": (top, plain.value),
        "(best there)": (best.threshold, best.value),
    }


def top_of_mean_curve(table: HitTable, draws: np.ndarray, beta: float) -> float:
    weights = draws[:, table.runs]
    curves = f_beta((weights * table.gains).cumsum(1), (draws @ table.truths)[:, None], weights.cumsum(1), beta)
    top = int(np.nanmean(curves, axis=0).argmax())
    return float(table.scores[top : top + 2].mean())


def simulate(run: str, particle: Particle, kind: Class, difficulty: float, sharpness: float, rng: np.random.Generator) -> tuple[Picks, Picks]:
    """Return the truth and the candidates of one class in one tomogram."""
    truths = int(rng.negative_binomial(4, 4 / (4 + kind.truths)))  # sd of about half the mean
    hits, false = rng.binomial(truths, kind.found), rng.poisson(kind.false * np.exp(0.3 * difficulty))
    logits = np.concatenate(
        [
            rng.normal(kind.logit - 0.5 * difficulty, 1.2, hits),
            np.log(FLOOR / (1 - FLOOR)) + rng.exponential(kind.decay * np.exp(0.15 * difficulty), false),
        ]
    )
    places = SPACING_ANGSTROM * np.stack(np.unravel_index(np.arange(truths + false), (32, 32, 32)), axis=1)
    moved = places[:hits] + rng.normal(0, 0.1 * particle.radius_angstrom, (hits, 3))
    positions, scores = np.concatenate([moved, places[truths:]]), 1 / (1 + np.exp(-sharpness * logits))
    keep = scores > 1 / (1 + (1 / FLOOR - 1) ** sharpness)  # the floor itself, as sharp
    names = [np.full(n, particle.name) for n in (truths, int(keep.sum()))]
    return Picks(run, places[:truths], names[0]), Picks(run, positions[keep], names[1], scores[keep])


def report(name: str, outcomes: dict[str, np.ndarray], wall_s: float) -> None:
    print(f"\n{name}, {wall_s:.0f} s")
    print(f"{'':32s} {'promised - obtained':>27s} {'|promised - obtained|':>27s} {'obtained':>27s} {'obtained - plain':>27s}  better, worse")
    plain = outcomes["plain"][:, 1]
    for rule, values in outcomes.items():
        promised, obtained = values.T
        gap, gain = promised - obtained, obtained - plain
        won = "" if rule == "plain" else f"  {(gain > 1e-9).mean():.0%}, {(gain < -1e-9).mean():.0%}"
        print(f"{rule:32s} {quartiles(gap, '+')} {quartiles(abs(gap))} {quartiles(obtained)} {quartiles(gain, '+')}{won}")


def quartiles(values: np.ndarray, sign: str = "") -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{f'{middle:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]':>27s}"


if __name__ == "__main__":
    main()
