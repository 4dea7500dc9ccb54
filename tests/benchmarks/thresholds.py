"""How long the exact thresholds of many tomograms take, and how near a search by trials comes to them.

    python tests/benchmarks/thresholds.py [--tomograms 500] [--candidates 1000000] [--trials 200] [--repeats 3]

Candidates are simulated: six classes of CZII, particles at random places, nine in ten of them with a candidate near, one in ten of
these with a second one, and false candidates to make up the number. Printed for both
objectives: seconds of `choose_thresholds`, median of the repeats, without and with regularisation; the part of them that goes into
matching; and of choosing the suppression radius as well. The peer is Optuna's default search (TPE) over six thresholds, if it is
installed: a trial applies its thresholds to the same table and scores what is left. It scores in two ways: with `scoring`, as a search
that knows nothing of tables would (20 trials, extrapolated), and from the counts that the exact search keeps, as cheap as can be.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np

from tomoray.scoring import czii_score, f1_score
from tomoray.suppression import choose_suppression
from tomoray.threshold_curves import OBJECTIVES, HitTable, hit_tables
from tomoray.thresholds import Regularise, apply_thresholds, choose_thresholds
from tomoray.tomogram import CZII_PARTICLES, Picks

BOX_ANGSTROM = np.array([1840.0, 6300.0, 6300.0])  # a CZII tomogram
TRUTHS = (40, 10, 12, 35, 30, 9)  # of each class in a tomogram
FLOOR = 0.02
SCORES = {"f1": f1_score, "czii": czii_score}
WEIGHTS = {"f1": [float(p.metric_weight > 0) for p in CZII_PARTICLES], "czii": [p.metric_weight for p in CZII_PARTICLES]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tomograms", 500), ("candidates", 1_000_000), ("trials", 200), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    made = [simulate(f"TS_{n}", options.candidates // options.tomograms, rng) for n in range(options.tomograms)]
    truth, candidates = [t for t, _ in made], [c for _, c in made]
    print(f"{options.tomograms} tomograms, {sum(map(len, candidates))} candidates, {sum(map(len, truth))} particles, {len(CZII_PARTICLES)} classes")
    for name in OBJECTIVES:
        one_objective(name, truth, candidates, options.repeats)
        if importlib.util.find_spec("optuna"):
            search_by_trials(name, options.trials, truth, candidates)


def one_objective(name: str, truth: Sequence[Picks], candidates: Sequence[Picks], repeats: int) -> None:
    print(f"\n{name}")
    for how in get_args(Regularise):
        clock(f"exact, regularise {how}", repeats, partial(choose_thresholds, truth, candidates, objective=name, regularise=how))
    clock("of which matching", repeats, partial(hit_tables, truth, candidates, objective=OBJECTIVES[name]))
    clock("exact, with six suppression radii", 1, partial(choose_suppression, truth, {"peaks": candidates}, objective=OBJECTIVES[name]))


def search_by_trials(name: str, trials: int, truth: Sequence[Picks], candidates: Sequence[Picks]) -> None:
    tables = hit_tables(truth, candidates, objective=OBJECTIVES[name])
    exact = score(name, truth, candidates, {kind: t.threshold for kind, t in choose_thresholds(truth, candidates, objective=name).items()})
    print(f"exact: score {exact:.5f}")
    judges = {"from counts": (partial(score_of_counts, name, tables), trials), "with scoring": (partial(score, name, truth, candidates), 20)}
    for what, (judge, done) in judges.items():
        wall_s, processor_s, found = once(partial(optuna_search, judge, done))
        times = f"{wall_s:.2f} s, processor {processor_s:.2f} s; {trials} take {processor_s * trials / done:.1f} s of processor"
        print(f"Optuna {what}, {done} trials: {times}; score {found:.5f}, {exact - found:.5f} below exact")


def optuna_search(judge: Callable[[Mapping[str, float]], float], trials: int) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(lambda trial: judge({p.name: trial.suggest_float(p.name, FLOOR, 1.0) for p in CZII_PARTICLES}), n_trials=trials)
    return study.best_value


def score(name: str, truth: Sequence[Picks], candidates: Sequence[Picks], thresholds: Mapping[str, float]) -> float:
    return SCORES[name](truth, [apply_thresholds(picks, thresholds) for picks in candidates], resamples=0).value


def score_of_counts(name: str, tables: Mapping[str, HitTable], thresholds: Mapping[str, float]) -> float:
    values = [tables[kind].held_out(np.full(len(tables[kind].truths), t), OBJECTIVES[name].beta) for kind, t in thresholds.items()]
    return float(np.average(values, weights=WEIGHTS[name]))


def simulate(run: str, count: int, rng: np.random.Generator) -> tuple[Picks, Picks]:
    """Return the truth and `count` candidates of one tomogram."""
    names = np.array([p.name for p in CZII_PARTICLES])
    radii = np.array([p.radius_angstrom for p in CZII_PARTICLES])
    kinds = np.repeat(np.arange(len(names)), rng.poisson(TRUTHS))
    truth = rng.uniform(0, BOX_ANGSTROM, (len(kinds), 3))
    found = np.flatnonzero(rng.random(len(kinds)) < 0.9)
    found = np.concatenate([found, found[rng.random(len(found)) < 0.1]])[:count]
    near = truth[found] + rng.normal(0, 0.15, (len(found), 3)) * radii[kinds[found], None]
    positions = np.concatenate([near, rng.uniform(0, BOX_ANGSTROM, (count - len(found), 3))])
    labels = np.concatenate([kinds[found], rng.integers(0, len(names), count - len(found))])
    logits = np.concatenate([rng.normal(0.5, 1.5, len(found)), np.log(FLOOR) + rng.exponential(0.8, count - len(found))])
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)  # as candidates tables keep them
    return Picks(run, truth, names[kinds]), Picks(run, positions, names[labels], scores)


def clock(what: str, repeats: int, work: Callable[[], Any]) -> None:
    wall, processor = zip(*[once(work)[:2] for _ in range(repeats)], strict=True)
    print(f"{what:36s} {statistics.median(wall):7.2f} s, processor {statistics.median(processor):7.2f} s")


def once(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


if __name__ == "__main__":
    main()
