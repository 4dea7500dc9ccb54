"""Chosen thresholds against brute force over every score, with the scores of `scoring` as the judge."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.scoring import czii_score, f1_score, f_beta
from tomoray.threshold_curves import Objective, hit_tables, threshold_curves
from tomoray.thresholds import apply_thresholds, beta_of_marked, choose_thresholds
from tomoray.tomogram import Particle, Picks

BALL = (Particle("ball", 60.0),)


def balls(positions_zyx, scores=(), run: str = "TS_1") -> Picks:
    positions = np.asarray(positions_zyx, dtype=float).reshape(-1, 3)
    return Picks(run, positions, np.full(len(positions), "ball"), np.asarray(scores, dtype=float))


def on_a_line(x_angstrom, scores=(), run: str = "TS_1") -> Picks:
    return balls([[0.0, 0.0, x] for x in x_angstrom], scores, run)


def crowd(rng: np.random.Generator, runs: int, truths: int, count: int, digits: int = 6) -> tuple[list[Picks], list[Picks]]:
    """Truth and candidates in crowded boxes, several in reach of each other; with one digit many scores are equal."""
    names = [f"TS_{run}" for run in range(runs)]
    truth = [balls(rng.uniform(0, 150, (truths, 3)), run=run) for run in names]
    return truth, [balls(rng.uniform(0, 150, (count, 3)), rng.random(count).round(digits), run) for run in names]


def judged(truth: list[Picks], candidates: list[Picks], thresholds, objective: Objective) -> float:
    """F with a threshold for every tomogram, of the counts of `scoring`."""
    picks = [apply_thresholds(c, {"ball": t}) for c, t in zip(candidates, thresholds, strict=True)]
    if objective.matching == "one_to_one":
        score = f1_score(truth, picks, BALL, radius_fraction=objective.radius_fraction, resamples=0)
    else:
        score = czii_score(truth, picks, BALL, distance_factor=objective.radius_fraction, resamples=0)
    counts = score.classes[0]
    return float(f_beta(counts.tp, counts.truths, counts.picks, objective.beta))


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_many"])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    truths=st.integers(1, 12),
    count=st.integers(1, 25),
    digits=st.sampled_from([1, 6]),
    beta=st.sampled_from([0.3, 1.0, 4.0]),
    radius_fraction=st.sampled_from([0.2, 0.5, 1.1]),
)
def test_no_other_threshold_does_better(matching, seed, truths, count, digits, beta, radius_fraction):
    """Planted: F1 whatever beta says; half a radius whatever the distance; greedy matching; candidates of equal score one by one."""
    truth, candidates = crowd(np.random.default_rng(seed), 2, truths, count, digits)
    objective = Objective(beta, matching, radius_fraction)
    chosen = choose_thresholds(truth, candidates, BALL, objective=objective)["ball"]
    values = {score: judged(truth, candidates, [score] * 2, objective) for score in np.concatenate([c.scores for c in candidates])}
    assert chosen.value == pytest.approx(max(values.values()))
    if not chosen.is_default:
        assert judged(truth, candidates, [chosen.threshold] * 2, objective) == pytest.approx(chosen.value)
    assert (chosen.truths, chosen.candidates) == (2 * truths, 2 * count)
    curves = threshold_curves(truth, candidates, BALL, objective)["ball"]
    assert curves.thresholds.tolist() == sorted(values, reverse=True)
    np.testing.assert_allclose(curves.f_beta, [values[score] for score in curves.thresholds])


@pytest.mark.parametrize("name", ["f1", "czii"])
def test_named_objectives_are_those_of_scoring(name):
    """Planted: the objective of the other name."""
    truth, candidates = crowd(np.random.default_rng(1), 3, 8, 30)
    chosen = choose_thresholds(truth, candidates, BALL, objective=name)["ball"]
    picks = [apply_thresholds(c, {"ball": chosen.threshold}) for c in candidates]
    assert chosen.value == pytest.approx({"f1": f1_score, "czii": czii_score}[name](truth, picks, BALL, resamples=0).value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), digits=st.sampled_from([1, 2, 6]), matching=st.sampled_from(["one_to_one", "many_to_many"]))
def test_weighing_tomograms_is_choosing_on_as_many_copies(seed, digits, matching):
    """To the last bit, the middle of the plateau too. Planted: a plateau that ends at a candidate of a tomogram that does not count."""
    rng = np.random.default_rng(seed)
    truth, candidates = crowd(rng, 4, 3, 8, digits)
    objective = Objective(2.0, matching)
    weights = rng.integers(0, 3, (6, 4))
    thresholds, values = hit_tables(truth, candidates, BALL, objective)["ball"].optima(weights, 2.0)
    for row, threshold, value in zip(weights, thresholds, values, strict=True):
        copies = [(run, copy) for run, times in enumerate(row) for copy in range(times)]
        again = [[replace(part[run], run=f"{run}.{copy}") for run, copy in copies] for part in (truth, candidates)]
        chosen = choose_thresholds(*again, BALL, objective=objective)["ball"] if copies else None
        if chosen is None or chosen.is_default:
            assert math.isnan(threshold)
            assert math.isnan(value)
        else:
            assert (threshold, value) == (chosen.threshold, pytest.approx(chosen.value))


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_many"])
def test_leave_one_out_is_choosing_without_each_tomogram(matching):
    """Planted: `expected` at the final threshold, which has seen all tomograms; the threshold of all of them for the mean."""
    objective = Objective(2.0, matching)
    truth, candidates = crowd(np.random.default_rng(5), 6, 5, 15)
    chosen = choose_thresholds(truth, candidates, BALL, objective=objective, regularise="leave_one_out")["ball"]
    without = [
        choose_thresholds([*truth[:run], *truth[run + 1 :]], candidates, BALL, objective=objective)["ball"].threshold for run in range(len(truth))
    ]
    assert len(set(without)) > 1
    assert chosen.threshold == pytest.approx(np.mean(without), abs=1e-12)
    assert chosen.expected == pytest.approx(judged(truth, candidates, without, objective))
    assert chosen.value == pytest.approx(judged(truth, candidates, [chosen.threshold] * 6, objective))


def test_bootstrap_expects_of_a_tomogram_what_resamples_without_it_chose():
    """Planted: all resamples for every tomogram; the resample's own tomograms instead of the others."""
    objective = Objective(1.0)
    truth, candidates = crowd(np.random.default_rng(3), 5, 5, 15)
    chosen = choose_thresholds(truth, candidates, BALL, objective=objective, regularise="bootstrap", resamples=31, seed=4)["ball"]
    draws = np.random.default_rng(4).multinomial(5, np.full(5, 0.2), size=31)
    optima, _ = hit_tables(truth, candidates, BALL, objective)["ball"].optima(draws, 1.0)
    others = [float(np.nanmean(optima[draws[:, run] == 0])) for run in range(5)]
    assert len(set(others)) > 1
    assert chosen.threshold == pytest.approx(np.nanmean(optima), abs=1e-12)
    assert chosen.expected == pytest.approx(judged(truth, candidates, others, objective))
    assert chosen == choose_thresholds(truth, candidates, BALL, objective=objective, regularise="bootstrap", resamples=31, seed=4)["ball"]


@pytest.mark.parametrize("regularise", ["bootstrap", "leave_one_out"])
def test_tomograms_whose_others_decide_nothing_count_with_the_default(regularise):
    """All particles are in one tomogram: what the other chooses for it is the default. Planted: such a tomogram left out of `expected`."""
    truth = [on_a_line([0, 1000]), on_a_line([], run="TS_2")]
    candidates = [on_a_line([0, 1000, 5000], [0.9, 0.4, 0.2]), on_a_line([0], [0.3], run="TS_2")]
    chosen = choose_thresholds(truth, candidates, BALL, regularise=regularise)["ball"]
    assert 0.2 <= chosen.threshold <= 0.4
    assert chosen.expected == pytest.approx(2 / 3)  # one of two found at 0.5, none in vain


@pytest.mark.parametrize("regularise", ["bootstrap", "leave_one_out"])
def test_what_all_sets_agree_on_is_kept_to_the_last_bit(regularise):
    """The threshold is the score of the lowest candidate. Planted: a plain mean, which rounds above it, so that the candidate is lost."""
    runs = [f"TS_{run}" for run in range(1, 8)]
    for lowest in (0.1, 0.3, 0.7):
        truth, candidates = [on_a_line([0, 1000], run=run) for run in runs], [on_a_line([0, 1000], [0.9, lowest], run) for run in runs]
        chosen = choose_thresholds(truth, candidates, BALL, regularise=regularise)["ball"]
        assert (chosen.threshold, chosen.value, chosen.expected) == (lowest, 1.0, 1.0)


@pytest.mark.parametrize("regularise", ["bootstrap", "leave_one_out"])
def test_one_tomogram_promises_nothing(regularise):
    """Planted: `expected` of a tomogram by a threshold that it chose itself."""
    truth, candidates = crowd(np.random.default_rng(0), 1, 5, 15)
    chosen = choose_thresholds(truth, candidates, BALL, regularise=regularise)["ball"]
    assert chosen == choose_thresholds(truth, candidates, BALL)["ball"]
    assert chosen.expected is None


def test_curves_of_a_small_case():
    """Planted: precision by the truth, recall by the picks. One pick in reach of two particles is twice right, many-to-many."""
    truth, candidates = on_a_line([0, 20, 1000, 2000]), on_a_line([10, 5000, 1000], [0.9, 0.5, 0.5])
    one, many = (threshold_curves([truth], [candidates], BALL, Objective(1.0, how))["ball"] for how in ("one_to_one", "many_to_many"))
    assert one.thresholds.tolist() == many.thresholds.tolist() == [0.9, 0.5]
    assert (one.precision.tolist(), one.recall.tolist()) == ([1.0, 2 / 3], [0.25, 0.5])
    assert (many.precision.tolist(), many.recall.tolist()) == ([2.0, 1.0], [0.5, 0.75])
    assert one.f_beta == pytest.approx([2 / 5, 4 / 7])


def test_curves_without_truth_or_candidates():
    nothing = threshold_curves([on_a_line([])], [on_a_line([0], [0.7])], BALL)["ball"]
    assert (nothing.precision.tolist(), np.isnan([*nothing.recall, *nothing.f_beta]).all()) == ([0.0], True)
    assert len(threshold_curves([on_a_line([0])], [], BALL)["ball"].thresholds) == 0


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_many"])
def test_a_candidate_at_the_distance_finds_the_particle(matching):
    """Planted: nearer than the distance. 0.75 of 60 angstrom is 45."""
    chosen = [
        choose_thresholds([on_a_line([0])], [on_a_line([x], [0.9])], BALL, objective=Objective(1.0, matching, 0.75))["ball"] for x in (45.0, 45.001)
    ]
    assert [c.value for c in chosen] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Objective(beta=0), "beta 0 and radius_fraction 0.5; both must be positive"),
        (lambda: Objective(radius_fraction=math.nan), "radius_fraction nan; both must be positive"),
        (lambda: Objective(matching="greedy"), "matching 'greedy' is unknown; it must be 'one_to_one' or 'many_to_many'"),
        (
            lambda: choose_thresholds([on_a_line([0])], [], BALL, regularise="ridge"),
            "'ridge' is unknown; it must be one of 'none', 'bootstrap', 'leave_one_out'",
        ),
    ],
)
def test_what_cannot_be_maximised_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


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


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_f_of_marked_particles_with_their_beta_is_that_of_all(beta):
    """Of 90 particles 10 are marked, of whom 6 are found among 70 picks: 54 of all. Planted: the share instead of its root; no factor."""
    marked_beta, scale = beta_of_marked(beta, 10, 90.0)
    assert marked_beta == pytest.approx(3 * beta)
    assert scale * f_beta(6, 10, 70, marked_beta) == pytest.approx(float(f_beta(54, 90, 70, beta)))
    assert beta_of_marked(beta, 10, 9.0) == beta_of_marked(beta, 10, 0.0) == beta_of_marked(beta, 0, 90.0) == (beta, 1.0)


def test_few_clicks_and_a_count_choose_almost_what_all_labels_would():
    """400 particles in each of two tomograms, scored 0 to 1 with background below; 40 are marked.

    Planted: what is not marked for background, which sets the threshold so high that most are lost; the count of one tomogram for all.
    """
    rng = np.random.default_rng(0)
    truth, marked, candidates = [], [], []
    for run in ("TS_1", "TS_2"):
        x = 1000.0 * np.arange(1600)
        scores = np.where(x < 400_000, rng.beta(4, 2, 1600), rng.beta(2, 6, 1600))
        truth.append(on_a_line(x[:400], run=run))
        marked.append(truth[-1][np.sort(rng.permutation(400)[:40])])
        candidates.append(on_a_line(x, scores, run))
    ball = [Particle("ball", 60.0)]

    def reached(threshold: float) -> float:
        return f1_score(truth, [apply_thresholds(c, {"ball": threshold}) for c in candidates], ball).value

    best = choose_thresholds(truth, candidates, ball)["ball"]
    few = choose_thresholds(marked, candidates, ball, expected={"ball": 400.0})["ball"]
    wrong = choose_thresholds(marked, candidates, ball)["ball"]
    assert reached(few.threshold) > best.value - 0.02
    assert few.value == pytest.approx(best.value, abs=0.1), "of 80 clicks, and the best of many: it is an estimate"
    assert reached(wrong.threshold) < best.value - 0.1
    assert choose_thresholds(truth, candidates, ball, expected={"ball": 350.0, "other": 3.0})["ball"] == best
