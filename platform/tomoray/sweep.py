"""Sweeps: the trials of a search as they come and go, which values come next, and which training has fallen behind."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tomoray.jobs import TuneJob
from tomoray.search import Trial, grid, trials_of
from tomoray.spaces import ParameterSettings, SpaceSettings

ASKS = 100  # for values that have not been tried; then there are taken to be none


def is_behind(epoch: int, value: float, mine: Sequence[tuple[int, float]], others: Iterable[Sequence[tuple[int, float]]], job: TuneJob) -> bool:
    """Return whether a training is to be stopped at this validation: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934).

    Rungs lie at `grace_epochs` times powers of the reduction factor. At its first validation on or after a rung a training is compared
    with those that have been there: it goes on if it is among the best 1 / factor of them, itself included. Where fewer than factor
    have been there, and at the last epoch, nobody is stopped. Ray's own scheduler forgets its rungs when a sweep is restarted, and stops
    what reaches the last epoch before its picker is kept.

    Parameters
    ----------
    mine, others
        (epoch, value) of earlier validations: of this training, and of each of the others.
    """
    before = mine[-1][0] if mine else 0
    rungs = [rung for rung in _rungs(job) if before < rung <= epoch]
    if not rungs or epoch >= job.train.epochs:
        return False
    there = [value, *(v for history in others for v in [v for e, v in history if e >= rungs[-1]][:1])]
    return len(there) >= job.reduction_factor and value < float(np.quantile(there, 1 - 1 / job.reduction_factor))


def _rungs(job: TuneJob) -> list[float]:
    if job.scheduler == "none":
        return []
    count = math.ceil(math.log(max(1.0, job.train.epochs / job.grace_epochs), job.reduction_factor) - 1e-9)
    return [job.grace_epochs * job.reduction_factor**k for k in range(count)]


class Sweep:
    """The trials of a sweep as they come and go.

    A trial is kept by `keep` whenever something happens to it, so that a sweep that was killed goes on from what was kept: trials that are
    over teach the search, and those that are not come first, with the values that they had.
    """

    def __init__(self, job: TuneJob, space: SpaceSettings, settings: str, known: Iterable[Trial], keep: Callable[[Trial], None]) -> None:
        self.job, self.settings, self._keep, self._trains = job, settings, keep, space.verb == "train"
        self.trials = {trial.number: trial for trial in known}
        self.total = max(len(self.trials), trials_of(job, space))
        self._waiting = deque(number for number, trial in self.trials.items() if not trial.is_over)
        self._distributions = {key: _distribution(parameter) for key, parameter in space.space.items()}
        self._study = _study(job, len(self.trials))
        self._asked: dict[int, optuna.Trial] = {}
        self._began: dict[int, float] = {}
        for trial in self.trials.values():
            if trial.is_over:
                self._study.add_trial(_frozen(trial, self._distributions))
            else:
                self._study.enqueue_trial(trial.values)
        for values in grid(space) if job.search == "grid" else ():
            if not self._is_tried(values):
                self._study.enqueue_trial(values)

    @property
    def todo(self) -> int:
        """How many trials are still to be started."""
        return len(self._waiting) + self.total - len(self.trials)

    def next(self) -> Trial | None:
        """Return the trial to start next; None if all have been started, or no values are left to try."""
        if self._waiting:
            asked, trial = self._study.ask(self._distributions), replace(self.trials[self._waiting.popleft()], state="running", reason="")
            for epoch, value in trial.history:
                asked.report(value, epoch)
        else:
            new = self._ask() if self.todo else None
            if new is None:
                self.total = len(self.trials)
                return None
            asked, trial = new, Trial(max(self.trials, default=-1) + 1, dict(new.params), self.settings)
        self._asked[trial.number], self._began[trial.number] = asked, time.perf_counter() - trial.wall_s
        return self._put(trial)

    def report(self, number: int, epoch: int, value: float, thresholds: Mapping[str, float] | None = None) -> bool:
        """Take note of a validation, and return whether the trial is to be stopped."""
        trial = self.trials[number]
        if math.isnan(value):
            return False
        mine = tuple((e, v) for e, v in trial.history if e < epoch)  # of a trial that was killed, the same epoch may come again
        others = [other.history for other in self.trials.values() if other is not trial]
        behind = self._trains and is_behind(epoch, value, mine, others, self.job)
        if epoch > trial.epochs:
            self._asked[number].report(value, epoch)
        self._put(replace(trial, history=(*mine, (epoch, value)), thresholds=dict(thresholds or {}), state="pruned" if behind else "running"))
        return behind

    def end(self, number: int, reason: str = "") -> Trial:
        """Take note of the end of a trial, and of why it failed if it did."""
        trial, asked = self.trials[number], self._asked[number]
        if trial.state == "pruned":
            self._study.tell(asked, state=TrialState.PRUNED)
            return self._put(trial)
        if not reason and not trial.history:
            reason = "it has no value: no class to measure has both truth and weight"
        self._study.tell(asked, None if reason else trial.value, state=TrialState.FAIL if reason else TrialState.COMPLETE)
        return self._put(replace(trial, state="failed" if reason else "finished", reason=reason))

    def _ask(self) -> optuna.Trial | None:
        """Return values that have not been tried, if some are found."""
        for _ in range(ASKS):
            asked = self._study.ask(self._distributions)
            if not self._is_tried(asked.params):
                return asked
            self._study.tell(asked, state=TrialState.FAIL)
        return None

    def _is_tried(self, values: Mapping[str, object]) -> bool:
        return any(trial.values == values for trial in self.trials.values())

    def _put(self, trial: Trial) -> Trial:
        trial = replace(trial, wall_s=round(time.perf_counter() - self._began[trial.number], 1))
        self.trials[trial.number] = trial
        self._keep(trial)
        return trial


def _study(job: TuneJob, known: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = job.seed + known  # the same draws again would be trials that there are already
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if job.search == "optuna":  # ten random trials first, as is its default, would be all that a small sweep has
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(3, job.trials // 3)))
    return optuna.create_study(direction="maximize", sampler=sampler)


def _distribution(parameter: ParameterSettings) -> BaseDistribution:
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.is_whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log, step=parameter.step)


def _frozen(trial: Trial, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    """Return a trial that is over as Optuna knows it."""
    pruned = trial.state == "pruned"
    return optuna.create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=trial.history[-1][1] if pruned else trial.value,
        params=trial.values,
        distributions=distributions,
        intermediate_values=dict(trial.history),
    )


def importances(space: SpaceSettings, trials: Iterable[Trial]) -> dict[str, float]:
    """Return key -> its share in what sets the best trials apart, the best five or the best tenth; empty where fewer than four tell.

    By PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255). Trials that were stopped count with the best value that they had reached.
    """
    told = [replace(trial, state="finished") for trial in trials if trial.is_over]
    if len(told) < 4 or len({trial.value for trial in told}) == 1:
        return {}
    study = optuna.create_study(direction="maximize")
    distributions = {key: _distribution(parameter) for key, parameter in space.space.items()}
    study.add_trials([_frozen(trial, distributions) for trial in told])
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / len(told))))
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
