"""Positions that people click: plain CSV tables and STAR files, whose unit and class the file may leave open.

A CSV has x, y, z in this order or under these names, or axis-0, axis-1, axis-2 (z, y, x) as napari saves points; a class and a run may
stand beside. Nothing is guessed: a unit that neither the file nor a person has said is an error. What a person has said travels behind the
`#` of a URI, so that a catalogue needs no columns for it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlencode

import numpy as np

from tomoray import storage
from tomoray.formats.czii import REQUIRED
from tomoray.formats.star import has_positions, read_star_picks, star_runs
from tomoray.tomogram import FormatError, Picks

Unit = Literal["voxel", "angstrom"] | float
"""What positions count: voxels of their tomogram, angstrom, or so many angstrom each."""

Line = tuple[int, list[str]]  # its number in the file, its values

SUFFIXES = (".csv", ".star")
MAX_FAULTS = 5  # so many lines are named in one message
KNOWN = {  # what a column may be called
    "z": ("z", "axis-0", "z_angstrom", "z_voxel"),
    "y": ("y", "axis-1", "y_angstrom", "y_voxel"),
    "x": ("x", "axis-2", "x_angstrom", "x_voxel"),
    "particle": ("particle_type", "particle", "class", "name"),
    "run": ("experiment", "run", "run_name", "tomogram"),
    "score": ("score", "conf"),
}


@dataclass(frozen=True)
class Told:
    """What a person said of a file of clicks: the unit of its positions, and the class of those that name none."""

    unit: Unit | None = None
    particle: str = ""

    def beside(self, uri: str) -> str:
        """Return the URI with this behind its `#`; as it is where nothing was said."""
        said = ({} if self.unit is None else {"unit": self.unit}) | ({"particle": self.particle} if self.particle else {})
        return f"{uri}#{urlencode(said)}" if said else uri


def what_was_told(uri: str) -> tuple[str, Told]:
    """Return a URI without what stands behind its `#`, and what that says."""
    bare, _, rest = uri.rpartition("#") if uri.rpartition("#")[2].startswith(("unit=", "particle=")) else (uri, "", "")
    said = dict(parse_qsl(rest))
    unit: Unit | None = None
    if text := said.get("unit"):
        unit = "voxel" if text == "voxel" else "angstrom" if text == "angstrom" else float(text)
    return bare, Told(unit, said.get("particle", ""))


def is_clicks(uri: str) -> bool:
    """Return whether a CSV or STAR file holds positions, and is not a table in the form of the CZII challenge."""
    if uri.lower().endswith(".star"):
        return has_positions(uri)
    if not uri.lower().endswith(".csv"):
        return False
    names, rows = _table(uri)
    return not set(REQUIRED) <= set(names) and ({"z", "y", "x"} <= set(_places(names)) if names else bool(rows) and len(rows[0][1]) in (3, 4))


def runs_in(uri: str) -> list[str]:
    """Return the runs that a file of clicks names; none where it names none, so that it belongs to one tomogram."""
    if uri.lower().endswith(".star"):
        return star_runs(uri)
    names, rows = _table(uri)
    place = _places(names).get("run")
    return [] if place is None else sorted({values[place].strip() for _, values in rows if len(values) > place} - {""})


def read_clicks(uri: str, run: str, told: Told, *, shape_zyx: Sequence[int], voxel_angstrom: float) -> Picks:
    """Return the picks of one run from a file of clicks; of a file that names no run, all.

    Raises
    ------
    FormatError
        If nothing of that run is there, a line is short or not of numbers, or neither the file nor `told` says unit or class.
    """
    if uri.lower().endswith(".star"):
        if not told.particle:
            raise FormatError(f"{uri}: a STAR file names no class; each pick must have one: give picks_particle")
        if told.unit == "angstrom":
            raise FormatError(
                f"{uri}: picks_unit is angstrom; STAR files say themselves what is in angstrom: give the size of the pixel, or leave it out"
            )
        pixel = voxel_angstrom if told.unit == "voxel" else told.unit
        return read_star_picks(uri, run, particle=told.particle, shape_zyx=shape_zyx, voxel_angstrom=voxel_angstrom, pixel_angstrom=pixel)
    names, rows = _table(uri)
    places = _places(names) if names else {"x": 0, "y": 1, "z": 2} | ({"particle": 3} if rows and len(rows[0][1]) > 3 else {})
    if missing := sorted({"x", "y", "z"} - set(places)):
        raise FormatError(f"{uri}: no column {', '.join(missing)} in {', '.join(names)}; name the columns x, y, z, or write none in this order")
    if not names and "particle" in places and _is_number(rows[0][1][3]):
        raise FormatError(f"{uri}: a fourth column of numbers, and no header; what it means must be plain: name the columns in the first line")
    if "particle" not in places and not told.particle:
        raise FormatError(f"{uri}: no column names the class; each pick must have one: add a column `particle`, or give picks_particle")
    scale = _scale(uri, [names[places[axis]] for axis in "zyx"] if names else [], told.unit, voxel_angstrom)
    if "run" in places:
        rows = [(number, values) for number, values in rows if len(values) <= places["run"] or values[places["run"]].strip() == run]
        if not rows:
            raise FormatError(f"{uri}: no picks of run {run!r}; it names {', '.join(runs_in(uri)[:5])}: give the table that holds this tomogram")
    return _picks_of(uri, run, rows, places, told.particle, scale)


def _picks_of(uri: str, run: str, rows: Sequence[Line], places: Mapping[str, int], particle: str, scale: float) -> Picks:
    """Return picks from lines of a table; the first few lines that are none are all named."""
    numbers, classes, faults = list[list[float]](), list[str](), list[str]()
    for number, values in rows:
        try:
            found = [float(values[places[axis]]) for axis in "zyx"] + [float(values[places["score"]] or 1) if "score" in places else 1.0]
            name = values[places["particle"]].strip() if "particle" in places else particle
            if not (name and np.isfinite(found).all()):
                raise ValueError
        except (ValueError, IndexError):
            faults.append(f"line {number}: {','.join(values)}")
            continue
        numbers.append(found)
        classes.append(name)
    if faults:
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise FormatError(f"{uri}: {'; '.join(faults[:MAX_FAULTS])}{more}; each line needs finite numbers and a class: correct or remove it")
    table = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    return Picks(run, table[:, :3] * scale, np.array(classes, dtype=np.str_), table[:, 3])


def _table(uri: str) -> tuple[list[str], list[Line]]:
    """Return the header of a CSV in lower case, empty where its first line is of numbers, and (line, values) of all other lines."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(f"{uri}: not text; it must be a CSV of x, y, z: check the file") from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    rows = [(reader.line_num, values) for values in reader if any(value.strip() for value in values)]
    if rows and not _is_number(rows[0][1][0]):
        return [name.strip().lower() for name in rows[0][1]], rows[1:]
    return [], rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _places(names: Sequence[str]) -> dict[str, int]:
    """Return what -> which column it is in."""
    return {what: next(names.index(name) for name in known if name in names) for what, known in KNOWN.items() if set(known) & set(names)}


def _scale(uri: str, names: Sequence[str], told: Unit | None, voxel_angstrom: float) -> float:
    """Return how many angstrom one unit of the positions is, as the columns' names or a person say."""
    stated = {"angstrom" if name.endswith("_angstrom") else "voxel" if name.endswith("_voxel") or name.startswith("axis-") else "" for name in names}
    if len(stated) > 1:
        raise FormatError(f"{uri}: columns {', '.join(names)} are of different units or kinds; all three must be alike: rename them")
    said = next(iter(stated), "")
    if said and told is not None and (said == "angstrom") != (told == "angstrom"):
        raise FormatError(f"{uri}: columns {', '.join(names)} are in {said}, picks_unit is {told}; they must agree: correct one of them")
    unit = told if told is not None else said
    if not unit:
        raise FormatError(
            f"{uri}: positions without a unit; it must be plain whether they are in voxels or in angstrom: give picks_unit as 'voxel', 'angstrom' or "
            "the size of a pixel in angstrom, or name the columns x_voxel or x_angstrom and so on"
        )
    return voxel_angstrom if unit == "voxel" else 1.0 if unit == "angstrom" else float(unit)
