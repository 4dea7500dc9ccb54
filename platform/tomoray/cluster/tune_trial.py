"""One trial of a sweep, as Ray Tune runs it: a training, picks of labelled tomograms, or thresholds for candidates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.integration.ray_train import TuneReportCallback

from tomoray import storage
from tomoray.catalogue import CatalogueRow
from tomoray.checkpoint import Card
from tomoray.cluster.pick import candidates_folder
from tomoray.cluster.pick_stages import Predict, commit, items, read
from tomoray.cluster.study import reason_of
from tomoray.cluster.tracking import FOLDER, Run, start_run
from tomoray.cluster.train import train
from tomoray.held_out import card_of, held_out_score, thresholds_for, truth_and_candidates
from tomoray.jobs import PickJob, ThresholdJob, TrainJob, TuneJob
from tomoray.results import committed, find_tables
from tomoray.search import Trial, TrialJob, trial_job
from tomoray.spaces import SpaceSettings
from tomoray.thresholds import choose_thresholds
from tomoray.validation import MEASURED

log = logging.getLogger(__name__)

REASON = "reason"  # what a trial reports that raised something


@dataclass(frozen=True)
class Plan:
    """A sweep that can be run: its space, a hash of what all its results depend on, and the tomograms to compare on without training."""

    job: TuneJob
    space: SpaceSettings
    settings: str
    rows: tuple[CatalogueRow, ...]

    @property
    def folder(self) -> str:
        """Where everything lies that it makes."""
        return storage.join(self.job.output, self.job.name)

    @property
    def winner(self) -> str:
        """The job file to write with the best settings."""
        return self.job.winner or storage.join("jobs", f"{self.space.verb}_{self.job.name}.toml")

    def job_of(self, trial: Trial) -> TrialJob:
        """Return the job of a trial, its places filled in."""
        job = trial_job(self.job, self.space, trial.values, f"trial {trial.name}")
        if isinstance(job, TrainJob):
            return job.model_copy(update={"output": storage.join(self.folder, "runs"), "name": f"{self.job.name}-{trial.name}"})
        return job.model_copy(update={"output": self.folder})

    def file_of(self, number: int) -> str:
        """Return where a trial is kept."""
        return storage.join(self.folder, "trials", f"{number:03d}.json")

    def folder_of(self, trial: Trial) -> str:
        """Return where a trial's own files lie, which also names its MLflow run."""
        return storage.join(self.folder, "runs", f"{self.job.name}-{trial.name}")


def run_trial(config: Mapping[str, Any], *, planned: Plan, parent: Run, at_a_time: int) -> None:
    """Run one trial; this is what Tune starts, stops with all that it started, and starts again if it dies with its node.

    What a trial raises, whatever its settings broke, it would raise again: that is logged and reported as its end, and the others go on.
    """
    trial = Trial.from_json(storage.read_bytes(planned.file_of(config["number"])))
    try:
        _run(planned.job_of(trial), trial, planned, parent, at_a_time)
    except Exception as error:
        if isinstance(getattr(error, "cause", error), RayError):  # not what a task has raised: what it runs in, or on, has died
            raise
        log.exception("trial %s", trial.name)
        tune.report({REASON: reason_of(error)})


def _run(job: TrialJob, trial: Trial, planned: Plan, parent: Run, at_a_time: int) -> None:
    if isinstance(job, TrainJob):
        # Ray frees what a stopped trainer held through an actor that looks for the one Ray of this machine, and gives up where there are two,
        # unless it inherits an address
        here = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": here})(_train)
        ray.get(task.remote(job, parent, TuneReportCallback()))
        return
    run = start_run(planned.space.verb, f"{planned.job.name}-{trial.name}", job, tags={FOLDER: planned.folder_of(trial)}, parent=parent)
    value, thresholds = _value_of(job, planned, at_a_time)
    measured = {MEASURED[planned.job.metric]: value}
    run.log(measured, 1)
    run.end()
    tune.report({**measured, "epoch": 1, "thresholds": json.dumps(thresholds)})


def _train(job: TrainJob, parent: Run, callback: TuneReportCallback) -> None:
    train(job, parent=parent, callbacks=[callback])


def _value_of(job: PickJob | ThresholdJob, planned: Plan, at_a_time: int) -> tuple[float, dict[str, float]]:
    """Return what picks or thresholds are worth on tomograms that thresholds were not chosen on, and the thresholds chosen on all."""
    metric = planned.job.metric
    if isinstance(job, ThresholdJob):
        folder, objective, regularise = find_tables(job.candidates), job.objective, job.regularise
        card = card_of(job, folder)
    else:
        objective, regularise = metric, "none"
        folder, card = _pick(job, planned.rows, at_a_time)
    truth, candidates = truth_and_candidates(folder, planned.rows, card.particles)
    score = held_out_score(truth, candidates, card.particles, metric=metric, objective=objective, regularise=regularise)
    chosen = choose_thresholds(truth, candidates, card.particles, objective=objective, regularise=regularise)
    return score.value, thresholds_for(card, chosen)


def _pick(job: PickJob, rows: tuple[CatalogueRow, ...], at_a_time: int) -> tuple[str, Card]:
    """Return where the candidates of tomograms lie, as `tomoray pick` finds them, and the card behind them.

    They are found once for each network and its settings.
    """
    predict = Predict(job, at_a_time)
    folder = candidates_folder(job, predict.card)
    done = committed(folder)
    for item in items([row for row in rows if row.tomogram_id not in done]):
        row = read(item, card=predict.card, permissive=job.permissive)
        predicted = predict({name: [value] for name, value in row.items()})  # type: ignore[misc]
        told = commit({name: column[0] for name, column in predicted.items()}, folder=folder)
        if told["error"]:
            raise OSError(told["error"])
    return folder, predict.card
