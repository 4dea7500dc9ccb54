"""The CZII metric against the official one's numbers, one-to-one F1 against answers known by construction."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.formats.czii import read_czii_csv
from tomoray.matching import match_one_to_one
from tomoray.score_table import score_rows, score_table
from tomoray.scoring import agreement, czii_score, f1_many_to_many, f1_score, f_beta, precision_at_n, score_picks
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

AWAY = {p.name: (1000.0 * k, 500.0, 700.0) for k, p in enumerate(CZII_PARTICLES, start=1)}  # one of each, well apart
CASES = [
    "perfect",
    "empty_submission",
    "jitter_15A",
    "jitter_40A",
    "half_recall",
    "many_false_positives",
    "duplicates",
    "wrong_class",
    "other_experiment",
    "swapped_xyz",
    "voxels_not_angstrom",
    "class_missing_from_truth",
    "boundary_inclusive",
    "one_pick_two_truths",
    "beta_amylase_weight_0",
]
BALL = (Particle("ball", 60.0),)


def make_picks(positions: dict[str, tuple[float, float, float]], run: str = "TS_1") -> Picks:
    return Picks(run, np.array(list(positions.values())).reshape(-1, 3), np.array(list(positions), dtype=str))


def balls(positions_zyx, run: str = "TS_1", name: str = "ball") -> Picks:
    positions = np.asarray(positions_zyx, dtype=float).reshape(-1, 3)
    return Picks(run, positions, np.full(len(positions), name))


def random_picks(rng: np.random.Generator, run: str, count: int) -> Picks:
    names = rng.choice([p.name for p in CZII_PARTICLES], count)
    return Picks(run, rng.uniform(0, [500, 900, 900], (count, 3)), names, rng.random(count))


@pytest.mark.parametrize("case", CASES)
def test_czii_score_matches_two_public_copies_of_the_metric(shared_data, case):
    folder = shared_data / "metric"
    expected = json.loads((folder / "expected.json").read_text())["cases"]
    assert set(CASES) == set(expected)
    score = czii_score(read_czii_csv(str(folder / f"{case}_truth.csv")), read_czii_csv(str(folder / f"{case}_pred.csv")))
    assert score.value == pytest.approx(expected[case]["score"], abs=1e-9)
    in_truth = {c.name: c.value for c in score.classes if c.truths}
    assert in_truth == pytest.approx(expected[case]["f_beta"], abs=1e-9)


def test_czii_score_of_the_truth_itself_is_one():
    assert czii_score([make_picks(AWAY)], [make_picks(AWAY)]).value == 1.0


@pytest.mark.parametrize(("moved", "expected"), [(75.0, 1.0), (75.001, 6 / 7)])
def test_czii_limit_is_half_the_radius_and_inclusive(moved, expected):
    z, y, x = AWAY["ribosome"]
    for shifted in ((z + moved, y, x), (z, y + moved, x), (z, y, x - moved)):
        assert czii_score([make_picks(AWAY)], [make_picks(AWAY | {"ribosome": shifted})]).value == pytest.approx(expected, abs=1e-9)


def test_czii_counts_a_particle_once_however_often_it_is_picked():
    z, y, x = AWAY["ribosome"]
    twice = Picks.concatenate("TS_1", [make_picks(AWAY), balls((z, y, x + 1), name="ribosome")])
    score = czii_score([make_picks(AWAY)], [twice])
    assert score.of("ribosome").value == pytest.approx(0.944444444, abs=1e-9)
    assert score.value == pytest.approx(0.992063492, abs=1e-9)


def test_czii_gives_beta_amylase_no_weight():
    without = {name: at for name, at in AWAY.items() if name != "beta-amylase"}
    score = czii_score([make_picks(AWAY)], [make_picks(without)])
    assert score.value == 1.0
    assert score.of("beta-amylase").value == 0.0


def test_czii_class_absent_from_the_truth_still_counts_in_the_denominator():
    without = make_picks({name: at for name, at in AWAY.items() if name != "virus-like-particle"})
    score = czii_score([without], [without])
    assert score.value == pytest.approx(6 / 7, abs=1e-12)
    assert math.isnan(score.of("virus-like-particle").value)
    assert czii_score([balls(np.zeros(3), name="beta-amylase")], [without]).value == 0.0  # no truth with weight at all


def test_czii_run_without_picks_is_missed():
    score = czii_score([make_picks(AWAY), make_picks(AWAY, "TS_2")], [make_picks(AWAY)])
    assert score.value == pytest.approx(0.515151515, abs=1e-9)
    assert score.runs == ("TS_1", "TS_2")


def test_czii_one_pick_between_two_particles_finds_both():
    score = czii_score([balls([[0, 0, 0], [0, 0, 20]])], [balls([0, 0, 10])], BALL)
    assert (score.of("ball").tp, score.of("ball").fp, score.of("ball").fn) == (2, -1, 0)
    assert score.value == pytest.approx(34 / 33)


def test_czii_three_picks_on_one_particle():
    ball = czii_score([balls([0, 0, 0])], [balls([[0, 0, 1], [0, 0, 2], [0, 0, 3]])], BALL).of("ball")
    assert (ball.tp, ball.fp, ball.fn) == (1, 2, 0)


@pytest.mark.parametrize(
    ("tp", "truths", "picks", "beta", "expected"),
    [
        (1, 1, 2, 4, 0.944444),  # precision 0.5, recall 1
        (1, 2, 1, 4, 0.515152),  # precision 1, recall 0.5
        (9, 10, 90, 4, 0.612),  # precision 0.1, recall 0.9
        (80, 100, 160, 4, 0.7727),
        (80, 100, 160, 1, 0.6154),
        (0, 5, 0, 4, 0.0),
        (0, 5, 7, 1, 0.0),
    ],
)
def test_f_beta_of_known_counts(tp, truths, picks, beta, expected):
    assert f_beta(tp, truths, picks, beta) == pytest.approx(expected, abs=5e-5)
    assert np.isnan(f_beta(tp, 0, picks, beta))


def test_unknown_classes_are_refused_unless_in_a_run_that_is_not_scored():
    odd = make_picks({"ribosom": (1.0, 2.0, 3.0)})
    with pytest.raises(ValueError, match=r"picks of 'TS_1': unknown class 'ribosom'; known are apo-ferritin, .*: rename"):
        czii_score([make_picks(AWAY)], [odd])
    with pytest.raises(ValueError, match="truth of 'TS_1': unknown class 'ribosom'"):
        f1_score([odd], [make_picks(AWAY)])
    assert czii_score([make_picks(AWAY)], [make_picks(AWAY), Picks("TS_9", odd.positions_zyx, odd.names)]).value == 1.0


def test_truth_must_be_there_and_each_particle_once():
    with pytest.raises(ValueError, match="no run; it must have at least one"):
        f1_score([], [make_picks(AWAY)])
    with pytest.raises(ValueError, match="a position is listed twice"):
        czii_score([make_picks(AWAY), make_picks(AWAY)], [])  # the same file given twice
    with pytest.raises(ValueError, match="sum to 0"):
        czii_score([balls([0, 0, 0])], [], (Particle("ball", 60.0, 0.0),))


def test_runs_may_come_in_parts():
    whole = make_picks(AWAY)
    score = czii_score([whole[:2], whole[2:]], [whole[::2], whole[1::2]])
    assert score.value == 1.0
    assert score.runs == ("TS_1",)


def test_f1_pairs_one_to_one():
    for picks in ([[0, 0, 1], [0, 0, 2]], [[0, 0, 2], [0, 0, 1]]):
        two_picks = f1_score([balls([0, 0, 0])], [balls(picks)], BALL).of("ball")
        assert (two_picks.tp, two_picks.fp, two_picks.fn) == (1, 1, 0)
        assert two_picks.residual_zyx == (0.0, 0.0, 1.0)  # the nearer one
    two_truths = f1_score([balls([[0, 0, 0], [0, 0, 10]])], [balls([0, 0, 5])], BALL).of("ball")
    assert (two_truths.tp, two_truths.fp, two_truths.fn) == (1, 0, 1)


def test_matching_prefers_more_pairs_over_near_ones_and_is_inclusive():
    truth, picks = np.array([[0.0, 0, 0], [0, 0, 20]]), np.array([[0.0, 0, 9], [0, 0, -30]])
    i, j = match_one_to_one(truth, picks, 30.0)  # pick 0 is nearest to truth 0, which pick 1 can reach alone
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert len(match_one_to_one(truth[:1], picks[1:], 29.999)[0]) == 0
    assert [len(x) for x in match_one_to_one(truth, truth, 0.0)] == [2, 2]  # a distance of zero is a pair


def test_f1_headline_is_the_mean_over_classes_with_truth_and_weight():
    present = {name: AWAY[name] for name in ("apo-ferritin", "beta-amylase", "ribosome")}
    score = f1_score([make_picks(present)], [make_picks({"ribosome": AWAY["ribosome"]})])
    assert score.value == 0.5  # ribosome 1, apo-ferritin 0; beta-amylase has no weight, the others no truth
    assert math.isnan(score.of("thyroglobulin").value)


def test_f1_radius_fraction_widens_the_limit():
    picks = [balls([0, 0, 40])]
    assert f1_score([balls([0, 0, 0])], picks, BALL, radius_fraction=0.5).value == 0.0
    assert f1_score([balls([0, 0, 0])], picks, BALL, radius_fraction=0.75).value == 1.0


def test_f1_of_the_truth_itself_is_one():
    score = f1_score([make_picks(AWAY)], [make_picks(AWAY)], radius_fraction=0.5)
    assert (score.value, [c.value for c in score.classes]) == (1.0, [1.0] * 6)


def test_residual_reveals_a_coordinate_offset():
    truth = balls(np.arange(30).reshape(10, 3) * 100.0)
    score = f1_score([truth], [balls(truth.positions_zyx + np.array([5.0, -3.0, 10.0]))], BALL)
    assert score.of("ball").residual_zyx == pytest.approx((5.0, -3.0, 10.0))
    assert f1_score([truth], [], BALL).of("ball").residual_zyx is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), truths=st.integers(1, 60), picks=st.integers(0, 120))
def test_order_of_picks_does_not_matter_and_counts_stay_within_bounds(seed, truths, picks):
    rng = np.random.default_rng(seed)
    truth, picked = random_picks(rng, "TS_1", truths), random_picks(rng, "TS_1", picks)
    shuffled = truth[rng.permutation(truths)], picked[rng.permutation(picks)]
    for measure in (f1_score, czii_score):
        score, again = measure([truth], [picked]), measure([shuffled[0]], [shuffled[1]])
        assert [(c.tp, c.fp, c.fn) for c in again.classes] == [(c.tp, c.fp, c.fn) for c in score.classes]
        assert again.value == pytest.approx(score.value, nan_ok=True)
        assert [c.truths for c in score.classes] == [len(truth.of(c.name)) for c in score.classes]
        assert [c.picks for c in score.classes] == [len(picked.of(c.name)) for c in score.classes]
    single, many = f1_score([truth], [picked]), czii_score([truth], [picked])
    assert all(c.tp <= min(c.truths, c.picks) for c in single.classes)
    assert all(one.tp <= every.tp for one, every in zip(single.classes, many.classes, strict=True))


def homogeneous(runs: int) -> tuple[list[Picks], list[Picks]]:
    """Every run: 30 particles, each found with probability 0.7, and 5 picks far away."""
    rng = np.random.default_rng(3)
    truth = [balls(np.stack(np.meshgrid([500.0], np.arange(6) * 300.0, np.arange(5) * 300.0), -1).reshape(-1, 3), f"TS_{k}") for k in range(runs)]
    return truth, [balls(np.concatenate([t.positions_zyx[rng.random(30) < 0.7], rng.uniform(5000, 9000, (5, 3))]), t.run) for t in truth]


def test_bootstrap_interval_holds_the_estimate_and_shrinks_with_tomograms():
    widths = []
    for runs in (5, 80):
        truth, picks = homogeneous(runs)
        score = f1_score(truth, picks, BALL)
        low, high = score.interval
        assert low < score.value < high
        assert score.of("ball").interval == pytest.approx((low, high))
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # by 4 in the long run
    truth, picks = homogeneous(5)
    assert f1_score(truth, picks, BALL).interval == f1_score(truth, picks, BALL).interval  # seeded
    assert f1_score(truth, picks, BALL, seed=1).interval != f1_score(truth, picks, BALL).interval


def test_bootstrap_agrees_with_resampling_the_tomograms_themselves():
    truth, picks = homogeneous(6)
    rng = np.random.default_rng(11)
    values = []
    for _ in range(200):
        chosen = rng.integers(6, size=6)
        copies = [(balls(truth[k].positions_zyx, f"{n}"), balls(picks[k].positions_zyx, f"{n}")) for n, k in enumerate(chosen)]
        values.append(czii_score([t for t, _ in copies], [p for _, p in copies], BALL, resamples=0).value)
    assert czii_score(truth, picks, BALL).interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.015)


def test_one_tomogram_has_no_interval_and_says_so():
    scores = score_picks([make_picks(AWAY)], [make_picks(AWAY)])
    assert all(s.interval is None and s.classes[0].interval is None for s in scores.values())
    assert "one tomogram" in score_table(scores)


def test_table_has_a_line_per_class_and_a_headline():
    z, y, x = AWAY["ribosome"]
    truth = [make_picks(AWAY), make_picks(AWAY, "TS_2")]
    picks = [make_picks(AWAY | {"ribosome": (z, y, x + 80)}), make_picks(AWAY, "TS_2")]
    scores = score_picks(truth, picks)
    rows = {row["class"]: row for row in score_rows(scores)}
    assert list(rows) == [*(p.name for p in CZII_PARTICLES), "all"]
    assert rows["ribosome"]["F1@0.5r"].startswith("0.500 [0.000, 1.000]")
    assert rows["ribosome"]["F1@0.75r"] == "1.000"
    assert (rows["all"]["truth"], rows["all"]["F1@0.5r"].split()[0], rows["all"]["F4 (CZII)"].split()[0]) == ("12", "0.900", "0.929")
    lines = score_table(scores).splitlines()
    assert len({len(line) for line in lines[:9]}) == 1  # aligned
    assert "bootstrap over 2 tomograms" in lines[-1]


def test_scores_become_valid_json_with_what_is_undefined_as_null():
    score = f1_score([make_picks({"ribosome": AWAY["ribosome"]})], [])
    plain = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert (plain["value"], plain["low"], plain["runs"]) == (0.0, None, ["TS_1"])
    assert [c["value"] for c in plain["classes"]] == [None, None, None, 0.0, None, None]
    assert plain["classes"][3]["precision"] is None
    assert plain["classes"][3]["recall"] == 0.0


def test_agreement_counts_picks_of_a_class_within_a_distance_once():
    """Planted: distances to the nearest pick, which count one pick twice; classes mixed up; 0 where neither found anything."""
    names = np.array(["ribosome", "ribosome", "apo-ferritin"])
    truth = Picks("TS_1", np.array([[0.0, 0, 0], [50.0, 0, 0], [50.0, 0, 0]]), names, np.ones(3))
    near = Picks("TS_1", np.array([[0.0, 0, 10], [0.0, 0, -9], [50.0, 0, 0]]), names, np.ones(3))
    assert agreement(truth, truth, 10.0) == 1.0
    assert agreement(near, truth, 10.0) == pytest.approx(2 / 3)
    assert agreement(near, truth, 8.0) == pytest.approx(1 / 3)
    assert agreement(truth[[]], truth, 10.0) == 0.0
    assert agreement(truth[[]], truth[[]], 10.0) == 1.0


def test_many_to_many_counts_particles_and_picks_each_for_itself():
    """One pick between two particles finds both, three picks on a third are all right, the fourth is missed, the last pick is false.

    Planted: as the CZII metric has it, one pick more than found particles for false; a limit that is not inclusive.
    """
    truth, picks = balls([[0, 0, 0], [0, 0, 20], [0, 0, 100], [0, 0, 200]]), balls([[0, 0, 10], [0, 0, 95], [0, 0, 102], [0, 0, 105], [0, 0, 300]])
    score = f1_many_to_many([truth], [picks], BALL, distance_angstrom=10.0).classes[0]
    assert (score.tp, score.fp, score.fn) == (3, 1, 1)
    assert score.value == pytest.approx(2 * 0.75 * 0.75 / (0.75 + 0.75))
    assert f1_many_to_many([truth], [picks], BALL, distance_angstrom=9.9).classes[0].tp == 1
    one_to_one = f1_score([truth], [picks], BALL, distance_angstrom=10.0).classes[0]
    assert (one_to_one.tp, one_to_one.fp, one_to_one.fn) == (2, 3, 2)
    within = score_picks([truth], [picks], BALL, distance_angstrom=10.0)
    assert list(within)[3:] == ["F1@10A", "F1@10A many-to-many"]
    assert (within["F1@10A"].classes[0].tp, within["F1@10A many-to-many"].classes[0].tp) == (2, 3)


def test_precision_at_n_takes_as_many_as_there_are_in_each_tomogram():
    """Planted: the best of all tomograms together; what is missing to N left out, with which one good candidate would be enough."""
    truth = [balls([[0, 0, 0], [0, 0, 100]]), balls([[0, 0, 0], [0, 0, 100], [0, 0, 200], [0, 0, 300]], "TS_2")]
    first = Picks("TS_1", np.array([[0, 0, 500], [0, 0, 0], [0, 0, 101], [0, 0, 99]]), np.array(["ball"] * 4), np.array([0.5, 0.2, 0.9, 0.1]))
    second = Picks("TS_2", np.array([[0, 0, 1], [0, 0, 201], [0, 0, 700]]), np.array(["ball"] * 3), np.array([0.01, 0.02, 0.03]))
    score = precision_at_n(truth, [first, second], BALL)
    assert (score.classes[0].tp, score.classes[0].fp, score.classes[0].fn) == (1 + 2, 3, 3)
    assert score.value == score.classes[0].precision == score.classes[0].recall == 0.5
    assert precision_at_n(truth[:1], [first[1:]], BALL).value == 1.0
