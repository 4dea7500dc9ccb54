"""Chunks of shards: few requests, the values that zarr reads, and everything else left to zarr."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tomoray import storage
from tomoray.formats import open_tomogram
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.formats.shards import Shards, merged
from tomoray.tomogram import FormatError, Tomogram

VALUES = np.random.default_rng(0).standard_normal((20, 30, 40)).astype(np.float16)
BOX = (slice(3, 18), slice(7, 23), slice(8, 39))
CHUNK_BYTES = 8**3 * 2  # of which noise takes twenty more when it is packed


def write(uri: Path | str, values: np.ndarray = VALUES) -> None:
    write_ome_zarr(uri, Tomogram("a", values, (10.0,) * 3), zarr_format=3, chunk_vox=8, shard_vox=32)


def shard_of(folder: Path) -> Path:
    """The first of the two files of a volume that `write` has written; it holds 3 x 4 x 4 chunks."""
    return folder / "0" / "c" / "0" / "0" / "0"


def index_of(content: bytes) -> np.ndarray:
    """Offsets and lengths of the chunks in it `(48, 2)`."""
    return np.frombuffer(content[-(16 * 48 + 4) : -4], "<u8").reshape(-1, 2).copy()


def with_index(content: bytes, index: np.ndarray) -> bytes:
    """What is in the file, with another index and the checksum of that."""
    packed = index.tobytes()
    return content[: -len(packed) - 4] + packed + google_crc32c.value(packed).to_bytes(4, "little")


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every range of bytes that is read."""
    asked: list[tuple[int, int]] = []
    read = storage.read_ranges

    def noting(uri: storage.Uri, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        asked.extend(wanted)
        return read(uri, wanted)

    monkeypatch.setattr(storage, "read_ranges", noting)
    return asked


@pytest.mark.parametrize("dtype", ["f2", "f4", "i1", "u2"])
def test_boxes_are_those_that_zarr_reads(tmp_path: Path, dtype: str) -> None:
    """Planted: chunks looked up in the index of another shard."""
    values = (VALUES * 20).astype(dtype)
    write(tmp_path / "a.zarr", values)
    array = zarr.open_array(tmp_path / "a.zarr", path="0", mode="r")
    assert Shards.of(str(tmp_path / "a.zarr" / "0"), array) is not None
    tomogram = open_tomogram(tmp_path / "a.zarr")
    for box in (BOX, np.s_[:, :, :], np.s_[19:20, 29:30, 39:40], np.s_[0:8, 0:8, 32:40], np.s_[5:5, :, :]):
        np.testing.assert_array_equal(tomogram.read(box), array[box])


def test_neighbours_come_in_one_request(tmp_path: Path, s3_bucket: str, ranges: list[tuple[int, int]]) -> None:
    """A box of 3 x 3 x 3 chunks, in the order of a Morton curve. Planted: a request for each; on a server no chunk fetched that nobody wants."""
    box = np.s_[0:20, 0:24, 0:24]
    requests = {}
    for kind, uri in (("disk", str(tmp_path / "a.zarr")), ("server", f"{s3_bucket}/a.zarr")):
        write(uri)
        tomogram = open_tomogram(uri)
        before = tomogram.bytes_read
        np.testing.assert_array_equal(tomogram.read(box), VALUES[box])
        requests[kind] = len(ranges)
        asked = sum(end - start for start, end in ranges)
        assert tomogram.bytes_read - before == asked + 16 * 48 + 4, "and the index"
        assert asked <= 27 * (CHUNK_BYTES + 20) * (1 if kind == "disk" else 2)
        ranges.clear()
    assert requests == {"disk": 8, "server": 3}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), unique_by=lambda pair: pair[0]), st.integers(0, 9))
def test_ranges_are_merged_where_the_gap_is_small(steps: list[tuple[int, int]], gap: int) -> None:
    ranges, end = [], 0
    for space, length in steps:
        ranges.append((end + space, end + space + length))
        end += space + length
    groups = list(merged(ranges, gap))
    assert [one for group in groups for one in group] == ranges
    assert all(later[0] - earlier[1] <= gap for group in groups for earlier, later in itertools.pairwise(group))
    assert all(later[0][0] - earlier[-1][1] > gap for earlier, later in itertools.pairwise(groups))


@pytest.mark.parametrize(
    "changes",
    [
        {"compressors": None},
        {"compressors": zarr.codecs.ZstdCodec()},
        {"compressors": zarr.codecs.BloscCodec()},
        {"dtype": ">f2"},
        {"shards": {"shape": (16, 16, 16), "index_location": "start"}},
        {"shards": None},
    ],
    ids=["plain", "zstd", "without checksums", "big endian", "index first", "no shards"],
)
def test_what_is_written_otherwise_is_left_to_zarr(tmp_path: Path, s3_bucket: str, changes: dict[str, Any]) -> None:
    """Planted: the place of the index not looked at."""
    packed = [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()]
    settings = {"dtype": "f2", "chunks": (8, 8, 8), "shards": (16, 16, 16), "compressors": packed} | changes
    if isinstance(settings["dtype"], str) and settings["dtype"].startswith(">"):
        settings |= {"dtype": "f2", "serializer": zarr.codecs.BytesCodec(endian="big")}
    array = zarr.create_array(tmp_path / "a.zarr", name="0", shape=VALUES.shape, **settings)
    array[...] = VALUES
    assert Shards.of(str(tmp_path / "a.zarr" / "0"), array) is None
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    filesystem, target = storage.resolve(f"{s3_bucket}/a.zarr")
    filesystem.put(str(tmp_path / "a.zarr"), target, recursive=True)
    for uri in (tmp_path / "a.zarr", f"{s3_bucket}/a.zarr"):
        np.testing.assert_array_equal(open_tomogram(uri, voxel_angstrom=10.0).read(BOX), VALUES[BOX])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    """Planted: their place taken for a place in the file."""
    write(tmp_path / "a.zarr")
    shard = shard_of(tmp_path / "a.zarr")
    content = shard.read_bytes()
    index = index_of(content)
    index[0] = 2**64 - 1
    shard.write_bytes(with_index(content, index))
    expected = VALUES.copy()
    expected[:8, :8, :8] = 0
    np.testing.assert_array_equal(open_tomogram(tmp_path / "a.zarr").read(), expected)


def test_chunks_that_share_their_bytes_are_all_read(tmp_path: Path) -> None:
    """As writers may lay out chunks that are alike. Planted: the last of them only."""
    write(tmp_path / "a.zarr")
    shard = shard_of(tmp_path / "a.zarr")
    content = shard.read_bytes()
    index = index_of(content)
    index[1] = index[0]
    shard.write_bytes(with_index(content, index))
    expected = VALUES.copy()
    expected[:8, :8, 8:16] = VALUES[:8, :8, :8]
    np.testing.assert_array_equal(open_tomogram(tmp_path / "a.zarr").read(), expected)


def lies_of_length(content: bytes) -> bytes:
    index = index_of(content)
    index[5, 1] = 2**40
    return with_index(content, index)


def lies_of_size(content: bytes) -> bytes:
    """Blosc's header tells of half the bytes, and the checksum agrees."""
    start, length = (int(n) for n in index_of(content)[5])
    chunk = bytearray(content[start : start + length - 4])
    chunk[4:8] = (CHUNK_BYTES // 2).to_bytes(4, "little")
    return content[:start] + bytes(chunk) + google_crc32c.value(bytes(chunk)).to_bytes(4, "little") + content[start + length :]


def flipped(place: int) -> Any:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1
        return bytes(changed)

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flipped(40), "its checksum tells of other data"),
        (flipped(-20), "its checksum tells of other data"),
        (lambda content: content[:100], "it has 100 bytes, fewer than its index of 772"),
        (lies_of_length, f"its index tells {2**40} packed bytes for {CHUNK_BYTES}"),
        (lies_of_size, f"it unpacks to {CHUNK_BYTES // 2} bytes, not {CHUNK_BYTES}"),
    ],
    ids=["chunk", "index", "cut short", "length", "size"],
)
def test_damage_is_named(tmp_path: Path, damage: Any, told: str) -> None:
    """Planted: the size in Blosc's header not looked at, so that what memory held before came back as values."""
    write(tmp_path / "a.zarr")
    shard = shard_of(tmp_path / "a.zarr")
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(FormatError, match=rf"a\.zarr: chunk 0/c/0/0/0 cannot be decoded \({told}\); the file is damaged"):
        open_tomogram(tmp_path / "a.zarr").read()
