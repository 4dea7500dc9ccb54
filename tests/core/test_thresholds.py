"""Chosen thresholds against brute force over every score, with the scores of `scoring` as the judge."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.scoring import czii_score, f1_score
from tomoray.thresholds import apply_thresholds, choose_thresholds
from tomoray.tomogram import Particle, Picks

BALL = (Particle("ball", 60.0),)
MEASURES = {"f1": f1_score, "czii": czii_score}


def balls(positions_zyx, scores=(), run: str = "TS_1") -> Picks:
    positions = np.asarray(positions_zyx, dtype=float).reshape(-1, 3)
    return Picks(run, positions, np.full(len(positions), "ball"), np.asarray(scores, dtype=float))


def on_a_line(x_angstrom, scores=(), run: str = "TS_1") -> Picks:
    return balls([[0.0, 0.0, x] for x in x_angstrom], scores, run)


@pytest.mark.parametrize("objective", ["f1", "czii"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), truths=st.integers(1, 12), count=st.integers(1, 40), digits=st.sampled_from([1, 6]))
def test_no_other_threshold_does_better(objective, seed, truths, count, digits):
    """Crowded boxes (several candidates and truths in reach of each other) and, with one digit, many equal scores."""
    rng = np.random.default_rng(seed)
    truth = [balls(rng.uniform(0, 150, (truths, 3)), run=run) for run in ("TS_1", "TS_2")]
    candidates = [balls(rng.uniform(0, 150, (count, 3)), rng.random(count).round(digits), run) for run in ("TS_1", "TS_2")]

    def measure(threshold: float) -> float:
        picks = [apply_thresholds(c, {"ball": threshold}) for c in candidates]
        return MEASURES[objective](truth, picks, BALL, resamples=0).value

    chosen = choose_thresholds(truth, candidates, BALL, objective=objective)["ball"]
    best = max(measure(score) for score in np.concatenate([c.scores for c in candidates]))
    assert chosen.value == pytest.approx(best)
    if not chosen.is_default:
        assert measure(chosen.threshold) == pytest.approx(chosen.value)
    assert (chosen.truths, chosen.candidates) == (2 * truths, 2 * count)


@pytest.mark.parametrize("objective", ["f1", "czii"])
def test_threshold_lies_in_the_middle_between_the_last_good_and_the_first_bad(objective):
    truth, candidates = on_a_line([0, 1000]), on_a_line([0, 1000, 5000, 6000], [0.9, 0.8, 0.2, 0.1])
    chosen = choose_thresholds([truth], [candidates], BALL, objective=objective)["ball"]
    assert (chosen.threshold, chosen.value) == (0.5, 1.0)
    assert not chosen.is_default


def test_widest_of_equal_plateaus_wins():
    # descending: hit 0.9 (F1 2/3), then two false to 0.7, then a hit at 0.69 (F1 2*2/(4+2) = 2/3), then nothing to the floor
    truth = on_a_line([0, 1000])
    candidates = on_a_line([0, 3000, 4000, 1000, 5000], [0.9, 0.89, 0.7, 0.69, 0.1])
    chosen = choose_thresholds([truth], [candidates], BALL)["ball"]
    assert chosen.value == pytest.approx(2 / 3)
    assert chosen.threshold == pytest.approx((0.69 + 0.1) / 2)


def test_plateau_across_several_scores_is_halved_as_a_whole():
    # of two truths one is found at 0.9: F1 2/3; the group at 0.6 brings the other and two false ones: still 2 * 2 / (2 + 4)
    truth = on_a_line([0, 1000])
    candidates = on_a_line([0, 1000, 3000, 4000, 5000], [0.9, 0.6, 0.6, 0.6, 0.2])
    chosen = choose_thresholds([truth], [candidates], BALL)["ball"]
    assert chosen.threshold == pytest.approx((0.9 + 0.2) / 2)


def test_threshold_at_the_lowest_candidate_and_between_neighbouring_floats():
    truth = on_a_line([0, 1000])
    lowest = choose_thresholds([truth], [on_a_line([0, 1000], [0.9, 0.3])], BALL)["ball"]
    assert lowest.threshold == 0.3
    neighbour = np.nextafter(0.3, 0)
    chosen = choose_thresholds([truth], [on_a_line([0, 1000, 3000], [0.9, 0.3, neighbour])], BALL)["ball"]
    assert (chosen.threshold, chosen.value) == (0.3, 1.0)


def test_matching_moves_an_earlier_candidate_to_make_room():
    """Greedy by score would give truth 0 to the first candidate and leave the second without: F1 2/3."""
    truth, candidates = on_a_line([0, 20]), on_a_line([9, -25], [0.9, 0.8])
    assert choose_thresholds([truth], [candidates], BALL)["ball"].value == 1.0


def test_long_chains_of_touching_particles_do_not_exhaust_the_stack():
    count = 1500  # candidate k reaches truths k and k + 1, the last candidate makes all others move
    truth = on_a_line(np.arange(count) * 50.0)
    candidates = on_a_line([*(np.arange(count - 1) * 50.0 + 25), -25.0], [*np.linspace(0.9, 0.5, count - 1), 0.4])
    chosen = choose_thresholds([truth], [candidates], BALL)["ball"]
    assert (chosen.value, chosen.threshold) == (1.0, 0.4)


def test_classes_that_the_data_do_not_decide_get_the_stated_default():
    particles = (Particle("ball", 60.0), Particle("rod", 60.0), Particle("disc", 60.0), Particle("ring", 60.0))
    truth = Picks("TS_1", [[0, 0, 0], [0, 0, 900], [0, 0, 1800]], ["ball", "disc", "ring"])
    candidates = Picks("TS_1", [[0, 0, 0], [0, 0, 500], [0, 0, 2500]], ["ball", "rod", "ring"], [0.8, 0.9, 0.9])
    chosen = choose_thresholds([truth], [candidates], particles)
    assert {name: t.note for name, t in chosen.items()} == {
        "ball": "",
        "rod": "no truth",
        "disc": "no candidates",
        "ring": "no candidate lies near a truth",
    }
    assert [chosen[name].threshold for name in ("rod", "disc", "ring")] == [0.5, 0.5, 0.5]
    assert math.isnan(chosen["rod"].value)
    assert chosen["disc"].value == 0.0


def test_candidates_of_other_tomograms_do_not_count():
    truth = [on_a_line([0])]
    ours, others = on_a_line([0, 500], [0.8, 0.4]), on_a_line([0, 500], [0.1, 0.99], run="TS_9")
    assert choose_thresholds(truth, [ours, others], BALL) == choose_thresholds(truth, [ours], BALL)


def test_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective 'recall' is unknown; it must be 'f1' or 'czii'"):
        choose_thresholds([on_a_line([0])], [on_a_line([0])], BALL, objective="recall")


def test_apply_thresholds_keeps_each_class_by_its_own():
    candidates = Picks("TS_1", np.zeros((4, 3)), ["ball", "rod", "ball", "rod"], [0.5, 0.5, 0.49, 0.9])
    kept = apply_thresholds(candidates, {"ball": 0.5, "rod": 0.6, "unused": 0.1})
    assert (kept.names.tolist(), kept.scores.tolist()) == (["ball", "rod"], [0.5, 0.9])
    assert len(apply_thresholds(candidates[:0], {})) == 0
    with pytest.raises(ValueError, match=r"no threshold for 'rod'; every class must have one, there are ball: add it"):
        apply_thresholds(candidates, {"ball": 0.5})
