"""Studies: the trials that a job asks for, and what is kept of each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tomoray.config import ConfigError, Settings, read_settings_text
from tomoray.jobs import ArmSettings, StudyJob, TrainJob

FILLED_IN = ("catalogue", "output", "name", "seed", "labelled_runs")  # of a train job, by the study
NOT_AN_ARMS = (*FILLED_IN, "start_from", "particles")  # what makes arms comparable is no arm's to change


@dataclass(frozen=True)
class Trial:
    """One training run of a study.

    Attributes
    ----------
    arm, labels, seed
        Which one: `labels` labelled runs, 0 for all.
    job
        What to train; `start_from` and `output` are filled in when it is known where trials lie.
    steps
        Optimiser steps in all, with those of the trials it starts from.
    settings
        Hash of all that its result depends on, the trials it starts from included.
    after
        Name of the trial it starts from; empty for none.
    """

    arm: str
    labels: int
    seed: int
    job: TrainJob
    steps: int
    settings: str
    after: str = ""

    @property
    def name(self) -> str:
        """Its name in the study, also that of its result."""
        return trial_name(self.arm, self.labels, self.seed)

    @property
    def own_steps(self) -> int:
        """Optimiser steps that it takes itself."""
        return steps_of(self.job)


@dataclass(frozen=True)
class Result:
    """What came of a trial, as it is kept in a file.

    Attributes
    ----------
    arm, labels, seed, steps, settings, after
        As in its `Trial`.
    wall_s
        Seconds that its training took since its last start, without the trials it starts from.
    scores
        Measure -> `Score.as_dict()` on the tomograms to score on.
    labelled_runs
        The runs that showed their labels.
    machine
        Where it ran: what -> which.
    checkpoint, run
        Where its picker lies, and its MLflow run.
    """

    arm: str
    labels: int
    seed: int
    steps: int
    settings: str
    after: str
    wall_s: float
    scores: dict[str, dict[str, Any]]
    labelled_runs: tuple[str, ...] = ()
    machine: dict[str, str] | None = None
    checkpoint: str = ""
    run: str = ""

    @property
    def name(self) -> str:
        """The name of its trial."""
        return trial_name(self.arm, self.labels, self.seed)

    def value(self, measure: str, particle: str = "") -> float:
        """Return the headline of a measure, or its value for one class; NaN where it is not defined."""
        score = self.scores[measure]
        found = next(c["value"] for c in score["classes"] if c["name"] == particle) if particle else score["value"]
        return math.nan if found is None else float(found)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Result:
        """Return what `to_json` wrote."""
        table = json.loads(text)
        return Result(**{**table, "labelled_runs": tuple(table["labelled_runs"])})


def trial_name(arm: str, labels: int, seed: int) -> str:
    """Return the name of a trial: `arm-l2-s0`, or `arm-lall-s0` where all runs show their labels."""
    return f"{arm}-l{labels or 'all'}-s{seed}"


def steps_of(job: TrainJob) -> int:
    """Return how many optimiser steps a training job takes."""
    return job.epochs * job.steps_per_epoch


def expand(job: StudyJob, data: str = "") -> tuple[Trial, ...]:
    """Return the trials of a study, each behind the one it starts from: all arms of the first seed, then of the next.

    `data` stands for the tomograms; results are only valid for the same.

    Raises
    ------
    ConfigError
        If a name occurs twice or is not there, an arm starts from one that does not stand before it, or a key or value of an arm is wrong.
    """
    _check(job)
    jobs = {arm.name: _train_job(job, arm) for arm in job.arms}
    trials: dict[str, Trial] = {}
    for labels in dict.fromkeys(job.labelled_runs):
        for seed in dict.fromkeys(job.seeds):
            for arm in job.arms:
                shown = 0 if arm.labels == "all" else labels
                name = trial_name(arm.name, shown, seed)
                if name not in trials:
                    before = trials.get(trial_name(arm.start_from, shown, seed))
                    update = {"catalogue": job.catalogue, "name": name, "seed": seed, "labelled_runs": shown}
                    trials[name] = _trial(arm.name, jobs[arm.name].model_copy(update=update), before, f"{job.splits} {data}")
    return tuple(trials.values())


def _trial(arm: str, job: TrainJob, before: Trial | None, data: str) -> Trial:
    left_out: dict[str, Any] = dict.fromkeys(("catalogue", "output", "name", "register_as", "champion"), True)
    told = job.model_dump_json(exclude=left_out | {"workers": {"gpu", "cpus", "threads", "max_failures"}})
    settings = hashlib.sha256("\n".join([told, before.settings if before else "", data]).encode()).hexdigest()[:12]
    steps = steps_of(job) + (before.steps if before else 0)
    assert isinstance(job.labelled_runs, int)
    return Trial(arm, job.labelled_runs, job.seed, job, steps, settings, before.name if before else "")


def settings_hash(trials: Sequence[Trial]) -> str:
    """Return one hash for all that a study's results depend on."""
    return hashlib.sha256("\n".join(trial.settings for trial in trials).encode()).hexdigest()[:12]


def find_arm(job: StudyJob, name: str) -> ArmSettings:
    """Return the arm of a name."""
    return next(arm for arm in job.arms if arm.name == name)


def _check(job: StudyJob) -> None:
    names = [arm.name for arm in job.arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"study {job.name}: arm {', '.join(twice)} is listed more than once; names must differ: rename one")
    for what, name in (("reference", job.reference), ("full", job.full)):
        if name and name not in names:
            raise ConfigError(f"study {job.name}: {what} = {name!r} is no arm; it must be one of {', '.join(names)}: correct it")
    for place, arm in enumerate(job.arms):
        if arm.start_from and arm.start_from not in names[:place]:
            there = f"these are {', '.join(names[:place])}" if place else "there is none"
            raise ConfigError(f"arm {arm.name!r}: start_from = {arm.start_from!r} must be an arm listed before it; {there}: correct it, or move it")
        if arm.start_from and find_arm(job, arm.start_from).labels != arm.labels:
            raise ConfigError(f"arm {arm.name!r}: it shows other labels than {arm.start_from!r}, which it starts from; make their `labels` the same")
    defaults = TrainJob()
    if told := [key for key in FILLED_IN if getattr(job.train, key) != getattr(defaults, key)]:
        raise ConfigError(f"study {job.name}: train.{told[0]} is filled in by the study; it must not be given: set the study's own key instead")


def _train_job(job: StudyJob, arm: ArmSettings) -> TrainJob:
    """Return the shared train job with an arm's changes."""
    if taken := sorted({key.partition(".")[0] for key in arm.changes} & set(NOT_AN_ARMS)):
        raise ConfigError(f"arm {arm.name!r}: {taken[0]} must be the same for all arms, or is filled in by the study; remove it from the changes")
    return read_settings_text(TrainJob, "", f"arm {arm.name!r}", {**_told(job.train), **arm.changes})


def _told(settings: Settings) -> dict[str, Any]:
    """Return what settings say beyond defaults, so that an arm of another method or network need not know the options of the shared one."""
    told: dict[str, Any] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, Settings):
            told[key] = _told(value)
        elif key == "name" or value != field.default:
            told[key] = value
    return told
