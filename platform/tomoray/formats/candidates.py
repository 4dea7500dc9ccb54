"""Candidates tables: every peak of one tomogram above a low floor, with its score, as Parquet.

Everything a user sees is derived from these tables, so that thresholds can change without running a network again. Columns: `run`,
`particle`, `z`, `y`, `x` (angstrom from the volume's corner), `score`; the file's metadata say how they were made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tomoray import storage
from tomoray.formats.checks import check_table_fits_memory
from tomoray.tomogram import FormatError, Picks

SCHEMA = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("particle", pa.string()),
        *(pa.field(axis, pa.float64()) for axis in "zyx"),
        pa.field("score", pa.float32()),
    ]
)
ABOUT = b"tomoray"


def encode_candidates(picks: Picks, about: Mapping[str, Any]) -> bytes:
    """Return the table of one tomogram as the bytes of a Parquet file; `about` is kept as JSON in its metadata."""
    columns = [[picks.run] * len(picks), picks.names.tolist(), *picks.positions_zyx.T, picks.scores.astype(np.float32)]
    metadata = {ABOUT: json.dumps({"run": picks.run, **about}).encode()}
    table = pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read_candidates(uri: storage.Uri) -> tuple[Picks, dict[str, Any]]:
    """Return the candidates of a table, and how they were made.

    Raises
    ------
    FormatError
        If the file is no candidates table.
    """
    content = storage.read_bytes(uri)
    try:
        check_table_fits_memory(str(uri), content)
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError to Arrow
        raise FormatError(f"{uri}: not a Parquet file ({str(error).splitlines()[0]}); give a table that `tomoray pick` wrote") from None
    missing = set(SCHEMA.names) - set(table.schema.names)
    if missing or ABOUT not in (table.schema.metadata or {}):
        lacks = ", ".join(sorted(missing)) or "its metadata"
        raise FormatError(f"{uri}: not a candidates table, it lacks {lacks}; give one that `tomoray pick` wrote")
    about: dict[str, Any] = json.loads(table.schema.metadata[ABOUT])
    positions = np.column_stack([table[axis].to_numpy() for axis in "zyx"])
    names, scores = np.array(table["particle"].to_pylist(), dtype=np.str_), table["score"].to_numpy().astype(np.float64)
    return Picks(about["run"], positions, names, scores), about
