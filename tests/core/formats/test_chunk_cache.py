"""Chunks of remote volumes, kept on a disk of this node."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tomoray.formats import open_tomogram
from tomoray.formats.chunk_cache import FOLDER, LIMIT_GB, ChunkCache
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.tomogram import Tomogram

VALUES = np.random.default_rng(0).standard_normal((20, 30, 40)).astype(np.float16)
BOX = (slice(3, 20), slice(7, 23), slice(8, 39))
KINDS = {"sharded": {"zarr_format": 3, "chunk_vox": 8, "shard_vox": 16}, "plain": {"chunk_vox": 8}}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_no_chunk_is_fetched_twice(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a chunk at the end of the volume taken to be as large as the others."""
    for kind, options in KINDS.items():
        write_ome_zarr(f"{s3_bucket}/{kind}.zarr", Tomogram("a", VALUES, (10.0,) * 3), **options)  # type: ignore[arg-type]
        monkeypatch.setenv(FOLDER, str(tmp_path / kind))
        first = open_tomogram(f"{s3_bucket}/{kind}.zarr")
        np.testing.assert_array_equal(first.read(BOX), VALUES[BOX])
        assert len(files(tmp_path / kind)) == 3 * 3 * 4, "one file for each chunk that the box touches"
        np.testing.assert_array_equal(first.read(), VALUES)
        assert len(files(tmp_path / kind)) == 3 * 4 * 5

        again = open_tomogram(f"{s3_bucket}/{kind}.zarr")
        opened = again.bytes_read
        np.testing.assert_array_equal(again.read(BOX), VALUES[BOX])
        assert again.bytes_read == opened, "the chunks came from the cache"


def test_what_was_written_anew_is_fetched_anew(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: keys without the time of writing."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for values in (VALUES, -VALUES):
        write_ome_zarr(f"{s3_bucket}/a.zarr", Tomogram("a", values, (10.0,) * 3), **KINDS["sharded"])  # type: ignore[arg-type]
        np.testing.assert_array_equal(open_tomogram(f"{s3_bucket}/a.zarr").read(BOX), values[BOX])
        time.sleep(1.1)  # servers tell whole seconds


def test_local_volumes_and_large_boxes_are_not_kept(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    tomogram = Tomogram("a", VALUES, (10.0,) * 3)
    write_ome_zarr(tmp_path / "a.zarr", tomogram, chunk_vox=8)
    write_ome_zarr(f"{s3_bucket}/a.zarr", tomogram, chunk_vox=4)
    for uri in (tmp_path / "a.zarr", f"{s3_bucket}/a.zarr"):
        np.testing.assert_array_equal(open_tomogram(uri).read(), VALUES)
    assert not files(tmp_path / "cache")


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """Planted: files that are read not marked as used."""
    cache = ChunkCache(tmp_path, limit_bytes=10_000)
    for number in range(10):
        cache.put(str(number), bytes([number]) * 1000)
        os.utime(cache._path(str(number)), (number, number))
    assert cache.get("0", 1000) == bytes(1000)
    cache.put("more", bytes(1000))
    assert {name for name in map(str, range(10)) if cache.get(name, 1000) is None} == {"1", "2"}
    assert len(files(tmp_path)) == 9


def test_several_processes_keep_the_limit_together(tmp_path: Path) -> None:
    def fill(seed: int) -> None:
        cache = ChunkCache(tmp_path, limit_bytes=100_000)
        for number in range(300):
            key = f"{(seed * 100 + number) % 400}"
            found = cache.get(key, 1000)
            assert found in (None, key.encode().ljust(1000))
            cache.put(key, key.encode().ljust(1000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 100_000 * (1 + 4 / 32) + 1000


def test_files_cut_short_and_full_disks_cost_a_fetch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ChunkCache(tmp_path, limit_bytes=10_000)
    cache.put("a", bytes(1000))
    cache._path("a").write_bytes(bytes(999))
    assert cache.get("a", 1000) is None

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.put("b", bytes(1000))
    assert cache.get("b", 1000) is None
    assert [path.name for path in files(tmp_path)] == [cache._path("a").name]


def test_what_the_environment_gets_wrong_is_said(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ome_zarr(f"{s3_bucket}/a.zarr", Tomogram("a", VALUES, (10.0,) * 3), chunk_vox=16)
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"TOMORAY_CHUNK_CACHE=.*/file: File exists; it must be a folder to write to"):
        open_tomogram(f"{s3_bucket}/a.zarr").read(BOX)
    monkeypatch.setenv(LIMIT_GB, "50 GB")
    with pytest.raises(ValueError, match="TOMORAY_CHUNK_CACHE_GB=50 GB: it must be a positive number; correct it in the environment"):
        open_tomogram(f"{s3_bucket}/a.zarr").read(BOX)
