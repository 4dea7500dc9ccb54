"""What a trial runs, what a sweep refuses before anything runs, and which trial wins."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tomoray.config import ConfigError, read_settings_text
from tomoray.jobs import PickJob, ThresholdJob, TrainJob, TuneJob
from tomoray.search import MADE_BY, Trial, grid, settings_hash, trial_job, trials_of, variants, winner_of, winner_text
from tomoray.spaces import SpaceSettings

LOSS = {"method.consistency_weight": {"low": 0.1, "high": 10.0, "log": True}, "method.views": {"choices": [1, 4]}}
TRAIN = {"method": {"name": "semietpicker", "ema_rate": 0.01}, "network": {"width": 8}, "start_from": "runs/burn-in/picker", "epochs": 6}


def sweep(verb: str = "train", keys: dict[str, Any] | None = None, **given: Any) -> tuple[TuneJob, SpaceSettings]:
    space = {"base": f"jobs/{verb}_x.toml", "space": LOSS if keys is None else keys}
    shared = {"train": TRAIN} if verb == "train" else {}
    job = TuneJob.model_validate({"space": space, "name": "s", **shared, **given})
    return job, job.read_space()


def trial(number: int = 0, *values: float, **given: Any) -> Trial:
    history = tuple((epoch, value) for epoch, value in enumerate(values, start=1))
    return Trial(number, {"method.consistency_weight": 0.5, "method.views": 1}, "abc", **{"state": "finished", "history": history, **given})


def test_a_trial_is_the_shared_job_with_its_values() -> None:
    """Planted: options of the method that the trial does not name fall back to their defaults."""
    job, space = sweep(metric="czii", catalogue="data/c.parquet")
    one = trial_job(job, space, {"method.consistency_weight": 0.5, "method.views": 1})
    assert isinstance(one, TrainJob)
    method = one.method.model_dump()
    assert (method["name"], method["consistency_weight"], method["views"], method["ema_rate"]) == ("semietpicker", 0.5, 1, 0.01)
    assert (one.network.model_dump()["width"], one.start_from, one.epochs) == (8, "runs/burn-in/picker", 6)
    assert one.catalogue == "data/c.parquet"
    assert one.validation.objective == "czii", "thresholds maximise what trials are compared by"


def test_a_trial_may_take_another_method_whose_options_are_others() -> None:
    job, space = sweep(keys={"method.name": {"choices": ["kaggle_ce", "segmentation"]}}, train={"method": {"background_weight": 2.0}})
    with pytest.raises(ConfigError, match=r"space, with method.name = kaggle_ce: unknown key 'method.background_weight'"):
        list(variants(job, space))
    job, space = sweep(keys={"method.name": {"choices": ["kaggle_ce", "segmentation"]}}, train={"epochs": 3})
    assert [one.method.name for one in variants(job, space) if isinstance(one, TrainJob)] == ["kaggle_ce", "segmentation"]


def test_values_of_a_trial_do_not_reach_the_next_one() -> None:
    """Planted: a key put into a table that all trials share."""
    told = {"particles": [{"name": "x", "radius_angstrom": 100}], "method": {"name": "tomopicker", "expected_particles": {"x": 50}}}
    job, space = sweep(keys={"method.expected_particles.x": {"low": 10, "high": 90}}, train=told)
    jobs = list(variants(job, space))
    assert [one.method.model_dump()["expected_particles"] for one in jobs if isinstance(one, TrainJob)] == [{"x": 10}, {"x": 90}]
    assert job.train.method.model_dump()["expected_particles"] == {"x": 50}


def test_trials_that_do_not_train_take_catalogue_and_tomograms_of_the_sweep() -> None:
    job, space = sweep("pick", {"views": {"choices": [1, 8]}}, pick={"checkpoint": "p", "floor": 0.1}, catalogue="c")
    one = trial_job(job, space, {"views": 8})
    assert isinstance(one, PickJob)
    assert (one.views, one.checkpoint, one.floor, one.catalogue) == (8, "p", 0.1, "c")
    job, space = sweep("threshold", {"objective": {"choices": ["f1", "czii"]}}, threshold={"candidates": "t"}, splits=["test"])
    two = trial_job(job, space, {"objective": "czii"})
    assert isinstance(two, ThresholdJob)
    assert (two.objective, two.candidates, two.splits) == ("czii", "t", ("test",))


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        (
            {"method.ema_rat": {"low": 0.1, "high": 0.2}},
            {},
            "space, with method.ema_rat = 0.1: unknown key 'method.ema_rat'; did you mean 'ema_rate'?",
        ),
        ({"method.ema_rate": {"low": 0.5, "high": 2.0}}, {}, "space, with method.ema_rate = 2.0: method.ema_rate = 2.0: Input should be less than"),
        ({"method.views": {"choices": [1, 2]}}, {}, "space, with method.views = 2: method.views = 2: Input should be 1, 4 or 8"),
        ({"seed": {"low": 1, "high": 9}}, {}, "space: seed must be the same for all trials, or is filled in by the sweep; remove it from the space"),
        ({"validation.regularise": {"choices": ["none", "bootstrap"]}}, {}, "space: validation must be the same for all trials"),
        ({"name": {"choices": ["a", "b"]}}, {}, "space: name must be the same for all trials, or is filled in by the sweep"),
        (LOSS, {"pick": {"views": 4}}, "sweep s: [pick] is given, but a trial of this space trains a picker; set [train], or take another space"),
        (
            LOSS,
            {"train": {**TRAIN, "validation": {"best_by": "soft_f1"}}},
            "train.validation.best_by = 'soft_f1', but trials are compared by f1",
        ),
        (LOSS, {"train": {**TRAIN, "output": "there"}}, "sweep s: train.output is filled in by the sweep; it must not be given"),
        (LOSS, {"search": "grid"}, "space: method.consistency_weight is a range without steps, which no grid can cover; give a step or choices"),
    ],
)
def test_what_no_trial_could_run_is_refused_before_any_does(keys: dict[str, Any], given: dict[str, Any], message: str) -> None:
    job, space = sweep(keys=keys, **given)
    with pytest.raises(ConfigError) as error:
        list(variants(job, space))
    assert message in str(error.value)


def test_only_a_picker_is_registered() -> None:
    job, space = sweep("pick", {"views": {"choices": [1, 8]}}, register_as="picker")
    with pytest.raises(ConfigError, match=r"register_as is 'picker', but a trial of this space picks with one; only trainings make a picker"):
        list(variants(job, space))


def test_a_grid_is_all_combinations_and_no_more() -> None:
    keys = {"crops.batch_size": {"low": 2, "high": 4}, "method.views": {"choices": [1, 8]}}
    job, space = sweep(keys=keys, search="grid")
    assert grid(space) == [{"crops.batch_size": size, "method.views": views} for size in (2, 3, 4) for views in (1, 8)]
    assert trials_of(job, space) == 6
    assert trials_of(job.model_copy(update={"trials": 4}), space) == 4
    assert trials_of(job.model_copy(update={"search": "random"}), space) == 20


def test_the_hash_changes_with_what_results_depend_on_and_with_nothing_else() -> None:
    """Planted: tomograms left out; the number of trials let in, so that no sweep could be made longer."""
    base = settings_hash(*sweep(), "data")
    free = {"trials": 7, "search": "random", "seed": 3, "scheduler": "none", "parallel": 4, "output": "o", "catalogue": "moved", "winner": "w"}
    assert settings_hash(*sweep(**free), "data") == base
    assert settings_hash(*sweep(train={**TRAIN, "workers": {"threads": 3}}), "data") == base
    others = [
        settings_hash(*sweep(), "other data"),
        settings_hash(*sweep(metric="czii"), "data"),
        settings_hash(*sweep(train={**TRAIN, "epochs": 7}), "data"),
        settings_hash(*sweep(keys={"method.views": {"choices": [1, 4]}}), "data"),
    ]
    assert len({base, *others}) == 5


def test_a_trial_is_read_as_it_was_written() -> None:
    one = trial(3, 0.1, 0.4, 0.2, wall_s=1.5, thresholds={"x": 0.5}, run="id", checkpoint="c", reason="")
    assert Trial.from_json(one.to_json()) == one
    assert (one.name, one.value, one.epochs, one.is_over) == ("003", 0.4, 3, True)
    empty = trial(0, state="running")
    assert math.isnan(empty.value)
    assert (empty.epochs, empty.is_over) == (0, False)


def test_the_winner_is_the_best_that_was_finished_and_of_equals_the_first() -> None:
    """Planted: a trial that was stopped early, which has no picker, wins."""
    trials = [trial(0, 0.3), trial(1, 0.5), trial(2, 0.5), trial(3, 0.9, state="pruned"), trial(4, 0.8, state="failed")]
    winner = winner_of(trials)
    assert winner is not None
    assert winner.number == 1
    assert winner_of(trials[3:]) is None


def test_the_winner_is_written_as_a_job_that_says_where_it_comes_from() -> None:
    job, space = sweep(catalogue="c.parquet")
    text = winner_text(job, space, trial(2, 0.41, 0.62), "tomoray tune sweeps/s/job.toml")
    assert text.startswith(f"{MADE_BY}: trial 002 of sweep s, with f1 0.6200. The sweep again: tomoray tune sweeps/s/job.toml\n# ")
    assert "method.consistency_weight = 0.5, method.views = 1" in text.splitlines()[1]
    written = read_settings_text(TrainJob, text, "winner")
    assert written == trial_job(job, space, trial().values).model_copy(update={"name": "s"})
    assert (written.name, written.output) == ("s", "runs")


def test_a_picking_winner_takes_its_thresholds_along() -> None:
    job, space = sweep("pick", {"views": {"choices": [1, 8]}}, pick={"checkpoint": "p", "output": "here", "splits": ["unlabelled"]})
    best = replace(trial(0, 0.7), values={"views": 8}, thresholds={"ribosome": 0.25})
    written = read_settings_text(PickJob, winner_text(job, space, best, "again"), "winner")
    assert (written.views, written.thresholds, written.output, written.splits) == (8, {"ribosome": 0.25}, "here", ("unlabelled",))
