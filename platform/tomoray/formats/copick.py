"""copick picks: one JSON file per run, user, session and kind of particle (copick 1.27, ``models.py``, ``CopickPicksFile``).

A location is in angstrom from the volume's corner, as ours; only its order is x, y, z. What a file may leave out has the
defaults of copick, save one: we write ``trust_orientation: false``, since a picker of positions knows no orientations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, FiniteFloat, ValidationError

from tomoray import storage
from tomoray.tomogram import FormatError, Picks

IDENTITY = [[float(row == column) for column in range(4)] for row in range(4)]


class _Location(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    z: FiniteFloat


class _Point(BaseModel):
    location: _Location
    score: FiniteFloat | None = None


class _PicksFile(BaseModel):
    pickable_object_name: str
    run_name: str | None = None
    unit: str = "angstrom"
    points: list[_Point] | None = None


class _Project(BaseModel):
    config_type: str = "filesystem"
    static_root: str | None = None
    overlay_root: str | None = None


def read_copick_picks(uri: str) -> Picks:
    """Return the picks of one copick JSON file, their run `""` where the file names none.

    Raises
    ------
    FormatError
        If the file is no copick picks file, or its unit is not the angstrom.
    """
    try:
        file = _PicksFile.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise FormatError(f"{uri}: not a copick picks file ({_faults(error)}); write it with copick, or correct it there") from None
    if file.unit != "angstrom":
        raise FormatError(f"{uri}: positions in {file.unit!r}; they must be in angstrom from the volume's corner: convert them, then set the unit")
    points = file.points or []
    positions = [(p.location.z, p.location.y, p.location.x) for p in points]
    scores = [1.0 if p.score is None else p.score for p in points]
    names = np.array([file.pickable_object_name] * len(points), dtype=np.str_)
    return Picks(file.run_name or "", np.array(positions, dtype=np.float64).reshape(-1, 3), names, np.array(scores, dtype=np.float64))


def write_copick_picks(
    uri: str, picks: Picks, *, particle: str, user_id: str = "tomoray", session_id: str = "1", voxel_angstrom: float | None = None
) -> None:
    """Write the picks of one class as a copick JSON file, with their scores.

    copick takes user, session and object from the file's name, `picks_file_name`, and parts that name at underscores.

    Raises
    ------
    FormatError
        If one of the three names is empty or has a character that copick cannot hold.
    """
    picks_file_name(particle, user_id, session_id)
    chosen = picks.of(particle)
    points = [
        {"location": {"x": x, "y": y, "z": z}, "transformation_": IDENTITY, "instance_id": 0, "score": score}
        for (z, y, x), score in zip(chosen.positions_zyx.tolist(), chosen.scores.tolist(), strict=True)
    ]
    file = {
        "pickable_object_name": particle,
        "user_id": user_id,
        "session_id": session_id,
        "run_name": picks.run or None,
        "voxel_spacing": voxel_angstrom,
        "unit": "angstrom",
        "points": points,
        "trust_orientation": False,
    }
    storage.write_bytes(uri, json.dumps(file).encode())  # an indent would take Python's own, ten times slower encoder


def picks_file_name(particle: str, user_id: str = "tomoray", session_id: str = "1") -> str:
    """Return `<user>_<session>_<object>.json`, the name under which copick looks for picks.

    Raises
    ------
    FormatError
        If a name is empty or has an underscore, a blank or a slash.
    """
    for what, name in (("object", particle), ("user", user_id), ("session", session_id)):
        if not name or any(c in '_/\\:*?"<>|' or c.isspace() for c in name):
            raise FormatError(f"copick {what} name {name!r}: it must be there and without underscores, blanks and slashes; write '-' for '_'")
    return f"{user_id}_{session_id}_{particle}.json"


def read_copick_project(uri: str) -> tuple[str, str]:
    """Return the static and the overlay root that a copick configuration names, `local://` taken off.

    A project without a static root keeps everything in its overlay. A root that is not absolute counts from the configuration's folder.

    Raises
    ------
    FormatError
        If the file is no copick configuration, or its project does not lie in a file system.
    """
    try:
        project = _Project.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise FormatError(f"{uri}: not a copick configuration ({_faults(error)}); give the project's JSON file, or the folder itself") from None
    overlay = project.overlay_root or project.static_root
    if project.config_type != "filesystem" or not overlay:
        raise FormatError(
            f"{uri}: a copick project of config_type {project.config_type!r} with overlay_root {project.overlay_root!r}; tomoray reads "
            "config_type 'filesystem' with an overlay_root: for the Data Portal give its bucket prefix instead"
        )
    static, overlay = (_absolute(root, uri) for root in (project.static_root or overlay, overlay))
    return static, overlay


def join_classes(run: str, files: Mapping[str, Picks]) -> Picks:
    """Return the picks of several files, each holding one class, as picks of `run`.

    Raises
    ------
    FormatError
        If a file is of another run, or two files hold the same class: both would count, as every particle picked twice.
    """
    file_of: dict[str, str] = {}
    for uri, picks in files.items():
        if picks.run not in ("", run):
            raise FormatError(f"{uri}: picks of run {picks.run!r}, where those of {run!r} must be; move the file to its run, or correct run_name")
        for name in np.unique(picks.names).tolist():
            if name in file_of:
                raise FormatError(
                    f"{uri} and {file_of[name]}: both hold {name!r} of {run!r}; a class must come from one file: "
                    "choose one, for copick by user and session as in picks='curation_0'"
                )
            file_of[name] = uri
    return Picks.concatenate(run, list(files.values()))


def names_in(folder_uri: str) -> list[str]:
    """Return the names in a folder that may be missing, without hidden ones (as macOS leaves them)."""
    try:
        return [name for name in storage.list_names(folder_uri) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _absolute(root: str, config_uri: str) -> str:
    root = root.removeprefix("local://").removeprefix("file://").rstrip("/")
    if "://" in root or root.startswith("/"):
        return root
    folder, slash, _ = config_uri.rpartition("/")
    return f"{folder}{slash}{root}"


def _faults(error: ValidationError) -> str:
    faults: Sequence[str] = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
    return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
