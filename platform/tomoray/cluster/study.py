"""Studies under Ray: each trial trains in a task of its own; then its picker picks what no training saw, and is scored."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from tqdm import tqdm

import tomoray
from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.checkpoint import JOB, load_picker
from tomoray.cluster.session import on_cluster, session, threads_per_worker
from tomoray.cluster.tracking import FAILED, FINISHED, FOLDER, Run, start_run
from tomoray.cluster.train import BEST, Trained, train, training_rows
from tomoray.comparison import study_csv, study_metrics, study_table
from tomoray.config import ConfigError, dump_settings
from tomoray.inference import for_inference
from tomoray.jobs import StudyJob, WorkerSettings
from tomoray.scoring import precision_at_n, score_picks
from tomoray.study import Result, Trial, expand
from tomoray.thresholds import apply_thresholds
from tomoray.validation import find_candidates, known_picks

log = logging.getLogger(__name__)

TABLE, DATA = "study.md", "study.csv"
TRIAL_CPUS = 0.1  # logical CPUs of a task that only waits for its workers
READING_CPUS = 1.0  # that each trial's workers must leave free, or nothing would feed them
RETRIES = 2  # of a task that died with its node; what a trial raises is not tried again
REFRESH_S = 5.0


@dataclass(frozen=True)
class Study:
    """The end of a study: its table and where it lies, what was trained now, and what failed and why."""

    text: str
    folder: str
    results: tuple[Result, ...]
    trained: tuple[str, ...]
    failures: Mapping[str, str]
    run: Run


@dataclass(frozen=True)
class Task:
    """What a trial's tasks are told: the trial with its places filled in, the tomograms to score on, and where its result goes."""

    trial: Trial
    rows: tuple[CatalogueRow, ...]
    target: str


def run_study(job: StudyJob) -> Study:
    """Train and score the trials of a study that have no result yet, and compare all.

    Raises
    ------
    ConfigError
        As `plan`; or if there are results of other settings or tomograms under the study's name.
    """
    folder = storage.join(job.output, job.name)
    trials, rows = plan(job)
    done = finished(folder, trials)
    todo = [trial for trial in trials if trial.name not in done]
    storage.write_bytes(storage.join(folder, JOB), dump_settings(job).encode())
    run = start_run("study", job.name, job, tags={FOLDER: folder})
    with run.failed_if_left():
        failures = _run([Task(trial, rows, _result_uri(folder, trial)) for trial in todo], job, run, len(done)) if todo else {}
        results = tuple(finished(folder, trials).values())
        text = study_table(job, trials, results, failures, command=f"tomoray study {storage.join(folder, JOB)}")
        for name, content in ((TABLE, text), (DATA, study_csv(results))):
            storage.write_bytes(storage.join(folder, name), content.encode())
            run.add_text(content, name)
        run.add_text(dump_settings(job), JOB)
        run.log(study_metrics(job, results), 0)
    run.end(FAILED if failures else FINISHED)
    return Study(text, folder, results, tuple(r.name for r in results if r.name not in done), failures, run)


def plan(job: StudyJob) -> tuple[tuple[Trial, ...], tuple[CatalogueRow, ...]]:
    """Return the trials of a study with all places filled in, and the tomograms to score on, after checking that each can be trained.

    Raises
    ------
    ConfigError
        As `study.expand` and `train.training_rows`; or if there is nothing to score on, or fewer labelled runs than are to show labels.
    """
    rows = read_catalogue(job.catalogue)
    scored = tuple(row for row in rows if row.is_labelled and row.split in job.splits)
    runs = [row.run for row in scored]
    if not scored:
        raise ConfigError(f"{job.catalogue}: no labelled tomogram of split {', '.join(job.splits)} to score on; index with a share for it")
    if twice := sorted({run for run in runs if runs.count(run) > 1}):
        raise ConfigError(f"{job.catalogue}: {', '.join(twice[:5])} stand there more than once; picks are scored by run: index one tomogram per run")
    trials: dict[str, Trial] = {}
    runs_folder = storage.join(job.output, job.name, "runs")
    for trial in expand(job, _fingerprint(rows)):
        name = f"{trial.name}-{trial.settings[:6]}"  # so that a run of other settings is never gone on with
        start = trials[trial.after].job if trial.after else None
        start_from = storage.join(start.output, start.name, BEST) if start else trial.job.start_from
        update = {"output": runs_folder, "name": name, "start_from": start_from}
        trials[trial.name] = replace(trial, job=trial.job.model_copy(update=update))
    for trial in {(t.arm, t.labels): t for t in trials.values()}.values():
        _check_rows(trial)
    return tuple(trials.values()), scored


def _fingerprint(rows: Sequence[CatalogueRow]) -> str:
    told = sorted((row.tomogram_id, row.run, row.split, row.shape_zyx, sorted(row.particles.items())) for row in rows)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _check_rows(trial: Trial) -> None:
    try:
        labelled = training_rows(trial.job)[0]["labelled"]
    except ConfigError as error:
        raise ConfigError(f"arm {trial.arm!r}: {error}") from None
    if len(labelled) < trial.labels:
        raise ConfigError(
            f"labelled_runs: {trial.labels} runs are to show their labels; {trial.job.catalogue} has {len(labelled)} labelled ones to train on: "
            "ask for fewer, or index with smaller shares of validation and test"
        )


def _result_uri(folder: str, trial: Trial) -> str:
    return storage.join(folder, "trials", f"{trial.name}.json")


def finished(folder: str, trials: Sequence[Trial]) -> dict[str, Result]:
    """Return name -> result of the trials that have one.

    Raises
    ------
    ConfigError
        If a result is of other settings or tomograms.
    """
    found = {}
    for trial in trials:
        where = _result_uri(folder, trial)
        if storage.exists(where):
            found[trial.name] = result = Result.from_json(storage.read_bytes(where))
            if result.settings != trial.settings:
                raise ConfigError(f"{where}: a result of other settings or tomograms than the job's; give the study another name, or remove the file")
    return found


def _run(tasks: Sequence[Task], job: StudyJob, parent: Run, done: int) -> dict[str, str]:
    """Run trials, each when the one it starts from is over, and return name -> reason of those that failed."""
    failures: dict[str, str] = {}
    waiting, running = list(tasks), dict[ray.ObjectRef, Task]()
    with session(), tqdm(total=done + len(tasks), initial=done, desc=f"study {job.name}", unit="trial") as bar:
        limit = side_by_side(job, [task.trial.job.workers for task in tasks])
        while waiting or running:
            unfinished = {task.trial.name for task in (*waiting, *running.values())}
            for task in [task for task in waiting if task.trial.after not in unfinished][: limit - len(running)]:
                waiting.remove(task)
                if task.trial.after in failures:
                    failures[task.trial.name] = f"{task.trial.after}, which it starts from, failed"
                    bar.update(1)
                else:
                    running[_start(task, parent)] = task
            for ref in ray.wait(list(running), timeout=REFRESH_S)[0] if running else ():
                name = running.pop(ref).trial.name
                try:
                    ray.get(ref)
                except RayError as error:
                    failures[name] = reason_of(error)
                    log.warning("%s failed: %s", name, failures[name])
                bar.update(1)
            bar.set_postfix_str(f"{len(running)} running, {len(failures)} failed", refresh=sys.stderr.isatty())
    return failures


def side_by_side(job: StudyJob, workers: Sequence[WorkerSettings]) -> int:
    """Return how many trials run at a time: as many as the job says or the cores serve, and never more than Ray can find places for."""
    has: dict[str, float] = ray.cluster_resources()
    most = has.get("CPU", 0.0) / max(w.count * w.cpus + TRIAL_CPUS + READING_CPUS for w in workers)
    if any(w.gpu for w in workers):
        most = min(most, has.get("GPU", 0.0) / max(w.count for w in workers if w.gpu))
    cores = has.get("CPU", 1.0) if on_cluster() else os.cpu_count() or 1  # a local Ray counts more CPUs than there are
    wanted = job.parallel or max(1, int(cores / max(_threads(w) for w in workers)))
    return max(1, min(wanted, int(most)))


def _threads(workers: WorkerSettings) -> int:
    """Return the threads of all workers of a trial."""
    return workers.count * (workers.threads or threads_per_worker(workers.count))


def _start(task: Task, parent: Run) -> ray.ObjectRef:
    """Start a trial; scoring waits for training without holding the GPU that training needs."""
    trained = ray.remote(num_cpus=TRIAL_CPUS, max_retries=RETRIES)(_train).remote(task, parent)
    return ray.remote(num_cpus=1, num_gpus=1 if task.trial.job.workers.gpu else 0, max_retries=RETRIES)(_score).remote(trained, task)


def _train(task: Task, parent: Run) -> tuple[Trained, float]:
    began = time.perf_counter()
    trained = train(task.trial.job, parent=parent)
    return trained, time.perf_counter() - began


def _score(trained_in: tuple[Trained, float], task: Task) -> None:
    """Score a trained picker on tomograms that neither its training nor its thresholds saw, and write the trial's result."""
    (trained, wall_s), trial = trained_in, task.trial
    job = trial.job
    torch.set_num_threads(_threads(job.workers))
    picker, card = load_picker(trained.checkpoint, device="cuda" if job.workers.gpu else "cpu")
    picker.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    lean = for_inference(picker, job.precision)
    truth, candidates = [known_picks(row, job) for row in task.rows], [find_candidates(lean, card, row, job) for row in task.rows]
    scores = score_picks(truth, [apply_thresholds(one, card.thresholds) for one in candidates], card.particles)
    scores["precision@N"] = precision_at_n(truth, candidates, card.particles)
    result = Result(
        trial.arm,
        trial.labels,
        trial.seed,
        trial.steps,
        trial.settings,
        trial.after,
        wall_s,
        scores={measure: score.as_dict() for measure, score in scores.items()},
        labelled_runs=tuple(row.run for row in training_rows(job)[0]["labelled"]),
        machine=machine(gpu=job.workers.gpu),
        checkpoint=trained.checkpoint,
        run=trained.run.run_id,
    )
    storage.write_bytes(task.target, result.to_json().encode())
    trained.run.log({f"test {measure}": score.value for measure, score in scores.items()}, trial.own_steps)


def machine(*, gpu: bool = False) -> dict[str, str]:
    """Return what this process runs on: what -> which."""
    about = {"processor": _processor(), "cores": str(os.cpu_count()), "torch": torch.__version__, "tomoray": tomoray.__version__}
    return about | ({"GPU": torch.cuda.get_device_name()} if gpu else {})


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def reason_of(error: Any) -> str:
    """Return the last line of what a trial raised, which says what was wrong."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
