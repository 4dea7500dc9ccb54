"""Bulk picking: read | predict | write, with Ray Data, one committed table per tomogram.

Reading tasks hand prepared volumes as float16 to a pool of predicting actors, which hand candidates to writing tasks; each stage
works while the others do. What is committed is what is done: a rerun leaves out tomograms whose table exists, and a task that ran twice
has written the same table twice. The name of a table depends on the model and the settings, so another model never finds old picks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from tqdm import tqdm

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.checkpoint import Card, fingerprint, load_picker, read_card
from tomoray.cluster.session import on_cluster, session, threads_per_worker
from tomoray.cluster.tracking import Run, start_run
from tomoray.config import ConfigError, dump_settings
from tomoray.formats import open_tomogram
from tomoray.formats.candidates import encode_candidates, read_candidates
from tomoray.formats.copick import picks_file_name, write_copick_picks
from tomoray.formats.czii import picks_folder, write_czii_csv
from tomoray.formats.failures import Failure, write_failures
from tomoray.jobs import PickJob
from tomoray.picking import Window, pick
from tomoray.preprocessing import prepare
from tomoray.thresholds import apply_thresholds
from tomoray.tomogram import FormatError, Picks, Tomogram

log = logging.getLogger(__name__)

DIED = "the task that held it died each time it was tried; see Ray's log, and try this tomogram alone"
READ_ATTEMPTS = 3  # of a read that failed for reasons that may pass
NO_PROGRESS_TIMEOUT_S = 7200.0  # a cluster may take this long to bring its first GPU node


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


def pick_all(job: PickJob) -> Picked:
    """Pick every tomogram of a catalogue that is not picked yet, and derive picks from all candidates.

    Raises
    ------
    ConfigError
        If the catalogue has no row of the wanted splits, two rows share an id, or a class has no threshold.
    """
    began = time.perf_counter()
    rows, card = wanted_rows(job), read_card(job.checkpoint)
    thresholds = _thresholds(card, job)
    folder = candidates_folder(job, card)
    todo = [row for row in rows if row.tomogram_id not in committed(folder)]
    log.info("%d tomograms, %d already picked, %d to do", len(rows), len(rows) - len(todo), len(todo))
    run = start_run("pick", storage.join(job.output).rsplit("/", 1)[-1], job, tags={"tomoray.candidates": folder})
    failures = _run(job, card, todo, folder) if todo else {}
    done = committed(folder)
    missing = tuple(Failure(row.tomogram_id, row.uri, failures.get(row.tomogram_id, DIED)) for row in rows if row.tomogram_id not in done)
    write_failures(storage.join(job.output, "failures.parquet"), missing)
    tables = [row for row in rows if row.tomogram_id in done]
    csv = _derive(job, card, folder, tables, thresholds)
    wall_s = time.perf_counter() - began
    picked = len(todo) - len(missing)
    run.log({"picked": picked, "failed": len(missing), "wall_s": wall_s, "tomograms_per_hour": 3600 * picked / wall_s}, 0)
    run.add_text(dump_settings(job), "job.toml")
    run.end()
    return Picked(folder, csv, tuple(row.tomogram_id for row in tables), missing, run, wall_s, len(rows) - len(todo))


def wanted_rows(job: PickJob) -> list[CatalogueRow]:
    """Return the rows of the wanted splits.

    Raises
    ------
    ConfigError
        If there is none.
    """
    rows = read_catalogue(job.catalogue)
    wanted = [row for row in rows if not job.splits or row.split in job.splits]
    runs = [row.run for row in wanted]
    if twice := sorted({run for run in runs if runs.count(run) > 1}):
        raise ConfigError(f"{job.catalogue}: {', '.join(twice[:5])} stand there more than once; picks are filed by run: index one tomogram per run")
    if not wanted:
        there = ", ".join(sorted({repr(row.split) for row in rows}))
        raise ConfigError(f"{job.catalogue}: no tomogram of split {', '.join(job.splits)}; there are {there}: correct splits, or leave it out")
    return wanted


def candidates_folder(job: PickJob, card: Card) -> str:
    """Return where the tables of this model with these settings lie."""
    settings = (fingerprint(job.checkpoint), job.floor, job.tile_vox or card.tile_vox, job.overlap, job.views, job.precision)
    return storage.join(job.output, "candidates", hashlib.sha256(repr(settings).encode()).hexdigest()[:12])


def committed(folder: str) -> set[str]:
    """Return the ids of the tomograms whose table exists."""
    suffix = ".parquet"
    names = storage.list_names(folder) if storage.exists(folder) else []
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def _thresholds(card: Card, job: PickJob) -> dict[str, float]:
    thresholds = {**card.thresholds, **job.thresholds}
    names = [p.name for p in card.particles]
    if unknown := sorted(set(job.thresholds) - set(names)):
        raise ConfigError(f"thresholds: {', '.join(unknown)} is no class of {job.checkpoint}; its classes are {', '.join(names)}")
    if missing := [name for name in names if name not in thresholds]:
        raise ConfigError(f"{job.checkpoint}: no threshold for {', '.join(missing)}; give thresholds in the job")
    return thresholds


def _run(job: PickJob, card: Card, todo: Sequence[CatalogueRow], folder: str) -> dict[str, str]:
    """Pick the tomograms, writing one table each, and return id -> reason of those that could not be picked."""
    failures: dict[str, str] = {}
    began = time.perf_counter()
    with session(), tqdm(total=len(todo), desc="pick", unit="tomogram") as bar:
        for result in _pipeline(job, card, todo, folder).iter_rows():
            bar.update(1)
            bar.set_postfix_str(f"{3600 * bar.n / (time.perf_counter() - began):.0f} per hour, {len(failures)} failed")
            if result["error"]:
                failures[result["tomogram_id"]] = result["error"]
                log.warning("%s: %s", result["tomogram_id"], result["error"])
    return failures


def _pipeline(job: PickJob, card: Card, todo: Sequence[CatalogueRow], folder: str) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = len(todo)  # a block is one tomogram: what is lost shows when results are compared with the catalogue
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # until 2.64 there is no other way to bound retries
    actors = min(job.actors or _default_actors(job), len(todo))
    stream = ray.data.from_items([{"index": index} for index in range(len(todo))], override_num_blocks=len(todo))
    stream = stream.map(
        partial(read, rows=tuple(todo), card=card, permissive=job.permissive),
        num_cpus=1,
        compute=TaskPoolStrategy(size=min(job.readers, len(todo))),
        max_retries=2,  # Ray's default is to repeat for ever a task that crashes its worker
    )
    stream = stream.map_batches(
        Predict,
        fn_constructor_args=(job, 1 if on_cluster() else actors),
        batch_size=1,
        num_cpus=1,
        num_gpus=job.gpus_per_actor or None,
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        max_restarts=20,
        max_task_retries=2,
    )
    return stream.map(partial(commit, folder=folder), num_cpus=0.1, max_retries=2)


def _default_actors(job: PickJob) -> int:
    if job.gpus_per_actor:
        return max(1, int(ray.cluster_resources().get("GPU", 0) / job.gpus_per_actor))
    return max(1, int(ray.cluster_resources()["CPU"]) // 2) if on_cluster() else os.cpu_count() or 1


def read(row: dict[str, Any], *, rows: Sequence[CatalogueRow], card: Card, permissive: bool) -> dict[str, Any]:
    """Return a tomogram as the picker wants it, in float16, or the reason why it cannot be read."""
    wanted = rows[int(row["index"])]
    volume, voxel, error = np.zeros((1, 1, 1), np.float32), (0.0, 0.0, 0.0), ""
    try:
        tomogram = _open_patiently(wanted, permissive)
        volume, voxel = prepare(tomogram, contrast=wanted.contrast, to_voxel_angstrom=card.voxel_angstrom, to_contrast=card.contrast)
    except (FormatError, OSError) as reason:
        error = str(reason)
    identity = {"tomogram_id": wanted.tomogram_id, "run": wanted.run, "error": error}
    return {**identity, "volume": volume.astype(np.float16), "voxel_angstrom": np.array(voxel)}


def _open_patiently(row: CatalogueRow, permissive: bool) -> Tomogram:
    """Return a tomogram with its values in memory, trying again where storage failed for a reason that may pass."""
    for attempt in range(READ_ATTEMPTS):
        try:
            tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom, permissive=permissive)
            return replace(tomogram, voxels=tomogram.read())
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if attempt + 1 == READ_ATTEMPTS:
                raise
            log.warning("%s: %s; reading again", row.uri, error)
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


class Predict:
    """An actor that holds the network and turns volumes into encoded tables of candidates."""

    def __init__(self, job: PickJob, actors_on_node: int) -> None:
        torch.set_num_threads(threads_per_worker(actors_on_node))
        self.picker, self.card = load_picker(job.checkpoint, device="cuda" if job.gpus_per_actor else "cpu")
        self.picker.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.job = job
        self.window = Window(job.tile_vox or self.card.tile_vox, job.overlap, job.views)
        self.about = {"checkpoint": job.checkpoint, "floor": job.floor, "precision": job.precision, "finder": self.card.finder, **asdict(self.window)}

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Return the table of the one tomogram in the batch, or pass on why there is none."""
        began, run, error, table = time.perf_counter(), str(batch["run"][0]), str(batch["error"][0]), b""
        if not error:
            z, y, x = (float(v) for v in batch["voxel_angstrom"][0])
            candidates = pick(
                self.picker,
                batch["volume"][0].astype(np.float32),
                self.card.particles,
                (z, y, x),
                run=run,
                window=self.window,
                floor=self.job.floor,
                precision=self.job.precision,
                finder=self.card.finder,
            )
            table = encode_candidates(candidates, self.about)
        return {"tomogram_id": [str(batch["tomogram_id"][0])], "table": [table], "error": [error], "predict_s": [time.perf_counter() - began]}


def commit(row: dict[str, Any], *, folder: str) -> dict[str, Any]:
    """Write a table under its tomogram's name, whole or not at all, and return what to tell the driver."""
    if not row["error"]:
        storage.write_bytes(table_uri(folder, row["tomogram_id"]), row["table"])
    return {key: value for key, value in row.items() if key != "table"}


def table_uri(folder: str, tomogram_id: str) -> str:
    """Return where the candidates of a tomogram lie."""
    return storage.join(folder, f"{tomogram_id}.parquet")


def _derive(job: PickJob, card: Card, folder: str, rows: Sequence[CatalogueRow], thresholds: dict[str, float]) -> str:
    """Write picks above the thresholds as copick files and as one CSV in the form of a CZII submission, whose path comes back."""
    everything: list[Picks] = []
    for row in tqdm(rows, desc="threshold", unit="tomogram", leave=False):
        picks = apply_thresholds(read_candidates(table_uri(folder, row.tomogram_id))[0], thresholds)
        everything.append(picks)
        for particle in card.particles:
            target = storage.join(picks_folder(job.output, row.run, part=""), picks_file_name(particle.name))
            write_copick_picks(target, picks.of(particle.name), particle=particle.name, voxel_angstrom=row.voxel_angstrom)
    csv = storage.join(job.output, "picks.csv")
    write_czii_csv(csv, everything)
    return csv
