"""Searches: what a trial is and runs, which values a job allows, and which trial won."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

from tomoray.config import ConfigError, Settings, dump_settings, read_settings_text
from tomoray.jobs import JOBS, PickJob, ThresholdJob, TrainJob, TuneJob
from tomoray.spaces import TRIALS, SpaceSettings, Value

State = Literal["running", "finished", "pruned", "failed"]
TrialJob = TrainJob | PickJob | ThresholdJob

FILLED_IN = {  # by the sweep
    "train": ("catalogue", "output", "name", "register_as", "champion"),
    "pick": ("catalogue",),
    "threshold": ("catalogue", "splits"),
}
COMPARABLE = {  # what must be the same for all trials, or has nothing to do with how good they are
    "train": ("seed", "particles", "labelled_runs", "clicks", "epochs", "steps_per_epoch", "validation", "workers"),
    "pick": ("output", "splits", "thresholds", "numbers", "actors", "gpus_per_actor", "readers", "permissive"),
    "threshold": ("output", "thresholds", "numbers", "copick", "star"),
}
MADE_BY = "# Written by `tomoray tune`"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as it is kept in a file from its start on.

    Attributes
    ----------
    number
        Which one.
    values
        Dotted key -> value in this trial.
    settings
        Hash of all else that its result depends on.
    state
        `running` also of a trial whose sweep was killed.
    history
        (epoch, value of the metric) of every validation, or one pair of a trial that does not train.
    wall_s
        Seconds that it ran.
    thresholds
        What a trial without training has chosen.
    checkpoint, run
        Where its picker lies, and its MLflow run.
    reason
        Why it failed.
    """

    number: int
    values: dict[str, Value]
    settings: str
    state: State = "running"
    history: tuple[tuple[int, float], ...] = ()
    wall_s: float = 0.0
    thresholds: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    run: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """Its number with zeros before it, also that of its file."""
        return f"{self.number:03d}"

    @property
    def value(self) -> float:
        """The best it has reached, which is what its picker reaches; NaN before its first validation."""
        return max((value for _, value in self.history), default=math.nan)

    @property
    def epochs(self) -> int:
        """Epochs up to its last validation."""
        return self.history[-1][0] if self.history else 0

    @property
    def is_over(self) -> bool:
        """Whether it need not be run again."""
        return self.state in ("finished", "pruned")

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Trial:
        """Return what `to_json` wrote."""
        table = json.loads(text)
        return Trial(**{**table, "history": tuple((int(epoch), float(value)) for epoch, value in table["history"])})


def trial_job(job: TuneJob, space: SpaceSettings, values: Mapping[str, Value], where: str = "a trial") -> TrialJob:
    """Return the job of a trial: what all share, with the values of the trial.

    Raises
    ------
    ConfigError
        If a key or a value is wrong; `where` says whose.
    """
    told = _told(getattr(job, space.verb)) | {"catalogue": job.catalogue}
    if space.verb == "train":
        told["validation.objective"] = job.metric
    if space.verb == "threshold":
        told["splits"] = job.splits
    return read_settings_text(JOBS[space.verb], "", where, {**told, **values})  # type: ignore[return-value]


def variants(job: TuneJob, space: SpaceSettings) -> Iterator[TrialJob]:
    """Yield the jobs that stand for all a sweep may run: one for each end of a range and each choice, the other keys at their first.

    Raises
    ------
    ConfigError
        If a value makes no job; or if a key is not for a sweep to change, another part of the job is given than trials of this space have,
        the job gives what the sweep fills in, or it is to be a grid and a range has no steps.
    """
    _check(job, space)
    first = {key: parameter.ends[0] for key, parameter in space.space.items()}
    for key, parameter in space.space.items():
        for value in parameter.ends:
            yield trial_job(job, space, {**first, key: value}, f"space, with {key} = {value}")


def _check(job: TuneJob, space: SpaceSettings) -> None:
    verb = space.verb
    if taken := sorted({key.partition(".")[0] for key in space.space} & {*FILLED_IN[verb], *COMPARABLE[verb]}):
        raise ConfigError(f"space: {taken[0]} must be the same for all trials, or is filled in by the sweep; remove it from the space")
    if others := [other for other in TRIALS if other != verb and getattr(job, other) != type(job).model_fields[other].default]:
        raise ConfigError(f"sweep {job.name}: [{others[0]}] is given, but a trial of this space {TRIALS[verb]}; set [{verb}], or take another space")
    defaults = JOBS[verb]()
    if told := [key for key in FILLED_IN[verb] if getattr(getattr(job, verb), key) != getattr(defaults, key)]:
        raise ConfigError(f"sweep {job.name}: {verb}.{told[0]} is filled in by the sweep; it must not be given: set the sweep's own key instead")
    if job.train.validation.best_by != "objective":
        raise ConfigError(f"sweep {job.name}: train.validation.best_by = 'soft_f1', but trials are compared by {job.metric} of picks; leave it out")
    if job.register_as and verb != "train":
        raise ConfigError(f"register_as is {job.register_as!r}, but a trial of this space {TRIALS[verb]}; only trainings make a picker: leave it out")
    trials_of(job, space)


def trials_of(job: TuneJob, space: SpaceSettings) -> int:
    """Return how many trials a sweep has.

    Raises
    ------
    ConfigError
        If it is to be a grid and a range has no steps.
    """
    return min(job.trials, len(grid(space))) if job.search == "grid" else job.trials


def grid(space: SpaceSettings) -> list[dict[str, Value]]:
    """Return all combinations of values, the last key's changing fastest.

    Raises
    ------
    ConfigError
        If a range has no steps.
    """
    if endless := [key for key, parameter in space.space.items() if not parameter.grid()]:
        raise ConfigError(f"space: {endless[0]} is a range without steps, which no grid can cover; give a step or choices, or another search")
    return [dict(zip(space.space, values, strict=True)) for values in product(*(parameter.grid() for parameter in space.space.values()))]


def settings_hash(job: TuneJob, space: SpaceSettings, data: str) -> str:
    """Return a hash of what all trials share and their results depend on; `data` stands for tomograms and weights.

    How many trials there are and how they are searched may change when a sweep goes on.
    """
    shared = getattr(job, space.verb)
    free = ("catalogue", "output", "register_as", "champion", "actors", "gpus_per_actor", "readers", "permissive", "copick", "star")
    left_out: dict[str, Any] = dict.fromkeys(free, True)
    told = shared.model_dump_json(exclude=left_out | {"workers": {"gpu", "cpus", "threads", "max_failures"}})
    return hashlib.sha256("\n".join([told, space.model_dump_json(exclude={"base"}), job.metric, data]).encode()).hexdigest()[:12]


def winner_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the best of the trials that were finished, of equals the first; None where there is none."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: (trial.value, -trial.number), default=None)


def winner_text(job: TuneJob, space: SpaceSettings, trial: Trial, command: str) -> str:
    """Return the job file of the best trial, which says where it comes from."""
    best = trial_job(job, space, trial.values)
    update: dict[str, Any] = {"name": job.name} if isinstance(best, TrainJob) else {}
    if isinstance(best, PickJob):
        update["thresholds"] = trial.thresholds
    changed = ", ".join(f"{key} = {value}" for key, value in trial.values.items())
    lines = [
        f"{MADE_BY}: trial {trial.name} of sweep {job.name}, with {job.metric} {trial.value:.4f}. The sweep again: {command}",
        f"# It differs from the others in {changed}",
    ]
    return "\n".join(lines) + "\n" + dump_settings(best.model_copy(update=update))


def _told(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value of what settings say beyond defaults, so that another method or network need not know their options."""
    told: dict[str, Any] = {}
    for key, info in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, Settings):
            told |= _told(value, f"{prefix}{key}.")
        elif key == "name" or value != info.default:
            told[prefix + key] = deepcopy(value)  # a key of a sweep may be put into it
    return told
