"""Values of a zarr array as a tomogram's: boxes, of which only the chunks that they touch are read."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.formats.checks import box_bounds, check_fits_memory
from tomoray.formats.chunk_cache import ChunkCache, chunk_cache, version_of
from tomoray.formats.shards import ChunkIndex, Shards, Take
from tomoray.tomogram import Box, FormatError

CHUNKS_AT_ONCE = 64  # that are fetched side by side, or kept in a cache; of larger boxes zarr fetches whole shards where it can

_UNDECODABLE = (RuntimeError, ValueError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)  # what zarr's codecs raise, one by one


@dataclass
class ZarrVoxels:
    """Values of a zarr array, read box by box, with its axes brought into the order z, y, x."""

    uri: str
    array: Any
    zyx_axes: tuple[int, int, int]
    counted: bool = field(default=False, compare=False)
    _shards: Shards | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self._shards = Shards.of(storage.join(self.uri, self.array.path), self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[axis] for axis in self.zyx_axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def __getitem__(self, box: Box, /) -> NDArray[Any]:
        bounds = box_bounds(self.uri, box, self.shape)
        check_fits_memory(self.uri, math.prod(stop - start for start, stop in bounds) * self.dtype.itemsize)
        if not self.counted:
            self.counted = True
            self._warn_of_absent_chunks()
        spans = [slice(0, 1)] * self.array.ndim  # axes of length one beside z, y and x
        for axis, (start, stop) in zip(self.zyx_axes, bounds, strict=True):
            spans[axis] = slice(start, stop)
        with storage.plain_errors(self.uri):
            try:
                values = self._read(spans)
            except _UNDECODABLE as error:
                chunk = self._first_broken_chunk(spans)
                if chunk is None:
                    raise
                raise FormatError(f"{self.uri}: chunk {chunk} cannot be decoded ({error}); the file is damaged: fetch or write it again") from None
        others = [axis for axis in range(values.ndim) if axis not in self.zyx_axes]
        zyx: NDArray[Any] = values.transpose([*others, *self.zyx_axes]).reshape([stop - start for start, stop in bounds])
        return zyx

    def bytes_of(self, box: Box, /) -> int:
        """Return how many bytes the chunks hold that a box touches, before compression."""
        bounds = box_bounds(self.uri, box, self.shape)
        chunks: list[int] = [self.array.chunks[axis] for axis in self.zyx_axes]
        touched = (-(-stop // size) - start // size if stop > start else 0 for (start, stop), size in zip(bounds, chunks, strict=True))
        return math.prod(touched) * math.prod(chunks) * int(self.dtype.itemsize)

    @property
    def bytes_read(self) -> int:
        """How many bytes storage has handed out so far, compressed as they lie there."""
        return int(self.array.store.bytes_read) + (self._shards.bytes_read if self._shards else 0)

    def _read(self, spans: Sequence[slice]) -> NDArray[Any]:
        chunks = self.array.chunks
        wanted = list(_touched(spans, chunks)) if all(span.stop > span.start for span in spans) else []
        few = len(wanted) <= CHUNKS_AT_ONCE and not storage.is_local(self.uri)
        cached, side_by_side = few and self._cache is not None, few and self.array.shards is not None
        if not wanted or not (self._shards or cached or side_by_side):
            return np.asarray(self.array[tuple(spans)])
        values = np.empty([span.stop - span.start for span in spans], self.dtype)

        def take(index: ChunkIndex, chunk: NDArray[Any]) -> None:
            """Put what the box needs of a chunk into its place."""
            starts = [i * size for i, size in zip(index, chunks, strict=True)]
            low = [max(span.start, start) for span, start in zip(spans, starts, strict=True)]
            high = [min(span.stop, start + length) for span, start, length in zip(spans, starts, chunk.shape, strict=True)]
            there = tuple(slice(a - span.start, b - span.start) for a, b, span in zip(low, high, spans, strict=True))
            values[there] = chunk[tuple(slice(a - start, b - start) for a, b, start in zip(low, high, starts, strict=True))]

        fetch = self._fetch_cached if cached else self._fetch
        fetch(wanted, take)
        return values

    def _fetch(self, wanted: Sequence[ChunkIndex], take: Take) -> None:
        """Hand over chunks; zarr would fetch those of one shard one after another, so they come side by side."""
        if self._shards:
            self._shards.fetch(wanted, take)
            return
        with ThreadPoolExecutor(CHUNKS_AT_ONCE) as pool:
            for index, chunk in zip(wanted, pool.map(lambda index: np.asarray(self.array[self._chunk(index)]), wanted), strict=True):
                take(index, chunk)

    def _fetch_cached(self, wanted: Sequence[ChunkIndex], take: Take) -> None:
        """Hand over chunks from this node's cache, and fetch and keep those that it lacks."""
        assert self._cache is not None, "whoever calls has looked"
        kept, name = self._cache
        lacking = []
        for index in wanted:
            shape = [part.stop - part.start for part in self._chunk(index)]
            data = kept.get(f"{name} {index}", math.prod(shape) * self.dtype.itemsize)
            if data is None:
                lacking.append(index)
            else:
                take(index, np.frombuffer(data, self.dtype).reshape(shape))

        def keep(index: ChunkIndex, chunk: NDArray[Any]) -> None:
            kept.put(f"{name} {index}", chunk.tobytes())
            take(index, chunk)

        self._fetch(lacking, keep)

    @cached_property
    def _cache(self) -> tuple[ChunkCache, str] | None:
        """The cache of chunks and what its keys begin with, where there is one and the server tells versions apart."""
        kept = chunk_cache()
        metadata = storage.join(self.uri, self.array.path, "zarr.json" if self.array.metadata.zarr_format == 3 else ".zarray")
        version = version_of(metadata) if kept else None
        return (kept, f"{metadata} {version}") if kept and version else None

    def _chunk(self, index: ChunkIndex) -> tuple[slice, ...]:
        """Return where a chunk lies in the array."""
        places = zip(index, self.array.chunks, self.array.shape, strict=True)
        return tuple(slice(i * size, min((i + 1) * size, length)) for i, size, length in places)

    def _warn_of_absent_chunks(self) -> None:
        if storage.protocol(self.uri) in ("http", "https"):  # no listing there
            return
        what, per_object = ("chunks", 1) if self.array.shards is None else ("shards", math.prod(self._grid) // math.prod(self.array.chunks))
        objects = math.prod(-(-length // size) for length, size in zip(self.array.shape, self._grid, strict=True))
        with storage.plain_errors(self.uri):
            absent = objects - self.array.nchunks_initialized // per_object
        if absent:
            text = (
                f"{self.uri}: {absent} of {objects} {what} of array {self.array.path!r} are absent and read as "
                f"{self.array.fill_value}; particles there cannot be found: fetch the file again unless its writer leaves out empty chunks"
            )
            warnings.warn(text, UserWarning, stacklevel=4)

    def _first_broken_chunk(self, spans: Sequence[slice]) -> str | None:
        """Return the name of the first object of a box that cannot be decoded by itself."""
        for index in _touched(spans, self._grid):
            try:
                self.array[tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, self._grid, strict=True))]
            except _UNDECODABLE:
                return storage.join(self.array.path, self.array.metadata.encode_chunk_key(index))
        return None

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(self.array.shards or self.array.chunks)


def _touched(spans: Sequence[slice], grid: Sequence[int]) -> Iterator[ChunkIndex]:
    """Yield the cells of a grid that a box touches."""
    return itertools.product(*(range(span.start // size, -(-span.stop // size)) for span, size in zip(spans, grid, strict=True)))
