"""Sweeps under Ray Tune: a trial is a job with some of its keys replaced, run in a process of its own.

Tune starts trials and stops them; what becomes of them is kept in a file for each, and from these a sweep goes on that was stopped or
killed. Tune's own snapshots would not do: they come ten seconds apart at least, may be cut short by what killed the sweep, hold nothing of
the scheduler, and where one cannot be read Tune begins anew (Ray 2.60).

There is no population based training: trials that train through Ray Train hand Tune no checkpoint, so that nothing is ever taken over from
the better ones, silently (Ray 2.60).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from tqdm import tqdm

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.checkpoint import JOB, fingerprint
from tomoray.cluster.pick import BAR, actors_per_gpu
from tomoray.cluster.session import on_cluster, session
from tomoray.cluster.study import RETRIES, side_by_side
from tomoray.cluster.tracking import FAILED, FINISHED, FOLDER, Run, start_run
from tomoray.cluster.train import BEST, build_method, counts_for, training_rows
from tomoray.cluster.tune_trial import REASON, Plan, run_trial
from tomoray.config import ConfigError, dump_settings
from tomoray.ensemble import ensemble_card
from tomoray.held_out import card_of, truth_and_candidates
from tomoray.jobs import PickJob, StudyJob, ThresholdJob, TuneJob
from tomoray.results import find_tables
from tomoray.search import MADE_BY, Trial, settings_hash, variants, winner_of, winner_text
from tomoray.sweep import Sweep
from tomoray.sweep_report import sweep_csv, sweep_page, sweep_table, trial_row
from tomoray.validation import MEASURED

log = logging.getLogger(__name__)

TABLE, DATA, PAGE, SPACE = "sweep.md", "sweep.csv", "sweep.html", "space.toml"
TRIAL_CPUS = 0.1  # of a trial that only waits for its workers
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which is never silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C would end the sweep as if it were done
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # snapshots that nobody reads
}


@dataclass(frozen=True)
class Swept:
    """The end of a sweep: its table, its trials, and where things lie: what -> where."""

    text: str
    trials: tuple[Trial, ...]
    ran: int
    winner: Trial | None
    files: Mapping[str, str]
    run: Run


def run_sweep(job: TuneJob) -> Swept:
    """Run the trials of a sweep that are not over yet, and keep what did best.

    Raises
    ------
    ConfigError
        As `plan` and `known_trials`.
    """
    planned = plan(job)
    known = known_trials(planned)
    for name, text in ((JOB, dump_settings(job)), (SPACE, dump_settings(planned.space))):
        storage.write_bytes(storage.join(planned.folder, name), text.encode())
    run = start_run("tune", job.name, job, tags={FOLDER: planned.folder})
    board = _Board(planned)
    sweep = Sweep(job, planned.space, planned.settings, known, board.keep)
    with run.failed_if_left():
        if sweep.todo:
            with session(), board.showing(sweep):
                _search(planned, sweep, run)
        children = run.end_children()
        trials = tuple(_completed(planned, trial, children) for _, trial in sorted(sweep.trials.items()))
        for trial in trials:
            board.keep(trial)
        return _conclude(planned, trials, len(board.shown), run)


def plan(job: TuneJob) -> Plan:
    """Return a sweep after checking that each of its trials could be run.

    Raises
    ------
    ConfigError
        If a key or a value of the space is wrong, there is nothing to train or to compare on, or the winner's file is somebody else's.
    """
    space = job.read_space()
    jobs = list(variants(job, space))
    rows, data = (_to_train_on if space.verb == "train" else _to_compare_on)(job, jobs)
    planned = Plan(job, space, settings_hash(job, space, data), rows)
    if storage.exists(planned.winner) and not storage.read_bytes(planned.winner).decode().startswith(MADE_BY):
        raise ConfigError(f"{planned.winner}: a job file that no sweep has written; the winner would replace it: set winner to another file")
    return planned


def _to_train_on(job: TuneJob, jobs: list[Any]) -> tuple[tuple[CatalogueRow, ...], str]:
    """Return no rows, and what stands for the data of trainings: tomograms, and weights to start from."""
    found = [training_rows(one) for one in jobs]
    build_method(jobs[0], counts_for(jobs[0], found[0][0]["labelled"]))
    rows = {row.tomogram_id: row for streams, validation in found for row in (*validation, *(r for members in streams.values() for r in members))}
    starts = sorted(fingerprint(start) for start in {one.start_from for one in jobs} if start)
    return (), _told([row for _, row in sorted(rows.items())], starts)


def _to_compare_on(job: TuneJob, jobs: list[Any]) -> tuple[tuple[CatalogueRow, ...], str]:
    """Return the rows to compare picks or thresholds on, and what stands for them and the weights behind them."""
    rows = tuple(row for row in read_catalogue(job.catalogue) if row.is_labelled and row.split in job.splits)
    if not rows:
        raise ConfigError(f"{job.catalogue}: no labelled tomogram of split {', '.join(job.splits)} to compare trials on; index with a share for it")
    weights = set[str]()
    for checkpoints in {one.checkpoints for one in jobs if isinstance(one, PickJob)}:
        ensemble_card(checkpoints)
        weights |= {fingerprint(uri) for uri in checkpoints}
    for one in {(one.candidates, one.checkpoints): one for one in jobs if isinstance(one, ThresholdJob)}.values():
        folder = find_tables(one.candidates)
        truth_and_candidates(folder, rows, card_of(one, folder).particles)
    return rows, _told(rows, sorted(weights))


def _told(rows: Any, weights: list[str]) -> str:
    told = [(row.tomogram_id, row.run, row.split, row.shape_zyx, sorted(row.particles.items())) for row in rows]
    return hashlib.sha256(repr((told, weights)).encode()).hexdigest()


def known_trials(planned: Plan) -> list[Trial]:
    """Return the trials that the sweep's folder knows, in order.

    Raises
    ------
    ConfigError
        If one is of other settings or tomograms.
    """
    folder = storage.join(planned.folder, "trials")
    names = [name for name in (storage.list_names(folder) if storage.exists(folder) else []) if name.endswith(".json")]
    trials = [Trial.from_json(storage.read_bytes(storage.join(folder, name))) for name in names]
    for trial in trials:
        if trial.settings != planned.settings:
            where = planned.file_of(trial.number)
            raise ConfigError(
                f"{where}: a trial of other settings, space or tomograms than the job's; give the sweep another name, or remove its folder"
            )
    return sorted(trials, key=lambda trial: trial.number)


def at_a_time(planned: Plan) -> int:
    """Return how many trials run at a time: as many as the job says, or as cores and GPUs serve."""
    job = planned.job
    if planned.space.verb == "train":
        return side_by_side(StudyJob(parallel=job.parallel), [job.train.workers])
    if job.parallel:
        return job.parallel
    if planned.space.verb == "pick":  # a picker uses all cores
        share = job.pick.gpus_per_actor
        return max(1, int(ray.cluster_resources().get("GPU", 0)) * actors_per_gpu(share)) if share else 1
    return int(ray.cluster_resources()["CPU"]) if on_cluster() else os.cpu_count() or 1


def _search(planned: Plan, sweep: Sweep, run: Run) -> None:
    """Let Tune run what trials the sweep asks for."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told in the table
    resources = {"CPU": TRIAL_CPUS}
    if planned.space.verb != "train":
        resources = {"CPU": 1.0, "GPU": planned.job.pick.gpus_per_actor}
    limit = at_a_time(planned)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, planned=planned, parent=run, at_a_time=limit), resources),
        tune_config=tune.TuneConfig(
            search_alg=_Ask(sweep),
            scheduler=_Judge(sweep, MEASURED[planned.job.metric]),
            num_samples=sweep.todo,
            max_concurrent_trials=limit,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:03d}",
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=_absolute(planned.folder), verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)
        ),
    )
    tuner.fit()


class _Ask(Searcher):  # type: ignore[misc]
    """What Tune asks for the next trial."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self.sweep = sweep

    def suggest(self, trial_id: str) -> dict[str, int] | str:
        """Return the number of the trial to start; what its values are its file says."""
        trial = self.sweep.next()
        return {"number": trial.number} if trial else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the sweep hears it from the scheduler."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trials' files are what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def __getstate__(self) -> dict[str, Any]:  # Tune keeps a copy on disk that nobody reads
        return {}


class _Judge(FIFOScheduler):  # type: ignore[misc]
    """What Tune tells of every trial, and asks whether it may go on."""

    def __init__(self, sweep: Sweep, measure: str) -> None:
        super().__init__()
        self.sweep, self.measure = sweep, measure

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on after what it reported."""
        if self.measure not in result:
            return str(self.CONTINUE)
        thresholds = json.loads(result.get("thresholds", "{}"))
        behind = self.sweep.report(trial.config["number"], int(result["epoch"]), float(result[self.measure]), thresholds)
        return str(self.STOP if behind else self.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take note that a trial is over, be it that it ended, was stopped, or raised something."""
        self.sweep.end(trial.config["number"], result.get(REASON, ""))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Take note of a trial that died too often. Tune calls this for one that it starts again too, whose status is ERROR by then."""
        if trial.status != trial.ERROR:
            self.sweep.end(trial.config["number"], "it died each time it was tried; see Ray's log")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Board:
    """Keeps every trial in its file, and shows a line for each that is over below a bar for all."""

    def __init__(self, planned: Plan) -> None:
        self.planned, self.shown = planned, set[int]()
        self.sweep: Sweep | None = None
        self.bar: tqdm[Any] | None = None

    def keep(self, trial: Trial) -> None:
        """Write a trial down, and show what became of it."""
        storage.write_bytes(self.planned.file_of(trial.number), trial.to_json().encode())
        if self.bar is None or self.sweep is None:
            return
        if trial.state != "running" and trial.number not in self.shown:
            cells = trial_row(self.planned.job, self.planned.space, trial)
            if not self.shown:
                self.bar.write("  ".join(f"{label:>9}" for label in cells))
            self.bar.write("  ".join(f"{cell:>{max(9, len(label))}}" for label, cell in cells.items()))
            self.shown.add(trial.number)
            self.bar.update(1)
        trials = self.sweep.trials.values()
        running, pruned = (sum(trial.state == state for trial in trials) for state in ("running", "pruned"))
        best = winner_of(trials)
        self.bar.total = self.sweep.total  # less than before where no values are left to try
        self.bar.set_postfix_str(f"{running} running, {pruned} stopped early" + (f", best {best.value:.3f} ({best.name})" if best else ""))

    @contextmanager
    def showing(self, sweep: Sweep) -> Iterator[None]:
        """Show how far a sweep is for the length of a `with` block."""
        over = sum(trial.is_over for trial in sweep.trials.values())
        with tqdm(total=sweep.total, initial=over, desc=f"tune {self.planned.job.name}", unit="trial", bar_format=BAR) as bar:
            self.sweep, self.bar = sweep, bar
            yield
        self.sweep = self.bar = None


def _completed(planned: Plan, trial: Trial, children: Mapping[str, str]) -> Trial:
    """Return a trial with its MLflow run, and where its picker lies."""
    folder = planned.folder_of(trial)
    trained = planned.space.verb == "train" and trial.state == "finished"
    return replace(trial, run=children.get(folder, trial.run), checkpoint=storage.join(folder, BEST) if trained else "")


def _conclude(planned: Plan, trials: tuple[Trial, ...], ran: int, run: Run) -> Swept:
    """Write the winner, the table and the page; record all in MLflow."""
    job, space, folder = planned.job, planned.space, planned.folder
    command, winner = f"tomoray tune {storage.join(folder, JOB)}", winner_of(trials)
    files = _keep_winner(planned, winner, command) if winner else {}
    if winner and job.register_as:
        files["model"] = replace(run, run_id=winner.run).register(job.register_as, champion=True)
    files |= {"table": storage.join(folder, TABLE), "values": storage.join(folder, DATA), "page": storage.join(folder, PAGE)}
    text = sweep_table(job, space, trials, command=command)
    for name, content in ((TABLE, text), (DATA, sweep_csv(space, trials)), (PAGE, sweep_page(job, space, trials, files))):
        storage.write_bytes(storage.join(folder, name), content.encode())
        run.add_text(content, name)
    run.add_text(dump_settings(job), JOB)
    counts = {state: float(sum(trial.state == state for trial in trials)) for state in ("finished", "pruned", "failed")}
    run.log(counts | ({MEASURED[job.metric]: winner.value} if winner else {}), len(trials))
    run.end(FINISHED if winner else FAILED)
    return Swept(text, trials, ran, winner, files, run)


def _keep_winner(planned: Plan, winner: Trial, command: str) -> dict[str, str]:
    """Write the job file of the best trial and copy its picker; return what lies where."""
    text = winner_text(planned.job, planned.space, winner, command).encode()
    files = {"winner": planned.winner, "copy of it": storage.join(planned.folder, f"{planned.space.verb}_{planned.job.name}.toml")}
    for where in files.values():
        storage.write_bytes(where, text)
    if winner.checkpoint:
        files["picker"] = storage.join(planned.folder, BEST)
        with storage.local_copy(winner.checkpoint) as source, storage.new_folder(files["picker"]) as new:
            for path in source.iterdir():
                (new / path.name).write_bytes(path.read_bytes())
    return files


def _absolute(uri: str) -> str:
    return str(storage.local_path(uri).resolve()) if storage.is_local(uri) else uri
