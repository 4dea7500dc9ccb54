"""Ingesting a catalogue with Ray Data: one task per tomogram, each of which commits what it made; a rerun does what is missing."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray.data
from ray.data import DataContext, TaskPoolStrategy
from tqdm import tqdm

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, write_catalogue
from tomoray.cluster.pace import Pace
from tomoray.cluster.session import session
from tomoray.formats.failures import DIED, Failure, write_failures
from tomoray.ingest import ChunkLayout, finished_rows, ingest_tomogram
from tomoray.jobs import IngestJob
from tomoray.tomogram import FormatError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ingested:
    """The end of an ingestion: where the new catalogue is, how many rows it has, how many of them are of this run, what failed and why."""

    catalogue: str
    rows: int
    now: int
    failures: tuple[Failure, ...]


def layout_of(job: IngestJob) -> ChunkLayout:
    """Return the layout that a job asks for."""
    return ChunkLayout.for_crops(job.patch_vox, shard_vox=job.shard_vox, half=job.dtype == "auto")


def ingest_all(job: IngestJob) -> Ingested:
    """Ingest every tomogram of a catalogue that is not ingested yet, and write the catalogue of all that are."""
    rows, layout = read_catalogue(job.catalogue), layout_of(job)
    before = finished_rows(rows, job.output, layout)
    todo = [row for row in rows if row.tomogram_id not in before]
    log.info("%d tomograms, %d already ingested, %d to do", len(rows), len(before), len(todo))
    reasons = _run(job, layout, todo) if todo else {}
    done = finished_rows(rows, job.output, layout) if todo else before
    missing = [row for row in rows if row.tomogram_id not in done]
    failures = tuple(Failure(row.tomogram_id, row.uri, reasons.get(row.tomogram_id, DIED)) for row in missing)
    write_failures(storage.join(job.output, "failures.parquet"), failures)
    catalogue = storage.join(job.output, "catalogue.parquet")
    if done:
        write_catalogue(catalogue, [done[row.tomogram_id] for row in rows if row.tomogram_id in done])
    return Ingested(catalogue, len(done), len(todo) - len(missing), failures)


def _run(job: IngestJob, layout: ChunkLayout, todo: Sequence[CatalogueRow]) -> dict[str, str]:
    """Ingest the tomograms and return the reasons of those that failed."""
    reasons: dict[str, str] = {}
    with session(), tqdm(total=len(todo), desc="ingest", unit="tomogram") as bar:
        for result in _stream(job, layout, todo).iter_rows():
            if result["error"]:
                reasons[result["tomogram_id"]] = result["error"]
            for level, text in ((logging.WARNING, result["error"]), (logging.INFO, result["note"])):
                if text:
                    log.log(level, "%s: %s", result["tomogram_id"], text)
            bar.update(1)
    return reasons


def _stream(job: IngestJob, layout: ChunkLayout, todo: Sequence[CatalogueRow]) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Pace]
    context.execution_no_progress_timeout_s = -1  # a large tomogram takes its time
    context.max_errored_blocks = len(todo)  # a block is one tomogram: what is lost shows when marks are compared with the catalogue
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # until 2.64 there is no other way to bound retries
    stream = ray.data.from_items([{"row": json.dumps(asdict(row))} for row in todo], override_num_blocks=len(todo))
    readers = TaskPoolStrategy(size=min(job.readers, len(todo)))
    return stream.map(partial(ingest_one, output=job.output, layout=layout, permissive=job.permissive), num_cpus=1, compute=readers, max_retries=2)


def ingest_one(item: dict[str, Any], *, output: str, layout: ChunkLayout, permissive: bool) -> dict[str, str]:
    """Ingest one tomogram, and return why it could not be done, or what is worth saying of it."""
    fields = json.loads(item["row"])
    row = CatalogueRow(**{**fields, "shape_zyx": tuple(fields["shape_zyx"])})
    note = error = ""
    try:
        _, note = storage.patiently(partial(ingest_tomogram, row, output, layout, permissive=permissive), row.uri)
    except (FormatError, OSError) as reason:
        error = str(reason)
    return {"tomogram_id": row.tomogram_id, "error": error, "note": note}
