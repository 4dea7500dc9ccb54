"""Bulk picking: read | predict | commit, with Ray Data, one committed table per tomogram.

Reading tasks hand prepared volumes as float16 to a pool of predicting actors, which hand candidates to writing tasks; each stage
works while the others do. What is committed is what is done: a rerun leaves out tomograms whose table exists, and a task that ran twice
has written the same table twice. The name of a table depends on the models and the settings, so another model never finds old picks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
from mlflow.exceptions import MlflowException
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from tqdm import tqdm

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.checkpoint import Card, fingerprint
from tomoray.cluster.pace import Pace
from tomoray.cluster.pick_stages import Predict, commit, items, read
from tomoray.cluster.session import on_cluster, session
from tomoray.cluster.tracking import Run, start_run
from tomoray.config import ConfigError, dump_settings
from tomoray.ensemble import ensemble_card, load_ensemble
from tomoray.formats.failures import DIED, Failure, write_failures
from tomoray.jobs import PickJob
from tomoray.results import choose, committed, write_picks

log = logging.getLogger(__name__)

NO_PROGRESS_TIMEOUT_S = 7200.0  # a cluster may take this long to bring its first GPU node
CORES_PER_ACTOR = 8  # few actors with many threads: each may take whole volumes into memory, where many would have to cut them
RECORD_EVERY_S = 10.0
LARGEST_ARTEFACT_BYTES = 50_000_000
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"


@dataclass(frozen=True)
class Picked:
    """The end of a picking job: what is there, what is not, and where."""

    candidates: str
    picks_csv: str
    picked: tuple[str, ...]
    failures: tuple[Failure, ...]
    run: Run
    wall_s: float
    skipped: int


class Tally:
    """What the tasks of a run have reported so far."""

    def __init__(self, actors: int) -> None:
        self.actors, self.began = actors, time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}  # id -> reason

    def add(self, row: dict[str, Any]) -> None:
        """Count what one task reported."""
        self.rows.append(row)
        if row["error"]:
            self.failures[row["tomogram_id"]] = row["error"]
            log.warning("%s: %s", row["tomogram_id"], row["error"])

    def figures(self) -> dict[str, float]:
        """Return the rate, mean seconds per stage, the share of time that predicting actors were busy, and how much was read.

        What was read counts as values in memory; files may be smaller, where they are compressed.
        """
        wall_s, count = time.perf_counter() - self.began, max(1, len(self.rows))
        total = {name: sum(row[name] for row in self.rows) for name in ("read_s", "predict_s", "commit_s", "values_bytes")}
        seconds = {name: total[name] / count for name in ("read_s", "predict_s", "commit_s")}
        rate, busy = 3600 * len(self.rows) / wall_s, total["predict_s"] / (self.actors * wall_s)
        return {**seconds, "tomograms_per_hour": rate, "device_busy_share": busy, "values_read_megabytes": total["values_bytes"] / 1e6}

    def as_csv(self) -> str:
        """Return one line per tomogram: when it was done, and what it took."""
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, ("tomogram_id", "done_at", "read_s", "predict_s", "commit_s", "values_bytes", "error"), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        return text.getvalue()


def pick_all(job: PickJob) -> Picked:
    """Pick every tomogram of a catalogue that is not picked yet, and derive picks from all candidates.

    Raises
    ------
    ConfigError
        If the catalogue has no row of the wanted splits, two rows share a run, a class has no threshold, checkpoints disagree, or there is
        no GPU where one is asked for.
    FormatError
        If a checkpoint is none, or damaged.
    """
    began = time.perf_counter()
    rows, card = wanted_rows(job), ensemble_card(job.checkpoints)
    thresholds, folder = choose(card, job.thresholds, job.numbers), candidates_folder(job, card)
    before = committed(folder)
    todo = [row for row in rows if row.tomogram_id not in before]
    log.info("%d tomograms, %d already picked, %d to do", len(rows), len(rows) - len(todo), len(todo))
    if todo:
        load_ensemble(job.checkpoints, precision="float32", device="cpu")  # what is wrong with it, actors would say late and in many words
    run = start_run("pick", storage.join(job.output).rsplit("/", 1)[-1], job, tags={"tomoray.candidates": folder})
    with run.failed_if_left():
        tally = _run(job, card, todo, folder, run) if todo else Tally(1)
        storage.remove_unfinished(folder)  # of tasks that were killed while they wrote
        done, reasons = committed(folder), tally.failures
        missing = tuple(Failure(row.tomogram_id, row.uri, reasons.get(row.tomogram_id, DIED)) for row in rows if row.tomogram_id not in done)
        failed = storage.join(job.output, "failures.parquet")
        write_failures(failed, missing)
        picked = tuple(row.tomogram_id for row in rows if row.tomogram_id in done)
        csv_uri, _ = write_picks(job.output, folder, picked, thresholds, numbers=job.numbers)
        wall_s = time.perf_counter() - began
        now = len(todo) - len(missing)
        run.log({**tally.figures(), "picked": now, "failed": len(missing), "wall_s": wall_s, "tomograms_per_hour": 3600 * now / wall_s}, len(picked))
        run.add_text(tally.as_csv(), f"tomograms_after_{len(rows) - len(todo)}.csv")
        run.add_text(dump_settings(job), "job.toml")
        run.tag("tomoray.picks", csv_uri)
        for uri in (csv_uri, failed):
            if storage.size_bytes(uri) < LARGEST_ARTEFACT_BYTES:  # of more, where they lie is enough
                run.add_file(uri)
    run.end()
    return Picked(folder, csv_uri, picked, missing, run, wall_s, len(rows) - len(todo))


def wanted_rows(job: PickJob) -> list[CatalogueRow]:
    """Return the rows of the wanted splits.

    Raises
    ------
    ConfigError
        If there is none, or two are of one run.
    """
    rows = read_catalogue(job.catalogue)
    wanted = [row for row in rows if not job.splits or row.split in job.splits]
    if twice := sorted(run for run, count in Counter(row.run for row in wanted).items() if count > 1):
        raise ConfigError(f"{job.catalogue}: {', '.join(twice[:5])} stand there more than once; picks are filed by run: index one tomogram per run")
    if not wanted:
        there = ", ".join(sorted({repr(row.split) for row in rows}))
        raise ConfigError(f"{job.catalogue}: no tomogram of split {', '.join(job.splits)}; there are {there}: correct splits, or leave it out")
    return wanted


def candidates_folder(job: PickJob, card: Card) -> str:
    """Return where the tables of these models with these settings lie."""
    models = sorted(fingerprint(uri) for uri in job.checkpoints)
    settings = (models, job.floor, job.tile_vox or card.tile_vox, job.overlap, job.views, job.precision, job.refine)
    return storage.join(job.output, "candidates", hashlib.sha256(repr(settings).encode()).hexdigest()[:12])


def _run(job: PickJob, card: Card, todo: Sequence[CatalogueRow], folder: str, run: Run) -> Tally:
    """Pick the tomograms, writing one table each, and return what came of it."""
    with session(), run.system_metrics("driver"):
        tally = Tally(min(job.actors or _default_actors(job), len(todo)))
        _follow(_pipeline(job, card, todo, folder, tally.actors).iter_rows(), len(todo), tally, run)
        done = committed(folder)
        if lost := [row for row in todo if row.tomogram_id not in done and row.tomogram_id not in tally.failures]:
            # Ray tries a task again that dies with its node, but gives up one whose actor cannot be reached for a moment
            log.warning("%d tomograms were lost with a process or a node: once more", len(lost))
            _follow(_pipeline(job, card, lost, folder, tally.actors).iter_rows(), len(lost), tally, run)
    return tally


def _follow(results: Iterable[dict[str, Any]], total: int, tally: Tally, run: Run) -> None:
    """Count results as they come, show how far the run is, and record it now and then."""
    recorded = time.perf_counter()
    with tqdm(total=total, desc="pick", unit="tomogram", bar_format=BAR, mininterval=0.5) as bar:
        for result in results:
            tally.add(result)
            bar.set_postfix_str(f"{3600 * (bar.format_dict['rate'] or 0):.0f} per hour, {len(tally.failures)} failed", refresh=False)
            bar.update(1)
            if time.perf_counter() - recorded > RECORD_EVERY_S:
                recorded = time.perf_counter()
                try:
                    run.log({**tally.figures(), "failed": len(tally.failures)}, len(tally.rows))
                except MlflowException as error:
                    log.warning("progress is not recorded (%s); picking goes on", error)


def _pipeline(job: PickJob, card: Card, todo: Sequence[CatalogueRow], folder: str, actors: int) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Pace]
    context.max_errored_blocks = len(todo)  # a block is one tomogram: what is lost shows when results are compared with the catalogue
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # until 2.64 there is no other way to bound retries
    stream = ray.data.from_items(items(todo), override_num_blocks=len(todo))
    stream = stream.map(
        partial(read, card=card, permissive=job.permissive),
        num_cpus=1,
        compute=TaskPoolStrategy(size=min(job.readers, len(todo))),
        max_retries=2,  # Ray's default is to repeat for ever a task that crashes its worker
    )
    stream = stream.map_batches(
        Predict,
        fn_constructor_args=(job, _actors_on_node(job, actors)),
        batch_size=1,
        num_cpus=1,
        num_gpus=job.gpus_per_actor or None,
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        max_restarts=20,
        max_task_retries=2,
    )
    return stream.map(partial(commit, folder=folder), num_cpus=0.1, max_retries=2)


def _default_actors(job: PickJob) -> int:
    resources = ray.cluster_resources()
    if share := job.gpus_per_actor:
        if not resources.get("GPU") and not on_cluster():
            raise ConfigError(f"gpus_per_actor is {share:g}, and this machine has no GPU that Ray finds; it must have one: leave gpus_per_actor at 0")
        return max(1, int(resources.get("GPU", 0)) * actors_per_gpu(share))
    cores = int(resources["CPU"]) if on_cluster() else os.cpu_count() or 1
    return max(1, cores // CORES_PER_ACTOR)


def actors_per_gpu(share: float) -> int:
    """Return how many actors that each take a share of a GPU fit on one; none takes parts of two."""
    return int(1 / share + 1e-9)


def _actors_on_node(job: PickJob, actors: int) -> int:
    """Return how many actors share the cores of one machine, if they are spread evenly."""
    needed = "GPU" if job.gpus_per_actor else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(needed, 0) >= 1]
    return math.ceil(actors / max(1, len(nodes)))
