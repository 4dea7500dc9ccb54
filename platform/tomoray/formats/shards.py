"""Chunks of zarr shards, in few requests and with little work for each.

Zarr's Python asks for the chunks of a shard one after another and hands each through its machinery, a millisecond of work. A crop touches 27.
Here chunks that lie nearly side by side come in one request, and are unpacked by the same libraries at once. That serves arrays as
`tomoray ingest` writes them (Blosc, a crc32c behind each chunk, the index at the end); all others are left to zarr.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoray import storage

SHARDS_AT_ONCE = 8
FEW_CHUNKS = 64  # as a crop touches; where those lie on a disk, threads would cost more than they gain
GAP_CHUNKS = 2  # that nobody wants, between two that are wanted: fetching them from a server is cheaper than another request

_NOTHING = 2**64 - 1  # offset and length of a chunk that was never written
_CHECKSUM = 4  # bytes of a crc32c
_OVERHEAD = 64  # bytes that a packed chunk may be longer than its values: Blosc's header, and the checksum

ChunkIndex = tuple[int, ...]
Take = Callable[[ChunkIndex, NDArray[Any]], None]


@dataclass
class Shards:
    """The shards of one array.

    Attributes
    ----------
    uri
        Address of the array.
    array
        What zarr knows of it.
    """

    uri: str
    array: Any
    _asked: list[int] = field(default_factory=list, compare=False)  # a list, since threads append to it at once
    _indices: dict[ChunkIndex, NDArray[np.uint64] | None] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, uri: str, array: Any) -> Shards | None:
        """Return the shards of an array, or nothing where it is not written as `tomoray ingest` does."""
        if not array.shards:
            return None
        outer, *others = array.metadata.to_dict()["codecs"]
        if others or outer["name"] != "sharding_indexed":
            return None
        inside = outer["configuration"]
        little, checksum = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
        first, *packed = inside["codecs"]
        in_order = first == little or (array.dtype.itemsize == 1 and first["name"] == "bytes")  # single bytes have no order to tell
        at_end = inside["index_codecs"] == (little, checksum) and inside["index_location"] == "end"
        return cls(uri, array) if in_order and at_end and [codec["name"] for codec in packed] == ["blosc", "crc32c"] else None

    def fetch(self, wanted: Sequence[ChunkIndex], take: Take) -> None:
        """Hand over chunks, unpacked and cut at the end of the array, in any order, and perhaps from several threads.

        Raises
        ------
        ValueError
            If a chunk cannot be unpacked, or is not the one that was written.
        """
        by_shard: dict[ChunkIndex, list[ChunkIndex]] = {}
        for index in wanted:
            by_shard.setdefault(tuple(i // n for i, n in zip(index, self._per_shard, strict=True)), []).append(index)
        if len(by_shard) <= 1 or (len(wanted) <= FEW_CHUNKS and storage.is_local(self.uri)):
            self._asked.extend(self._fetch_from(shard, chunks, take) for shard, chunks in by_shard.items())
            return
        with ThreadPoolExecutor(min(len(by_shard), SHARDS_AT_ONCE)) as pool:
            self._asked.extend(pool.map(lambda shard: self._fetch_from(shard, by_shard[shard], take), by_shard))

    @property
    def bytes_read(self) -> int:
        """How many bytes were asked for so far."""
        return sum(self._asked)

    @cached_property
    def _chunk_shape(self) -> tuple[int, ...]:
        return tuple(self.array.chunks)  # zarr takes 5 us to tell, which a crop would ask two hundred times

    @cached_property
    def _per_shard(self) -> tuple[int, ...]:
        return tuple(shard // chunk for shard, chunk in zip(self.array.shards, self._chunk_shape, strict=True))

    def _fetch_from(self, shard: ChunkIndex, wanted: Sequence[ChunkIndex], take: Take) -> int:
        """Hand over chunks of one shard, and return how many bytes that asked for."""
        where = storage.join(self.uri, self.array.metadata.encode_chunk_key(shard))
        asked = 0 if shard in self._indices else self._index_bytes
        entries = self._index(shard, where)
        places: dict[tuple[int, int], list[ChunkIndex]] = {}  # chunks that are alike may share one
        for index in wanted:
            inside = np.ravel_multi_index([i % n for i, n in zip(index, self._per_shard, strict=True)], self._per_shard)
            start, length = (int(number) for number in entries[inside]) if entries is not None else (_NOTHING, _NOTHING)
            if (start, length) == (_NOTHING, _NOTHING):
                take(index, np.full(self._shape(index), self.array.fill_value, self.array.dtype))
                continue
            if length > self._chunk_bytes + _OVERHEAD:
                raise ValueError(f"its index tells {length} packed bytes for {self._chunk_bytes}")
            places.setdefault((start, start + length), []).append(index)
        if not places:
            return asked
        gap = 0 if storage.is_local(where) else GAP_CHUNKS * self._chunk_bytes
        spans = list(merged(sorted(places), gap))
        parts = storage.read_ranges(where, [(span[0][0], max(end for _, end in span)) for span in spans])
        for span, part in zip(spans, parts, strict=True):
            for start, end in span:
                chunk = self._unpack(part[start - span[0][0] : end - span[0][0]])
                for index in places[start, end]:
                    take(index, chunk[tuple(map(slice, self._shape(index)))])
        return asked + sum(map(len, parts))

    def _index(self, shard: ChunkIndex, where: str) -> NDArray[np.uint64] | None:
        """Return where the chunks of a shard lie `(chunks, 2)`: offset and length; nothing where there is no such shard."""
        if shard not in self._indices:
            try:
                packed = storage.read_bytes(where, last=self._index_bytes)
            except FileNotFoundError:
                self._indices[shard] = None
            else:
                if len(packed) < self._index_bytes:
                    raise ValueError(f"it has {len(packed)} bytes, fewer than its index of {self._index_bytes}")
                self._indices[shard] = np.frombuffer(_checked(packed), "<u8").reshape(-1, 2)
        return self._indices[shard]

    def _unpack(self, packed: bytes) -> NDArray[Any]:
        from numcodecs import Blosc

        data = _checked(packed)
        told = int.from_bytes(data[4:8], "little")  # of Blosc's header: the size of what is packed
        if told != self._chunk_bytes:
            raise ValueError(f"it unpacks to {told} bytes, not {self._chunk_bytes}")
        values = np.empty(self._chunk_shape, self.array.dtype)
        Blosc().decode(data, values)
        return values

    def _shape(self, index: ChunkIndex) -> tuple[int, ...]:
        """Return the shape of a chunk as far as the array goes."""
        return tuple(min(size, length - i * size) for i, size, length in zip(index, self._chunk_shape, self.array.shape, strict=True))

    @cached_property
    def _index_bytes(self) -> int:
        return 16 * math.prod(self._per_shard) + _CHECKSUM

    @cached_property
    def _chunk_bytes(self) -> int:
        return int(math.prod(self._chunk_shape) * self.array.dtype.itemsize)


def merged(ranges: Sequence[tuple[int, int]], gap: int) -> Iterator[list[tuple[int, int]]]:
    """Yield sorted ranges in groups, in each of which no two neighbours lie more than a gap apart."""
    group: list[tuple[int, int]] = []
    for start, end in ranges:
        if group and start - group[-1][1] > gap:
            yield group
            group = []
        group.append((start, end))
    if group:
        yield group


def _checked(packed: bytes) -> bytes:
    """Return data without the checksum behind them, with which they must agree."""
    import google_crc32c

    data, told = packed[:-_CHECKSUM], int.from_bytes(packed[-_CHECKSUM:], "little")
    if google_crc32c.value(data) != told:
        raise ValueError("its checksum tells of other data")
    return data
