"""Chunks of remote volumes, unpacked, on a disk of this node: all processes of the node share them, within a limit.

Off unless the environment asks for it:

    TOMORAY_CHUNK_CACHE        a folder on a fast local disk
    TOMORAY_CHUNK_CACHE_GB     how much it may hold (50)

Training reads each tomogram many times; behind a slow or dear network a cache reads it once. A chunk is one file, written beside its name and
moved. What was not used for longest goes first. Well-kept libraries do not fit: those of fsspec and zarr know no limit that processes share,
and diskcache unpickles what it finds.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from tomoray import storage

FOLDER, LIMIT_GB = "TOMORAY_CHUNK_CACHE", "TOMORAY_CHUNK_CACHE_GB"
LOOKS = 32  # a process looks at the whole folder each time it has written this part of the limit, so that so many may overshoot by it
ROOM = 0.9  # of the limit that is kept when making room
STALE_S = 60.0  # a file that was used so lately is not marked as used again


class ChunkCache:
    """Bytes by key in a folder that holds no more than about `limit_bytes`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.unseen_bytes = limit_bytes  # so that the first write looks at what others have left

    def get(self, key: str, size: int) -> bytes | None:
        """Return what was put under a key, or nothing where that is gone or has another size."""
        path = self._path(key)
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                os.utime(path)
            data = path.read_bytes()
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes under a key; a disk that is full keeps nothing."""
        path = self._path(key)
        written = path.with_name(f"{uuid.uuid4().hex}{storage.UNFINISHED}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(data)
            written.replace(path)
        except OSError:
            written.unlink(missing_ok=True)
            self.unseen_bytes = self.limit_bytes
        self.unseen_bytes += len(data)
        if self.unseen_bytes * LOOKS > self.limit_bytes:
            self.unseen_bytes = 0
            self._make_room()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _make_room(self) -> None:
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another process was faster
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(size for _, size, _ in found)
        if held <= self.limit_bytes:
            return
        for _, size, path in sorted(found):
            if held <= ROOM * self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size


def chunk_cache() -> ChunkCache | None:
    """Return the cache that the environment asks for, if it does: one for all volumes of this process.

    Raises
    ------
    ValueError
        If the limit is not a positive number, or the folder cannot be had.
    """
    folder = os.environ.get(FOLDER)
    return _cache(folder, int(1e9 * storage.positive(LIMIT_GB, 50.0))) if folder else None


@cache
def _cache(folder: str, limit_bytes: int) -> ChunkCache:
    path = storage.local_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{FOLDER}={folder}: {error.strerror}; it must be a folder to write to: correct it in the environment, or leave it out"
        ) from None
    return ChunkCache(path, limit_bytes)


def version_of(uri: storage.Uri) -> str | None:
    """Return what changes with a file: when it was written, or its tag; nothing where the server tells neither."""
    filesystem, path = storage.resolve(uri)
    with storage.plain_errors(uri):
        told = filesystem.info(path)
    return next((str(told[name]) for name in ("LastModified", "mtime", "ETag") if told.get(name)), None)
