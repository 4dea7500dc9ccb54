"""MRC files and their relatives (.rec .map .st .ali .mrcs): read in boxes and strictly, written whole.

The format is MRC2014 (Cheng et al. 2015, doi:10.1016/j.jsb.2015.04.002), with IMOD's unsigned bytes
(https://bio3d.colorado.edu/imod/doc/mrc_format.txt). Headers are checked against the size of the file before anything is
allocated. What breaks the standard but has one meaning only is read with a warning; what has two is refused.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.formats.checks import agreed_voxel_size, box_bounds, check_fits_memory
from tomoray.tomogram import Box, FormatError, Tomogram, Triple

ByteOrder = Literal["<", ">"]

GAP_BYTES = 2**17  # what a connection delivers (50 MB/s) while a request waits for its answer (50 ms), shared by some twenty under way at once
PART_BYTES = 2**24  # of one request: several bring a large file faster than one, and what breaks off is soon asked for again

_HEADER_BYTES = 1024
_PIECE_BYTES = 1 << 24
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED_MODES = {3: "a Fourier transform of integers", 4: "a Fourier transform", 101: "four bits per voxel"}
_IMOD_STAMP = 1146047817  # "IMOD" as an integer
_PACKINGS: dict[bytes, Any] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open}  # as a number of columns these would be millions


def open_mrc(uri: storage.Uri, *, name: str, voxel_angstrom: float | None = None, permissive: bool = False) -> Tomogram:
    """Return an MRC file as a tomogram whose boxes are read on demand: from a memory map, or by byte ranges where it is remote.

    Files packed with gzip or bzip2 are known by what they hold, not by their names, and are unpacked in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is no MRC volume, holds less than its header promises, or states no voxel size or another than `voxel_angstrom`.
        Unless `permissive`, also if its cell is not rectangular.
    """
    where = storage.as_text(uri)
    head = storage.read_ranges(uri, [(0, _HEADER_BYTES)])[0]
    unpack = _PACKINGS.get(head[:3])
    if unpack is None:
        content, layout, already = None, _read_layout(where, head, permissive), 0
        _check_length(where, layout, storage.size_bytes(uri))
    else:
        packed = storage.read_bytes(uri)
        already = len(packed)
        try:
            with unpack(io.BytesIO(packed)) as stream:
                head = stream.read(_HEADER_BYTES)
                layout = _read_layout(where, head, permissive)
                check_fits_memory(where, layout.end_byte)
                content = _read_up_to(stream, head, layout.end_byte + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise FormatError(f"{where}: cannot be unpacked ({error}); it must be a whole gzip or bzip2 file: fetch or pack it again") from None
        _check_length(where, layout, len(content))
    voxel = agreed_voxel_size(where, layout.voxel_angstrom, voxel_angstrom)
    for warning in layout.warnings:
        warnings.warn(f"{where}: {warning}", UserWarning, stacklevel=3)
    return Tomogram(name, _MrcVoxels(where, layout, content, [already]), voxel, layout.origin_angstrom, where)


def write_mrc(uri: storage.Uri, tomogram: Tomogram) -> None:
    """Write a volume as MRC2014, little-endian, with voxel size, origin and statistics; packed if the name ends in .gz or .bz2.

    int8, int16, uint16, float16 and float32 are written as they are; uint8 is widened to uint16, for MRC has no unsigned bytes.

    Raises
    ------
    FormatError
        If the format has no mode for the type of the values.
    """
    import mrcfile

    values = tomogram.read()
    if values.dtype.kind + str(values.dtype.itemsize) not in {*_MODES.values(), "u1"}:
        raise FormatError(f"{uri}: MRC has no mode for {values.dtype}; it must be int8, int16, uint16, float16 or float32: convert it with astype")
    packing = {"gz": "gzip", "bz2": "bzip2"}.get(str(uri).rpartition(".")[2].lower())
    with storage.new_file(uri) as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Data array contains|overflow|invalid value", RuntimeWarning)  # statistics of volumes that hold NaN
        with mrcfile.new(path, compression=packing) as mrc:
            mrc.set_data(values.astype(values.dtype.newbyteorder("<"), copy=False))
            mrc.set_volume()
            mrc.voxel_size = tomogram.voxel_angstrom[::-1]
            mrc.header.origin = tomogram.origin_angstrom[::-1]


@dataclass(frozen=True)
class _Layout:
    """Where the values of a file lie and what they mean.

    `stored_shape` counts sections, rows and columns; `zyx_axes` says which of these three runs along z, y and x.
    """

    dtype: np.dtype[Any]
    stored_shape: tuple[int, int, int]
    zyx_axes: tuple[int, int, int]
    first_byte: int
    voxel_angstrom: Triple | None
    origin_angstrom: Triple
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, int, int]:
        """How many voxels lie between neighbours along each stored axis."""
        _, rows, columns = self.stored_shape
        return rows * columns, columns, 1

    @property
    def end_byte(self) -> int:
        return self.first_byte + math.prod(self.stored_shape) * self.dtype.itemsize


@dataclass
class _MrcVoxels:
    """Values of a file, read box by box. Holds no open file, so that it travels to workers as its name (or its unpacked content)."""

    uri: str
    layout: _Layout
    content: bytes | None = field(default=None, repr=False)
    _asked: list[int] = field(default_factory=list, compare=False)  # a list, since threads append to it at once

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layout.stored_shape[axis] for axis in self.layout.zyx_axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.layout.dtype.newbyteorder("=")

    def __getitem__(self, box: Box, /) -> NDArray[Any]:
        stored = self._stored(box)
        lengths = [stop - start for start, stop in stored]
        check_fits_memory(self.uri, math.prod(lengths) * self.dtype.itemsize)
        self._asked.append(self.bytes_of(box))
        if 0 in lengths:
            values = np.empty(lengths, self.dtype)
        elif self.is_mapped:
            values = self._read_map(stored)
        else:
            values = self._read_ranges(stored)
        return values.astype(self.dtype, copy=False).transpose(self.layout.zyx_axes)

    @property
    def bytes_read(self) -> int:
        """How many bytes boxes have asked for so far, and what unpacking took."""
        return sum(self._asked)

    @property
    def is_mapped(self) -> bool:
        """Whether values lie in memory or in a file of this machine, of which any part can be had."""
        return self.content is not None or storage.is_local(self.uri)

    def bytes_of(self, box: Box, /) -> int:
        """Return how many bytes reading a box asks for; none where the file was packed, since then all of it is in memory already."""
        stored = self._stored(box)
        if self.content is not None or any(start == stop for start, stop in stored):
            return 0
        if self.is_mapped:
            return math.prod(stop - start for start, stop in stored) * self.dtype.itemsize
        return sum(stop - start for start, stop in _ranges(self.layout, stored)[0])

    def _stored(self, box: Box) -> list[tuple[int, int]]:
        """Return the bounds of a box in sections, rows and columns."""
        stored = [(0, 0)] * 3
        for axis, bounds in zip(self.layout.zyx_axes, box_bounds(self.uri, box, self.shape), strict=True):
            stored[axis] = bounds
        return stored

    def _read_map(self, stored: list[tuple[int, int]]) -> NDArray[Any]:
        layout, everything = self.layout, math.prod(self.layout.stored_shape)
        if self.content is not None:
            mapped = np.frombuffer(self.content, layout.dtype, everything, layout.first_byte).reshape(layout.stored_shape)
        else:
            path = storage.local_path(self.uri)
            if path.stat().st_size < layout.end_byte:  # it shrank since; touching a map beyond the end of its file kills the process
                raise _too_short(self.uri, layout.end_byte, path.stat().st_size)
            mapped = np.memmap(path, layout.dtype, "r", layout.first_byte, layout.stored_shape)
        return np.array(mapped[tuple(slice(*bounds) for bounds in stored)])

    def _read_ranges(self, stored: list[tuple[int, int]]) -> NDArray[Any]:
        ranges, joined = _ranges(self.layout, stored)
        parts = [(low, min(low + PART_BYTES, stop)) for start, stop in ranges for low in range(start, stop, PART_BYTES)]
        blocks = storage.read_ranges(self.uri, parts)
        if any(len(block) != stop - start for block, (start, stop) in zip(blocks, parts, strict=True)):
            raise _too_short(self.uri, self.layout.end_byte, storage.size_bytes(self.uri))
        content = b"".join(blocks)
        del blocks
        lengths = [last - first for first, last in stored]
        apart, together = lengths[:joined], lengths[joined:]
        strides = [size * self.layout.dtype.itemsize for size in self.layout.steps[joined:]]
        values = np.empty(lengths, self.layout.dtype)
        for number, index in enumerate(np.ndindex(*apart)):
            values[index] = np.ndarray(together, self.layout.dtype, content, number * (ranges[0][1] - ranges[0][0]), strides)
        return values


def _ranges(layout: _Layout, stored: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Return the byte ranges to ask for, equally long, and how many axes they go through: each range holds what lies in the axes after.

    A box is many short rows. Neighbouring rows are asked for together, with what lies between them, while that is less than `GAP_BYTES`;
    sections likewise. So a 96^3 box of a tomogram of 630 columns takes 96 requests of 240 KB and not 9,216 of 384 bytes, and what is
    fetched in vain is at most `GAP_BYTES` for each request that it saves.
    """
    item = layout.dtype.itemsize
    lengths = [last - first for first, last in stored]
    spans = [item * (1 + sum((n - 1) * step for n, step in zip(lengths[axis:], layout.steps[axis:], strict=True))) for axis in range(3)]
    joined = 2  # every row by itself
    while joined and layout.steps[joined - 1] * item - spans[joined] <= GAP_BYTES:
        joined -= 1
    first = layout.first_byte + item * sum(bounds[0] * step for bounds, step in zip(stored, layout.steps, strict=True))
    offsets = [item * sum(i * step for i, step in zip(index, layout.steps, strict=False)) for index in np.ndindex(*lengths[:joined])]
    return [(first + offset, first + offset + spans[joined]) for offset in offsets], joined


def _read_layout(where: str, head: bytes, permissive: bool) -> _Layout:
    """Return the layout that a header of 1024 bytes states.

    Raises
    ------
    FormatError
        If it is not that of a volume of a known mode.
    """
    if len(head) < _HEADER_BYTES:
        raise FormatError(f"{where}: {len(head)} bytes; an MRC file starts with a header of {_HEADER_BYTES}: fetch or write the file again")
    header, order, notes = _parse(head)
    named = bytes(header["map"]) in (b"MAP ", b"MAP")
    if not named:
        notes.append("the header has no MAP identifier (written before MRC2014?); read as MRC because its sizes fit, without its origin")
    dtype = _values_type(where, int(header["mode"]), order, head, named)
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    if min(shape) < 1:
        raise FormatError(
            f"{where}: a volume of {shape} voxels (z, y, x) by its header; each must be positive: the header is damaged, write the file again"
        )
    if header["nsymbt"] < 0:
        raise FormatError(
            f"{where}: an extended header of {header['nsymbt']} bytes; it cannot be negative: the header is damaged, write the file again"
        )
    if header["ispg"] >= 401:
        raise FormatError(f"{where}: a stack of volumes (space group {header['ispg']}); a tomogram is one volume: split the file, one volume each")
    _check_cell(where, header, permissive, notes)
    return _Layout(
        dtype=dtype,
        stored_shape=shape,
        zyx_axes=_zyx_axes(where, header, notes),
        first_byte=_HEADER_BYTES + int(header["nsymbt"]),
        voxel_angstrom=_voxel_size(header, notes),
        origin_angstrom=_triple(header["origin"]) if named and np.isfinite(_triple(header["origin"])).all() else (0.0, 0.0, 0.0),
        warnings=tuple(notes),
    )


def _read_up_to(stream: Any, head: bytes, size: int) -> bytes:
    """Return a stream's start of some size, or all of it where it ends before; memory grows with what is there, not with what a header claims."""
    content = bytearray(head)
    while part := stream.read(min(_PIECE_BYTES, size - len(content))):
        content += part
    return bytes(content)


def _parse(head: bytes) -> tuple[Any, ByteOrder, list[str]]:
    """Return the fields of a header and its byte order: that of the machine stamp, else the one that gives the smaller sizes."""
    from mrcfile.dtypes import HEADER_DTYPE
    from mrcfile.utils import byte_order_from_machine_stamp

    orders: tuple[ByteOrder, ...] = ("<", ">")
    headers = {order: np.frombuffer(head, HEADER_DTYPE.newbyteorder(order))[0] for order in orders}
    notes = []
    stamp = headers["<"]["machst"]
    try:
        order: ByteOrder = byte_order_from_machine_stamp(stamp)
    except ValueError:
        order = min(orders, key=lambda order: sum(abs(int(headers[order][key])) for key in ("nx", "ny", "nz", "mode")))
        name = {"<": "little", ">": "big"}[order]
        notes.append(f"the machine stamp {stamp.tobytes().hex(' ')} names no byte order; {name}-endian gives sensible sizes and is taken")
    return headers[order], order, notes


def _values_type(where: str, mode: int, order: ByteOrder, head: bytes, named: bool) -> np.dtype[Any]:
    if mode not in _MODES:
        what = _REFUSED_MODES.get(mode, "unknown" if named else "unknown, and without the MAP identifier this may be no MRC file at all")
        raise FormatError(f"{where}: MRC mode {mode} ({what}); read are modes {', '.join(map(str, _MODES))}: convert the file to one of these")
    stamp, flags = np.frombuffer(head, np.dtype("i4").newbyteorder(order), count=2, offset=152)
    unsigned = mode == 0 and stamp == _IMOD_STAMP and not flags & 1
    return np.dtype("u1" if unsigned else _MODES[mode]).newbyteorder(order)


def _zyx_axes(where: str, header: Any, notes: list[str]) -> tuple[int, int, int]:
    """Return which stored axis (0 sections, 1 rows, 2 columns) runs along z, y and x."""
    stored = [int(header[key]) for key in ("maps", "mapr", "mapc")]  # 1, 2, 3 for x, y, z
    if stored == [0, 0, 0]:
        notes.append("the header states no axis order; columns, rows and sections are taken as x, y and z")
        return 0, 1, 2
    if sorted(stored) != [1, 2, 3]:
        raise FormatError(f"{where}: columns, rows and sections along axes {stored[::-1]}; they must be 1, 2, 3 in some order: correct the header")
    return stored.index(3), stored.index(2), stored.index(1)


def _voxel_size(header: Any, notes: list[str]) -> Triple | None:
    """Return cell length over number of intervals along z, y, x, or nothing where the header has no sensible numbers."""
    intervals = np.array([int(header[key]) for key in ("mz", "my", "mx")])
    if header["ispg"] == 0 and intervals[0] == 1 < header["nz"]:
        notes.append("the header describes a stack of images (space group 0, mz 1), which has no voxel size along z; that along x is taken")
        cell = np.array(_triple(header["cella"]))[[2, 1, 2]]
        intervals = intervals[[2, 1, 2]]
    else:
        cell = np.array(_triple(header["cella"]))
    if not (np.isfinite(cell).all() and (cell > 0).all() and (intervals > 0).all()):
        return None
    z, y, x = (cell / intervals).tolist()
    return z, y, x


def _check_cell(where: str, header: Any, permissive: bool, notes: list[str]) -> None:
    angles = tuple(float(header["cellb"][key]) for key in ("alpha", "beta", "gamma"))
    if all(angle == 0 or abs(angle - 90) < 0.1 for angle in angles):  # all zero in headers that leave them out
        return
    message = f"cell angles of {', '.join(f'{angle:.4g}' for angle in angles)} degrees; voxels of a tomogram are rectangular"
    if not permissive:
        raise FormatError(f"{where}: {message}: resample the map to a rectangular grid, or read it with permissive=True as if it were one")
    notes.append(f"{message}; read as if they were 90")


def _check_length(where: str, layout: _Layout, size: int) -> None:
    if size < layout.end_byte:
        raise _too_short(where, layout.end_byte, size)
    if size > layout.end_byte:
        text = f"the file goes on after the {layout.end_byte:,} bytes that its header describes; the rest is not read: check that it is one volume"
        warnings.warn(f"{where}: {text}", UserWarning, stacklevel=4)


def _too_short(where: str, promised: int, size: int) -> FormatError:
    what = f"the file holds {size:,} bytes where its header promises {promised:,}"
    return FormatError(f"{where}: {what}; it is cut short, or its header is wrong: fetch or write it again")


def _triple(xyz: Any) -> Triple:
    """Return a header's x, y, z as z, y, x."""
    return float(xyz["z"]), float(xyz["y"]), float(xyz["x"])
