"""Suppression after the fact against the plain greedy search, and its radius chosen together with the threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.suppression import choose_suppression, suppress
from tomoray.threshold_curves import Objective
from tomoray.thresholds import apply_thresholds, choose_thresholds
from tomoray.tomogram import Particle, Picks

PARTICLES = (Particle("ball", 60.0), Particle("rod", 100.0))


def on_a_line(x_angstrom, scores=(), name: str = "ball", run: str = "TS_1") -> Picks:
    positions = np.array([[0.0, 0.0, x] for x in x_angstrom])
    return Picks(run, positions, np.full(len(positions), name), np.asarray(scores, dtype=float))


def plain_greedy(picks: Picks, radius_angstrom: dict[str, float]) -> list[int]:
    """The definition: the highest first, none within the radius of one kept before."""
    kept: list[int] = []
    for i in np.argsort(-picks.scores, kind="stable"):
        same = [k for k in kept if picks.names[k] == picks.names[i]]
        distances = np.linalg.norm(picks.positions_zyx[same] - picks.positions_zyx[i], axis=1)
        radius = radius_angstrom.get(str(picks.names[i]), 0.0)
        if radius == 0 or (distances > radius).all():
            kept.append(int(i))
    return sorted(kept)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 60), digits=st.sampled_from([1, 6]), radius=st.sampled_from([0.0, 20.0, 45.0]))
def test_suppression_is_the_plain_greedy_search(seed, count, digits, radius):
    """Planted: a removed candidate that removes others; classes that suppress each other; kept ones in order of score."""
    rng = np.random.default_rng(seed)
    picks = Picks("TS_1", rng.uniform(0, 100, (count, 3)), rng.choice(["ball", "rod", "disc"], count), rng.random(count).round(digits))
    radii = {"ball": radius, "rod": 30.0}
    kept, expected = suppress(picks, radii), picks[plain_greedy(picks, radii)]
    np.testing.assert_array_equal(kept.positions_zyx, expected.positions_zyx)
    assert (kept.names.tolist(), kept.scores.tolist()) == (expected.names.tolist(), expected.scores.tolist())
    thresholds = {"ball": 0.5, "rod": 0.3, "disc": 0.0}
    before, after = suppress(apply_thresholds(picks, thresholds), radii), apply_thresholds(kept, thresholds)
    np.testing.assert_array_equal(before.positions_zyx, after.positions_zyx)


def test_a_chain_keeps_its_ends_and_the_radius_is_inclusive():
    """Planted: the middle one removes the last though it is gone itself; `<` in place of `<=`."""
    chain = on_a_line([0, 30, 60], [0.9, 0.8, 0.7])
    assert suppress(chain, {"ball": 30.0}).scores.tolist() == [0.9, 0.7]
    assert len(suppress(chain, {"ball": 29.999})) == 3
    assert suppress(on_a_line([0, 30], [0.5, 0.5]), {"ball": 30.0}).positions_zyx[0, 2] == 0


def doubled(run: str) -> tuple[Picks, Picks]:
    """Balls picked twice, 45 angstrom apart; rods that stand as near to each other and are all there."""
    balls, rods = np.arange(4) * 1000.0, np.array([500.0, 545.0, 2500.0, 2545.0])
    truth = Picks.concatenate(run, [on_a_line(balls), on_a_line(rods, name="rod")])
    twice = on_a_line([*balls, *(balls + 45)], [0.9, 0.8, 0.7, 0.6, 0.85, 0.75, 0.65, 0.55])
    return truth, Picks.concatenate(run, [twice, on_a_line(rods, [0.9, 0.8, 0.7, 0.6], "rod")])


@pytest.mark.parametrize("regularise", ["none", "leave_one_out"])
def test_every_class_gets_its_own_radius_and_the_threshold_that_goes_with_it(regularise):
    """Planted: one radius for all classes; the threshold of the candidates as they came; the last of equal radii."""
    truth, candidates = zip(*[doubled(run) for run in ("TS_1", "TS_2", "TS_3")], strict=True)
    best = choose_suppression(truth, {"peaks": candidates}, PARTICLES, factors=(0.0, 0.5, 0.75, 1.0), regularise=regularise)
    assert {name: choice.radius_angstrom for name, choice in best.items()} == {"ball": 45.0, "rod": 0.0}
    assert [choice.worth for choice in best.values()] == [1.0, 1.0]
    radii = {name: choice.radius_angstrom for name, choice in best.items()}
    again = choose_thresholds(truth, [suppress(c, radii) for c in candidates], PARTICLES, regularise=regularise)
    assert {name: choice.threshold for name, choice in best.items()} == again
    assert choose_thresholds(truth, candidates, PARTICLES)["ball"].value < 1


def test_the_table_whose_positions_are_better_wins_class_by_class():
    """Planted: one table for all classes; a matching distance other than the objective's."""
    truth = [Picks.concatenate("TS_1", [on_a_line([0, 500]), on_a_line([2000, 2500], name="rod")])]
    cells = [Picks.concatenate("TS_1", [on_a_line([9, 509], [0.9, 0.8]), on_a_line([2000, 2500], [0.9, 0.8], "rod")])]
    refined = [Picks.concatenate("TS_1", [on_a_line([1, 501], [0.9, 0.8]), on_a_line([2030, 2500], [0.9, 0.8], "rod")])]
    tables = {"cells": cells, "refined": refined}
    near = choose_suppression(truth, tables, PARTICLES, factors=[0.0], objective=Objective(radius_fraction=0.1))
    assert {name: choice.table for name, choice in near.items()} == {"ball": "refined", "rod": "cells"}
    assert {choice.table for choice in choose_suppression(truth, tables, PARTICLES, factors=[0.0]).values()} == {"cells"}


def test_expected_decides_where_it_was_estimated():
    """Planted: `value`, which is as good for a threshold that only fits these tomograms."""
    truth = [on_a_line([0, 1000, 2000], run=run) for run in ("TS_1", "TS_2", "TS_3")]
    steady = [on_a_line([0, 1000, 5000, 2000], [0.9, 0.8, 0.75, 0.7], run=run) for run in ("TS_1", "TS_2", "TS_3")]  # 6/7, wherever
    shifting = [  # all are found at 0.2, but without the last tomogram the choice is 0.5: it finds 6 of 9 there, 0.8 is expected
        on_a_line([0, 1000, 2000, 5000, 6000], scores, run=run)
        for run, scores in (("TS_1", [0.9] * 3 + [0.1] * 2), ("TS_2", [0.9] * 3 + [0.1] * 2), ("TS_3", [0.3] * 3 + [0.05] * 2))
    ]
    tables = {"steady": steady, "shifting": shifting}
    options = {how: choose_suppression(truth, tables, PARTICLES[:1], factors=[0.0], regularise=how)["ball"] for how in ("none", "leave_one_out")}
    assert {how: choice.table for how, choice in options.items()} == {"none": "shifting", "leave_one_out": "steady"}


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="0 tables and 6 factors; there must be at least one of each"):
        choose_suppression([on_a_line([0])], {}, PARTICLES)
