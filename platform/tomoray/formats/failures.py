"""The failures table: what could not be picked or ingested, and why, as Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tomoray import storage

DIED = "the task that held it failed or died each time it was tried; see Ray's log, and try this tomogram alone"
SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("tomogram_id", "uri", "reason")])


@dataclass(frozen=True)
class Failure:
    """One tomogram that could not be done."""

    tomogram_id: str
    uri: str
    reason: str


def write_failures(uri: storage.Uri, failures: Sequence[Failure]) -> None:
    """Write the failures of a job, whole or not at all; an empty table says that there were none."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(f) for f in failures], schema=SCHEMA), buffer)
    storage.write_bytes(uri, buffer.getvalue())


def read_failures(uri: storage.Uri) -> list[Failure]:
    """Return the failures of a job."""
    return [Failure(**row) for row in pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()]
