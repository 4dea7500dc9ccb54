"""What every reader of tomograms checks: the voxel size, the box, and whether its values fit into memory."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from tomoray.tomogram import Box, FormatError, Triple

VALUE_BYTES = 64  # of a number or a short text as a Python object
VOXEL_SIZE_TOLERANCE = 0.01  # folder names round 10.012 to 10.0; a wrong binning is a factor of two


def agreed_voxel_size(where: str, stated: Triple | None, given: float | None) -> Triple:
    """Return the voxel size in angstrom along z, y, x: the file's own where it states one, else the one given.

    A given size confirms what the file states and never overrules it, because rounded sizes are passed on by word of mouth and
    by folder names, and shift the far end of a tomogram by a particle.

    Raises
    ------
    FormatError
        If neither states a size, or they differ by more than a hundredth.
    """
    if given is not None and not (math.isfinite(given) and given > 0):
        raise FormatError(f"{where}: voxel_angstrom = {given} was given; it must be a positive number of angstrom: correct it, or leave it out")
    if stated is None:
        if given is None:
            raise FormatError(f"{where}: the file states no usable voxel size; positions cannot be computed without one: give voxel_angstrom")
        return given, given, given
    if given is not None and any(abs(size - given) > VOXEL_SIZE_TOLERANCE * given for size in stated):
        sizes = ", ".join(f"{size:.4g}" for size in stated)
        raise FormatError(
            f"{where}: the file states voxels of {sizes} angstrom (z, y, x), {given:.4g} angstrom was given; they must agree to "
            f"{VOXEL_SIZE_TOLERANCE:.0%}: check that this is the tomogram you mean, then correct its header or the number"
        )
    return stated


def box_bounds(where: str, box: Box, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last-plus-one voxel of a box along each axis, as numpy counts them: cut at the volume's edges.

    Raises
    ------
    IndexError
        If the box leaves out voxels.
    """
    bounds = []
    for part, length in zip(box, shape, strict=True):
        start, stop, step = part.indices(length)
        if step != 1:
            raise IndexError(f"{where}: a box with step {step}; boxes are read whole, with step 1: take every other voxel of what was read")
        bounds.append((start, max(start, stop)))
    return bounds


def check_fits_memory(where: str, needed_bytes: int) -> None:
    """Stop before a request that memory cannot hold.

    Raises
    ------
    FormatError
        If more is needed than this machine (or its container) has.
    """
    available = memory_bytes()
    if needed_bytes > available:
        raise FormatError(
            f"{where}: {needed_bytes:,} bytes of values are asked for and this machine has {available:,} bytes of memory; "
            "read the volume in boxes, or bin it, or check that the header is right"
        )


def check_table_fits_memory(where: str, content: bytes) -> None:
    """Stop before a Parquet file is unpacked that memory cannot hold: a value that repeats takes no room in it, but does in memory.

    Raises
    ------
    FormatError
        If it has more values than this machine's memory could hold as Python objects.
    pyarrow.ArrowException
        If it is no Parquet file.
    """
    import pyarrow.parquet as pq

    about = pq.read_metadata(io.BytesIO(content))
    groups = [about.row_group(group) for group in range(about.num_row_groups)]
    values = sum(max(0, group.column(column).num_values) for group in groups for column in range(group.num_columns))
    check_fits_memory(where, max(values, about.num_rows) * VALUE_BYTES)


def memory_bytes(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the memory of this machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = cgroup_limit.read_text().strip()
    except OSError:  # no Linux, or no container
        return total
    return min(total, int(limit)) if limit.isdigit() else total
