"""CryoET Data Portal: how a data set lies in its bucket, and its points as ndjson.

``<prefix>/<run>/Reconstructions/VoxelSpacing<x.xxx>/Tomograms/<id>/<run>.zarr`` with the same as ``.mrc`` beside it, and
``.../VoxelSpacing<x.xxx>/Annotations/<id>/<object>-<version>_point.ndjson`` with ``<object>-<version>.json`` about it (the portal's
``importers/annotation.py`` and ``point_converter.py``). Two traps: a location counts voxels of *its own* VoxelSpacing folder, which for the
CZII test sets is 4.99 where people read the tomograms of 10.012; and predictions of others lie beside the truth under the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, FiniteFloat, ValidationError

from tomoray import storage
from tomoray.formats.copick import join_classes, names_in
from tomoray.tomogram import FormatError, Picks

TRUTH_DEPOSITION = 10310  # the CZII challenge's own
CHALLENGE_NAMES = {"ferritin-complex": "apo-ferritin", "cytosolic-ribosome": "ribosome", "virus-like-capsid": "virus-like-particle"}
POINT_FILE = re.compile(r"(?P<prefix>.+)_(point|orientedpoint)\.ndjson")
SPACING = re.compile(r"VoxelSpacing(?P<angstrom>\d+(\.\d+)?)")


class _Location(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    z: FiniteFloat


class _Point(BaseModel):
    type: Literal["point", "orientedPoint", "instancePoint"]
    location: _Location


class _Object(BaseModel):
    name: str


class _Annotation(BaseModel):
    annotation_object: _Object
    ground_truth_status: bool | None = False
    deposition_id: int | None = None


@dataclass(frozen=True)
class PortalTomogram:
    """Where a tomogram of the portal lies, and the Annotations folder that holds its run's truth (empty where there is none)."""

    run: str
    spacing: str
    number: str
    uri: str
    annotations_uri: str


def read_ndjson_picks(uri: str, *, voxel_angstrom: float, particle: str, run: str) -> Picks:
    """Return the points of a portal ndjson file as picks of one class; `voxel_angstrom` is that of the annotation, not of your tomogram.

    Raises
    ------
    FormatError
        If a line is no point; the first such line is named.
    """
    positions = []
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            at = _Point.model_validate_json(line).location
        except ValidationError as error:
            raise FormatError(f"{uri}: line {number}: {error.errors()[0]['msg']}; each line is a JSON point with a location x, y, z") from None
        positions.append((at.z, at.y, at.x))
    positions_zyx = np.array(positions, dtype=np.float64).reshape(-1, 3) * voxel_angstrom
    return Picks(run, positions_zyx, np.array([particle] * len(positions), dtype=np.str_))


def read_portal_picks(annotations_uri: str, run: str) -> Picks:
    """Return the truth in an Annotations folder (or in one ndjson file of it) as picks of `run`, in angstrom by the folder's own spacing.

    Raises
    ------
    FormatError
        If no VoxelSpacing folder is on the path, no truth lies there, a file is broken, or two files hold the same class.
    """
    voxel_angstrom = spacing_angstrom(annotations_uri)
    files = truth_files(annotations_uri)
    if not files:
        raise FormatError(f"{annotations_uri}: no point file of ground truth; give an Annotations folder with ground_truth_status true")
    return join_classes(run, {uri: read_ndjson_picks(uri, voxel_angstrom=voxel_angstrom, particle=name, run=run) for uri, name in files.items()})


def spacing_angstrom(uri: str) -> float:
    """Return the voxel size that the VoxelSpacing folder on a path states.

    Raises
    ------
    FormatError
        If there is no such folder.
    """
    match = SPACING.search(uri)
    if match is None:
        raise FormatError(
            f"{uri}: no VoxelSpacing folder on the path; portal points count voxels of that spacing: keep the portal's folders, "
            "or read the file with read_ndjson_picks and give voxel_angstrom"
        )
    return float(match["angstrom"])


def truth_files(annotations_uri: str) -> dict[str, str]:
    """Return the point files of ground truth below an Annotations folder and the class of each.

    Truth is what its metadata calls `ground_truth_status`, or what the challenge deposited itself (10310). A point file without
    metadata counts as truth: someone chose to copy just that one; its class is then the file's name.
    """
    files = {}
    for folder, names in _annotation_folders(annotations_uri):
        prefixes = {match["prefix"]: name for name in sorted(names) if (match := POINT_FILE.fullmatch(name))}  # one file per annotation
        for prefix, name in prefixes.items():
            if annotations_uri.endswith(".ndjson") and not annotations_uri.endswith(f"/{name}"):
                continue
            particle = _read_truth(storage.join(folder, f"{prefix}.json")) if f"{prefix}.json" in names else prefix.rpartition("-")[0] or prefix
            if particle:
                portal_name = particle.replace("_", "-").replace(" ", "-")
                files[storage.join(folder, name)] = CHALLENGE_NAMES.get(portal_name, portal_name)
    return files


def list_portal_tomograms(prefix: str, run: str) -> list[PortalTomogram]:
    """Return the tomograms of a run below a portal prefix, each as zarr where it is there and as MRC where not.

    The truth is taken from the tomogram's own spacing where that has some, else from another: positions are in angstrom.
    """
    reconstructions = storage.join(prefix, run, "Reconstructions")
    spacings = sorted(name for name in names_in(reconstructions) if SPACING.fullmatch(name))
    annotated = [s for s in spacings if truth_files(storage.join(reconstructions, s, "Annotations"))]
    tomograms = []
    for spacing in spacings:
        truth = spacing if spacing in annotated else next(iter(annotated), "")
        folder = storage.join(reconstructions, spacing, "Tomograms")
        for number in sorted(names_in(folder)):
            names = names_in(storage.join(folder, number))
            name = next((n for n in (f"{run}.zarr", f"{run}.mrc") if n in names), None)
            if name is not None:
                annotations_uri = storage.join(reconstructions, truth, "Annotations") if truth else ""
                tomograms.append(PortalTomogram(run, spacing, number, storage.join(folder, number, name), annotations_uri))
    return tomograms


def _annotation_folders(annotations_uri: str) -> list[tuple[str, list[str]]]:
    if annotations_uri.endswith(".ndjson"):
        folders = [annotations_uri.rpartition("/")[0]]
    else:
        folders = [storage.join(annotations_uri, number) for number in sorted(names_in(annotations_uri))]
    return [(folder, names_in(folder)) for folder in folders]


def _read_truth(uri: str) -> str:
    """Return the class that an annotation's metadata names, or "" where it is not truth."""
    try:
        annotation = _Annotation.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise FormatError(f"{uri}: not the metadata of a portal annotation ({error.errors()[0]['msg']}); copy it from the portal again") from None
    is_truth = annotation.ground_truth_status or annotation.deposition_id == TRUTH_DEPOSITION
    return annotation.annotation_object.name if is_truth else ""
