"""Sweeps without Ray: what is asked next, who is stopped, and that one that was killed goes on as if it had not been."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tomoray.jobs import TuneJob
from tomoray.search import Trial
from tomoray.spaces import SpaceSettings
from tomoray.sweep import Sweep, importances, is_behind

KEYS = {"method.ema_rate": {"low": 0.001, "high": 0.1, "log": True}, "method.pseudo_mode": {"choices": ["soft", "floor", "peaks"]}}
GRID = {"method.views": {"choices": [1, 4]}, "crops.batch_size": {"low": 2, "high": 4}}


def tune_job(keys: dict[str, Any] | None = None, *, verb: str = "train", epochs: int = 9, **given: Any) -> tuple[TuneJob, SpaceSettings]:
    space = {"base": f"jobs/{verb}_x.toml", "space": KEYS if keys is None else keys}
    job = TuneJob.model_validate({"space": space, "train": {"epochs": epochs}, **given})
    return job, job.read_space()


def run(sweep: Sweep, value_of: Callable[[Trial, int], float], epochs: int = 9, *, most: int = 1000) -> list[Trial]:
    """Run trials one after the other, with a validation every epoch, and return those that were started."""
    started = []
    while len(started) < most and (trial := sweep.next()):
        started.append(trial)
        if not any(sweep.report(trial.number, epoch, value_of(trial, epoch)) for epoch in range(trial.epochs + 1, epochs + 1)):
            assert sweep.trials[trial.number].epochs == epochs
        sweep.end(trial.number)
    return started


def test_the_worse_are_stopped_at_rungs_and_the_best_go_on() -> None:
    """Rungs of grace 1 and factor 3 in 27 epochs are 1, 3 and 9."""
    job, _ = tune_job(epochs=27, grace_epochs=1, reduction_factor=3)

    def behind(epoch: int, value: float, mine: int, others: list[float]) -> bool:
        histories = [[(e, other) for e in range(1, epoch + 1)] for other in others]
        return is_behind(epoch, value, [(e, 0.0) for e in range(1, mine + 1)], histories, job)

    assert behind(1, 0.1, 0, [0.2, 0.3]), "the worst of three"
    assert not behind(1, 0.3, 0, [0.2, 0.1]), "the best of three"
    assert not behind(1, 0.1, 0, [0.3]), "of two nobody is stopped: a third of two is nobody"
    assert not behind(2, 0.1, 1, [0.2, 0.3]), "2 is no rung"
    assert behind(3, 0.1, 2, [0.2, 0.3])
    assert behind(9, 0.1, 8, [0.2, 0.3])
    assert not behind(27, 0.1, 26, [0.2, 0.3]), "the last epoch"
    assert not behind(1, 0.2, 0, [0.2, 0.2]), "equals go on"
    assert not is_behind(1, 0.1, [], [[(1, 0.5)], []], job), "who has not been there does not count"
    assert not is_behind(1, 0.1, [], [[(1, 0.5)], [(1, 0.6)]], job.model_copy(update={"scheduler": "none"}))


def test_a_rung_between_validations_counts_at_the_next_one() -> None:
    """Validations every 2 epochs, rungs 1 and 3: the first is compared at 2, the second at 4.

    Planted: a rung that is never met; the last epoch as a rung, where a picker would be lost.
    """
    job, _ = tune_job(epochs=8, grace_epochs=1, reduction_factor=3)
    better = [[(2, 0.5), (4, 0.6), (6, 0.7)], [(2, 0.4), (4, 0.5), (6, 0.6)]]
    assert is_behind(2, 0.1, [], better, job)
    assert is_behind(4, 0.1, [(2, 0.6)], better, job)
    assert not is_behind(6, 0.1, [(2, 0.6), (4, 0.6)], better, job)
    longer, late = job.model_copy(update={"train": job.train.model_copy(update={"epochs": 10})}), [[(8, 0.5), (10, 0.6)], [(8, 0.4), (10, 0.5)]]
    assert not is_behind(10, 0.1, [(8, 0.6)], late, longer), "rung 9 is met at the last epoch, when there is nothing left to stop"


def test_what_is_asked_lies_in_the_space_and_is_never_asked_twice() -> None:
    """Planted: a sweep that tries the same choices again."""
    job, space = tune_job({"method.views": {"choices": [1, 4, 8]}, "method.pseudo_mode": {"choices": ["soft", "peaks"]}}, trials=50, search="random")
    started = run(Sweep(job, space, "s", [], lambda trial: None), lambda trial, epoch: 0.5)
    assert len(started) == 6, "there are no more combinations"
    assert len({tuple(trial.values.items()) for trial in started}) == 6
    job, space = tune_job(trials=12)
    for trial in run(Sweep(job, space, "s", [], lambda trial: None), lambda trial, epoch: 0.5):
        assert 0.001 <= float(trial.values["method.ema_rate"]) <= 0.1
        assert trial.values["method.pseudo_mode"] in ("soft", "floor", "peaks")


def test_a_grid_is_run_in_order() -> None:
    job, space = tune_job(GRID, search="grid", trials=4)
    started = run(Sweep(job, space, "s", [], lambda trial: None), lambda trial, epoch: 0.5)
    assert [tuple(trial.values.values()) for trial in started] == [(1, 2), (1, 3), (1, 4), (4, 2)]
    assert all(type(value) is int for trial in started for value in trial.values.values())


def test_the_search_learns_from_the_trials_before() -> None:
    """The optimum lies where ema_rate is 0.01 and the mode is floor. Planted: values told with the wrong sign."""

    def value(trial: Trial, epoch: int) -> float:
        return -abs(math.log10(float(trial.values["method.ema_rate"])) + 2) + (trial.values["method.pseudo_mode"] == "floor")

    job, space = tune_job(trials=40, search="random", scheduler="none")
    blind = Sweep(job, space, "s", [], lambda trial: None)
    guesses = [value(trial, 1) for trial in run(blind, value)]
    told = job.model_copy(update={"search": "optuna", "trials": 60})
    after = [value(trial, 1) for trial in run(Sweep(told, space, "s", blind.trials.values(), lambda trial: None), value)]
    assert len(after) == 20
    assert np.mean(after) > np.mean(guesses) + 0.4, "of what was kept"
    alone = [value(trial, 1) for trial in run(Sweep(told, space, "s", [], lambda trial: None), value)]
    assert np.mean(alone[40:]) > np.mean(guesses) + 0.4, "of what it ran itself"


def kept_sweep(kept: dict[int, Trial], **given: Any) -> Sweep:
    """A sweep that goes on from what was kept, as after a kill: nothing else is left of it."""

    def keep(trial: Trial) -> None:
        kept[trial.number] = Trial.from_json(trial.to_json())

    return Sweep(*tune_job(**given), "s", list(kept.values()), keep)


def test_a_killed_sweep_goes_on_with_what_was_under_way_and_repeats_nothing() -> None:
    """Planted: trials under way are dropped; those over are run again."""
    kept: dict[int, Trial] = {}

    def value(trial: Trial, epoch: int) -> float:
        return trial.number / 10

    first = kept_sweep(kept, trials=8, scheduler="none")
    run(first, value, most=3)
    (three, four) = (first.next(), first.next())
    assert three is not None
    assert four is not None
    first.report(3, 1, 0.25)
    before = {number: trial for number, trial in kept.items() if trial.is_over}
    assert [kept[number].state for number in range(5)] == ["finished"] * 3 + ["running"] * 2

    second = kept_sweep(kept, trials=8, scheduler="none")
    assert second.todo == 5
    started = run(second, value)
    assert [trial.number for trial in started] == [3, 4, 5, 6, 7]
    assert (started[0].values, started[1].values) == (three.values, four.values)
    assert started[0].epochs == 1, "it goes on from its first validation"
    assert kept[3].history == ((1, 0.25), *((epoch, 0.3) for epoch in range(2, 10)))
    assert {number: kept[number] for number in before} == before
    assert len({tuple(trial.values.items()) for trial in kept.values()}) == 8
    assert kept_sweep(kept, trials=8).todo == 0
    assert kept_sweep(kept, trials=10).todo == 2, "a sweep can be made longer"


def test_a_long_sweep_can_be_made_longer() -> None:
    """Planted: a search that draws its first values again, until it takes them to be all that there are."""
    known = [Trial(n, dict(trial.values), "s", "finished", ((1, 0.5),)) for n, trial in enumerate(run(random_sweep(120), lambda trial, epoch: 0.5))]
    assert len(run(random_sweep(123, known), lambda trial, epoch: 0.5)) == 3


def random_sweep(trials: int, known: Sequence[Trial] = ()) -> Sweep:
    return Sweep(*tune_job(trials=trials, search="random", scheduler="none"), "s", known, lambda trial: None)


def test_who_is_stopped_does_not_depend_on_a_kill() -> None:
    """Planted: rungs forgotten by a new start, as Ray's own scheduler forgets them."""

    def value(trial: Trial, epoch: int) -> float:
        return 1.0 - trial.number / 10

    whole: dict[int, Trial] = {}
    run(kept_sweep(whole, trials=6), value)
    kept: dict[int, Trial] = {}
    run(kept_sweep(kept, trials=6), value, most=3)
    run(kept_sweep(kept, trials=6), value)
    outcomes = [[(trial.state, trial.epochs) for trial in trials.values()] for trials in (whole, kept)]
    assert outcomes[0] == outcomes[1] == [("finished", 9), ("finished", 9)] + [("pruned", 1)] * 4


def test_what_failed_is_tried_again_and_what_was_stopped_is_not() -> None:
    kept: dict[int, Trial] = {}
    sweep = kept_sweep(kept, trials=3)
    for reason in ("OSError: gone", ""):
        trial = sweep.next()
        assert trial is not None
        if not reason:
            sweep.report(trial.number, 9, 0.5)
        sweep.end(trial.number, reason)
    valueless = sweep.next()
    assert valueless is not None
    assert not sweep.report(valueless.number, 1, math.nan)
    sweep.end(valueless.number)
    assert [trial.state for trial in kept.values()] == ["failed", "finished", "failed"]
    assert kept[0].reason == "OSError: gone"
    assert kept[2].reason.startswith("it has no value")
    again = run(kept_sweep(kept, trials=3), lambda trial, epoch: 0.5)
    assert [trial.number for trial in again] == [0, 2]
    assert [(trial.state, trial.reason) for trial in kept.values()] == [("finished", "")] * 3


def test_a_trial_without_training_is_never_stopped() -> None:
    """Planted: its one value taken for a validation at a rung."""
    job, space = tune_job({"views": {"choices": [1, 4, 8]}}, verb="pick", trials=3, reduction_factor=1.5, epochs=50)
    sweep = Sweep(job, space, "s", [], lambda trial: None)
    started = run(sweep, lambda trial, epoch: -float(trial.number), epochs=1)
    assert [sweep.trials[trial.number].state for trial in started] == ["finished"] * 3


def test_the_key_that_decides_is_the_important_one() -> None:
    _, space = tune_job({"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}, "c": {"choices": ["x", "y"]}})
    rng = np.random.default_rng(0)
    trials = []
    for number in range(60):
        a, b = rng.random(2).tolist()
        values = {"a": a, "b": b, "c": str(rng.choice(["x", "y"]))}
        state = "pruned" if number % 3 == 0 else "finished"
        trials.append(Trial(number, values, "s", state, ((1, 1 - (a - 0.7) ** 2 + 0.01 * b),)))  # type: ignore[arg-type]
    shares = importances(space, trials)
    assert max(shares, key=lambda key: shares[key]) == "a"
    assert shares["a"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(space, trials[:3]) == {}, "three trials tell nothing"
