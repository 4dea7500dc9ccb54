"""Readers and writers of files, one format per module; the only place where axes are swapped between x, y, z and z, y, x."""

from __future__ import annotations

from tomoray import storage
from tomoray.tomogram import FormatError, Tomogram

_MRC_SUFFIXES = (".mrc", ".rec", ".map", ".st", ".ali", ".mrcs")
_PACKED_SUFFIXES = (".gz", ".bz2")
_ZARR_MARKERS = ("zarr.json", ".zgroup", ".zattrs")


def open_tomogram(uri: storage.Uri, *, name: str | None = None, voxel_angstrom: float | None = None, permissive: bool = False) -> Tomogram:
    """Return a tomogram whose values are read on demand.

    Parameters
    ----------
    uri
        Local path, s3:// or https:// of an MRC file (.mrc .rec .map .st .ali .mrcs, also .gz and .bz2) or of an OME-Zarr folder.
    name
        What to call it; the file's name without its endings by default.
    voxel_angstrom
        Edge of a voxel: needed where the file states none, and compared where it does.
    permissive
        Read files that break the format's rules where they can be understood nevertheless, with a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is no tomogram, is damaged, or contradicts `voxel_angstrom`.
    """
    stem, is_mrc, is_zarr = _by_name(uri)
    if not is_mrc and not is_zarr:
        is_zarr = any(storage.exists(storage.join(uri, marker)) for marker in _ZARR_MARKERS)
    if is_zarr:
        from tomoray.formats.ome_zarr import open_ome_zarr

        return open_ome_zarr(uri, name=name or stem, voxel_angstrom=voxel_angstrom, permissive=permissive)
    if is_mrc:
        from tomoray.formats.mrc import open_mrc

        return open_mrc(uri, name=name or stem, voxel_angstrom=voxel_angstrom, permissive=permissive)
    if not storage.exists(uri):
        raise FileNotFoundError(f"{uri}: there is no such file or folder; check the path and, for s3://, the bucket and the endpoint")
    raise FormatError(
        f"{uri}: not a kind of file that is known as a tomogram; known are OME-Zarr folders (.zarr) and MRC files "
        f"({' '.join(_MRC_SUFFIXES)}, also with {' or '.join(_PACKED_SUFFIXES)}): convert it, or correct its name"
    )


def is_tomogram(uri: storage.Uri) -> bool:
    """Return whether a file is a tomogram by its name alone."""
    _, is_mrc, is_zarr = _by_name(uri)
    return is_mrc or is_zarr


def _by_name(uri: storage.Uri) -> tuple[str, bool, bool]:
    """Return the name without its endings, whether it is that of an MRC file, and whether it is that of an OME-Zarr folder."""
    name = storage.as_text(uri).rpartition("/")[2]
    lower = name.lower()
    if lower.endswith(".zarr"):
        stem = name[: -len(".zarr")]
        return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem, False, True
    packing = next((suffix for suffix in _PACKED_SUFFIXES if lower.endswith(suffix)), "")
    ending = next((suffix for suffix in _MRC_SUFFIXES if lower.endswith(suffix + packing)), None)
    return (name, False, False) if ending is None else (name[: -len(ending + packing)], True, False)
