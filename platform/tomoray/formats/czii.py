"""The CZII challenge: its folder layout and its CSV of positions (Kaggle, CZII - CryoET Object Identification, 2024).

The layout is a copick project whose tomograms lie under ``static`` and whose picks lie under ``overlay``; picks files carry the object's
name alone. The folders say ``VoxelSpacing10.000`` although the voxel is 10.012 angstrom: the file's own scale is what counts.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from tomoray import storage
from tomoray.formats.copick import join_classes, names_in, read_copick_picks
from tomoray.tomogram import FormatError, Picks

VOXEL_FOLDER = "VoxelSpacing10.000"
REQUIRED = ("experiment", "particle_type", "x", "y", "z")
SUBMISSION = ("id", *REQUIRED)
MAX_FAULTS = 5  # so many lines are named in one message


def tomogram_uri(root: str, run: str, kind: str = "denoised", part: str = "static") -> str:
    """Return where a tomogram of the layout lies: `<root>/static/ExperimentRuns/<run>/VoxelSpacing10.000/<kind>.zarr`."""
    return storage.join(root, part, "ExperimentRuns", run, VOXEL_FOLDER, f"{kind}.zarr")


def picks_folder(root: str, run: str, part: str = "overlay") -> str:
    """Return where the picks of a run lie: `<root>/overlay/ExperimentRuns/<run>/Picks`."""
    return storage.join(root, part, "ExperimentRuns", run, "Picks")


def read_czii_picks(folder_uri: str, run: str) -> Picks:
    """Return all picks of a run's Picks folder, of files `<object>.json` (CZII) or `<user>_<session>_<object>.json` (copick).

    A folder of several users or sessions is narrowed with a pattern as its last part: `<folder>/curation_0_*.json`.

    Raises
    ------
    FormatError
        If no file is there, a file is broken or of another run, or two files hold the same class.
    """
    files = czii_picks_files(folder_uri)
    if not files:
        raise FormatError(f"{folder_uri}: no picks there; it must hold one JSON file per class: check the folder, the user and the session")
    return join_classes(run, {uri: read_copick_picks(uri) for uri in files})


def czii_picks_files(folder_uri: str) -> list[str]:
    """Return the picks files of a Picks folder, or of its pattern; none where there is no such folder."""
    folder, _, pattern = folder_uri.rpartition("/") if folder_uri.endswith(".json") else (folder_uri, "", "*.json")
    return [storage.join(folder, name) for name in names_in(folder) if fnmatchcase(name, pattern)]


def read_czii_csv(uri: str) -> list[Picks]:
    """Return the picks of a CSV with columns `[id,] experiment, particle_type, x, y, z [, score | conf]`, one element per run, by name.

    Positions are in angstrom. This is the submission, the solution, and what participants exchange.

    Raises
    ------
    FormatError
        If a column is missing, or a line is short, nameless or not of numbers; the first few such lines are all named.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(f"{uri}: not text; it must be a CSV with columns {', '.join(REQUIRED)}: check the file") from None
    table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    missing = [column for column in REQUIRED if column not in (table.fieldnames or ())]
    if missing:
        raise FormatError(f"{uri}: no column {', '.join(missing)} in {table.fieldnames or 'an empty file'}; name the columns {','.join(SUBMISSION)}")
    columns: dict[str, list[tuple[str, tuple[float, ...]]]] = defaultdict(list)
    faults = []
    for row in table:
        try:
            columns[row["experiment"].strip()].append(_read_row(row))
        except (ValueError, TypeError, AttributeError):  # no number; a short line, whose missing values are None
            faults.append(f"line {table.line_num}: {','.join(str(value) for value in row.values())}")
    if faults:
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise FormatError(f"{uri}: {'; '.join(faults[:MAX_FAULTS])}{more}; each line needs a run, a class and finite numbers: correct or remove it")
    return [_to_picks(run, columns[run]) for run in sorted(columns)]


def write_czii_csv(uri: str, picks: Sequence[Picks]) -> None:
    """Write picks of any number of runs as a submission: exactly `id, experiment, particle_type, x, y, z`, ids from 0, no score.

    Raises
    ------
    FormatError
        If picks do not say of which run they are.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(SUBMISSION)
    rows = ((one.run, name, x, y, z) for one in picks for name, (z, y, x) in zip(one.names.tolist(), one.positions_zyx.tolist(), strict=True))
    for index, row in enumerate(rows):
        if not row[0]:
            raise FormatError(f"{uri}: picks without a run; a submission names the experiment of each: set run")
        table.writerow((index, *row))
    storage.write_bytes(uri, text.getvalue().encode())


def _read_row(row: Mapping[str, str]) -> tuple[str, tuple[float, ...]]:
    score = row.get("score") or row.get("conf") or "1"
    numbers = tuple(float(value) for value in (row["z"], row["y"], row["x"], score))
    name = row["particle_type"].strip()
    if not (row["experiment"].strip() and name and np.isfinite(numbers).all()):
        raise ValueError
    return name, numbers


def _to_picks(run: str, rows: Sequence[tuple[str, tuple[float, ...]]]) -> Picks:
    numbers = np.array([numbers for _, numbers in rows], dtype=np.float64).reshape(-1, 4)
    return Picks(run, numbers[:, :3], np.array([name for name, _ in rows], dtype=np.str_), numbers[:, 3])
