"""The three stages of bulk picking, as Ray runs them: read a tomogram, predict its candidates, commit their table.

A tomogram that fails says why in its row, under `error`, and passes the later stages by. What may pass is tried again: a storage
that does not answer, here; a process that dies, by Ray, as often as `pick` lets it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoray import storage
from tomoray.catalogue import CatalogueRow
from tomoray.checkpoint import Card
from tomoray.cluster.session import threads_per_worker
from tomoray.ensemble import ensemble_card, load_ensemble
from tomoray.formats import open_tomogram
from tomoray.formats.candidates import encode_candidates
from tomoray.inference import trusted
from tomoray.jobs import PickJob
from tomoray.memory import keep_freed_memory, memory_budget
from tomoray.picking import pick
from tomoray.preprocessing import as_half, prepare
from tomoray.results import table_uri
from tomoray.tiles import Window
from tomoray.tomogram import FormatError, Tomogram

CPU_MEMORY = 0.5  # of what is free when actors start; the object store and readers take the other half
REPORTED = ("tomogram_id", "error", "read_s", "values_bytes")


def items(rows: Sequence[CatalogueRow]) -> list[dict[str, Any]]:
    """Return what the stages must know of each tomogram; a task gets its own only, or it would pay for all of the catalogue."""
    return [{name: getattr(row, name) for name in ("tomogram_id", "run", "uri", "voxel_angstrom", "contrast")} for row in rows]


def read(row: dict[str, Any], *, card: Card, permissive: bool) -> dict[str, Any]:
    """Return a tomogram as the picker wants it, in float16, or the reason why it cannot be read."""
    began = time.perf_counter()
    volume, voxel, error, values_bytes = np.zeros((1, 1, 1), np.float32), (0.0, 0.0, 0.0), "", 0
    try:
        tomogram = storage.patiently(partial(_load, row, permissive), row["uri"])
        values_bytes = int(np.asarray(tomogram.voxels).nbytes)
        volume, voxel = prepare(
            tomogram, contrast=row["contrast"], to_voxel_angstrom=card.voxel_angstrom, to_contrast=card.contrast, clip_sd=card.clip_sd
        )
    except (FormatError, OSError) as reason:
        error = str(reason)
    prepared = {"volume": as_half(volume), "voxel_angstrom": np.array(voxel), "catalogued_angstrom": float(row["voxel_angstrom"])}
    identity = {"tomogram_id": str(row["tomogram_id"]), "run": str(row["run"]), "error": error}
    return {**identity, **prepared, "values_bytes": values_bytes, "read_s": time.perf_counter() - began}


def _load(row: dict[str, Any], permissive: bool) -> Tomogram:
    """Return a tomogram with its values in memory."""
    tomogram = open_tomogram(row["uri"], name=row["run"], voxel_angstrom=float(row["voxel_angstrom"]), permissive=permissive)
    return replace(tomogram, voxels=tomogram.read())


class Predict:
    """An actor that holds the networks and turns volumes into encoded tables of candidates."""

    def __init__(self, job: PickJob, actors_on_node: int) -> None:
        torch.set_num_threads(threads_per_worker(actors_on_node))
        if not job.gpus_per_actor:
            keep_freed_memory()
        self.job, self.card = job, ensemble_card(job.checkpoints)
        precision = trusted(job.precision, self.card.agreement)
        self.picker = load_ensemble(job.checkpoints, precision=precision, device="cuda" if job.gpus_per_actor else "cpu")
        self.window = Window(job.tile_vox or self.card.tile_vox, job.overlap, job.views)
        if not self.window.tile_vox:
            share = job.gpus_per_actor or CPU_MEMORY / actors_on_node
            self.window = replace(self.window, budget_vox=memory_budget(self.picker, share))
        settings = {"checkpoint": job.checkpoint, "floor": job.floor, "precision": precision, "finder": self.card.finder, "refine": job.refine}
        self.about = {**settings, **asdict(self.window)}

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Return the table of the one tomogram in the batch, or pass on why there is none."""
        began, row, table = time.perf_counter(), {name: column[0] for name, column in batch.items()}, b""
        if not row["error"]:
            try:
                table = self._table(row)
            except torch.OutOfMemoryError as error:
                row["error"] = f"{row['run']}: too large for the memory of the GPU ({error}); give a smaller tile_vox, or fewer actors per GPU"
        reported = {name: [row[name].item() if isinstance(row[name], np.generic) else row[name]] for name in REPORTED}
        return {**reported, "table": [table], "predict_s": [time.perf_counter() - began]}

    def _table(self, row: dict[str, Any]) -> bytes:
        z, y, x = (float(v) for v in row["voxel_angstrom"])
        candidates = pick(
            self.picker,
            row["volume"],
            self.card.particles,
            (z, y, x),
            run=str(row["run"]),
            window=self.window,
            floor=self.job.floor,
            finder=self.card.finder,
            refine=self.job.refine,
        )
        extent = [float(edge) for edge in np.multiply(row["volume"].shape, (z, y, x))]
        return encode_candidates(candidates, {**self.about, "voxel_angstrom": float(row["catalogued_angstrom"]), "extent_angstrom": extent})


def commit(row: dict[str, Any], *, folder: str) -> dict[str, Any]:
    """Write a table under its tomogram's name, whole or not at all, and return what to tell the driver."""
    began, error = time.perf_counter(), str(row["error"])
    uri = table_uri(folder, row["tomogram_id"])
    if not error:
        try:
            storage.patiently(partial(storage.write_bytes, uri, row["table"]), uri)
        except OSError as reason:
            error = str(reason)
    reported = {key: value for key, value in row.items() if key != "table"}
    return {**reported, "error": error, "commit_s": time.perf_counter() - began, "done_at": time.time()}
