"""One door to files: local paths, s3:// and https://.

Everything that tomoray reads or writes passes through here, so that a path is a path wherever the files lie. All settings come from
the environment, those of S3 under the names that every S3 tool knows:

    AWS_ACCESS_KEY_ID ...                keys; without them AWS_PROFILE, or the role of the instance or pod
    AWS_ENDPOINT_URL[_S3]                another server than Amazon's
    AWS_MAX_ATTEMPTS, AWS_RETRY_MODE     of each request (10, adaptive: waits grow, and all slow down together)
    AWS_REQUEST_CHECKSUM_CALCULATION     `when_required` for older servers, which refuse today's checksums;
    AWS_RESPONSE_CHECKSUM_VALIDATION     likewise
    TOMORAY_S3_ANONYMOUS=1               no keys, as public buckets want it
    TOMORAY_CONNECT_TIMEOUT_S            seconds to wait for a connection, of S3 and https (10)
    TOMORAY_READ_TIMEOUT_S               seconds to wait for the next bytes (60)
    TOMORAY_CHUNK_CACHE[_GB]             a local folder that keeps chunks of remote OME-Zarr (`tomoray.formats.chunk_cache`), and its limit

Nothing half-written is ever seen under its name: local files are written beside it and moved, objects are put whole.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tomoray import storage_errors

log = logging.getLogger(__name__)

Uri = str | Path
Result = TypeVar("Result")

_REMOTE = ("s3", "http", "https")
ATTEMPTS = 5  # at what fails although each request was tried several times: many at once soon use up what a client may repeat, which all share
CONNECTIONS = 64  # at a time to one server, as many as the chunks of one crop
UNFINISHED = ".partial"  # how the name ends of a folder in which something is being written


def as_text(uri: Uri) -> str:
    """Return a path or address as text without a slash at its end; `Path` swallows a slash of `s3://`, which is put back."""
    text = re.sub(rf"^({'|'.join(_REMOTE)}):/(?!/)", r"\1://", str(uri)).removeprefix("file://")
    return text.rstrip("/") or "/"


def protocol(uri: Uri) -> str:
    """Return "file", "s3", "http" or "https".

    Raises
    ------
    ValueError
        If the address names another kind of storage.
    """
    scheme, separator, _ = as_text(uri).partition("://")
    if not separator:
        return "file"
    if scheme not in _REMOTE:
        raise ValueError(f"{uri}: unknown kind of storage {scheme!r}; give a local path, s3://bucket/key or https://host/path")
    return scheme


def is_local(uri: Uri) -> bool:
    """Return whether a path lies in the file system of this machine."""
    return protocol(uri) == "file"


def local_path(uri: Uri) -> Path:
    """Return the `Path` of a local file.

    Raises
    ------
    ValueError
        If it is not local.
    """
    if not is_local(uri):
        raise ValueError(f"{uri}: this needs a local path; copy the file to this machine first")
    return Path(as_text(uri)).expanduser()


def join(uri: Uri, *parts: str) -> str:
    """Return the path of something inside a folder; empty parts are left out."""
    if is_local(uri):
        return str(local_path(uri).joinpath(*parts))
    return "/".join([as_text(uri).rstrip("/"), *(part.strip("/") for part in parts if part)])


def options(uri: Uri) -> dict[str, Any]:
    """Return what fsspec needs to know to open this kind of address.

    What s3fs would find in the environment too is passed on nevertheless: fsspec keeps one file system per set of options, and a process
    that talks to two servers must not get the first one twice.

    Raises
    ------
    ValueError
        If a number in the environment is none.
    """
    kind = protocol(uri)
    if kind == "file":
        return {}
    connect_s, read_s = positive("TOMORAY_CONNECT_TIMEOUT_S", 10.0), positive("TOMORAY_READ_TIMEOUT_S", 60.0)
    if kind != "s3":
        from aiohttp import ClientTimeout

        return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)}}
    checksums = {
        "request_checksum_calculation": "AWS_REQUEST_CHECKSUM_CALCULATION",
        "response_checksum_validation": "AWS_RESPONSE_CHECKSUM_VALIDATION",
    }
    retries = {"mode": os.environ.get("AWS_RETRY_MODE") or "adaptive", "total_max_attempts": int(positive("AWS_MAX_ATTEMPTS", 10))}
    return {
        "anon": os.environ.get("TOMORAY_S3_ANONYMOUS", "0") not in ("", "0"),
        "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
        "config_kwargs": {
            "retries": retries,
            "connect_timeout": connect_s,
            "read_timeout": read_s,
            "max_pool_connections": CONNECTIONS,
            **{name: os.environ[variable].lower() for name, variable in checksums.items() if os.environ.get(variable)},
        },
        "use_listings_cache": False,  # other workers write while we look
    }


def positive(variable: str, default: float) -> float:
    """Return a number of the environment.

    Raises
    ------
    ValueError
        If it is none, or not positive.
    """
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{variable}={text}: it must be a positive number; correct it in the environment, or leave it out for {default:g}")
    return value


def resolve(uri: Uri) -> tuple[Any, str]:
    """Return the fsspec file system of an address and the path within it."""
    import fsspec

    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri).absolute())
    filesystem = fsspec.filesystem(protocol(uri), **options(uri))
    return filesystem, filesystem._strip_protocol(as_text(uri))


def exists(uri: Uri) -> bool:
    """Return whether there is a file or a folder."""
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        return bool(filesystem.exists(path))


def list_names(uri: Uri) -> list[str]:
    """Return the sorted names of the files and folders in a folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        names = (entry.rstrip("/").rpartition("/")[2] for entry in filesystem.ls(path, detail=False) if entry.rstrip("/") != path)
        return sorted(names)


def size_bytes(uri: Uri) -> int:
    """Return the size of a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        size = filesystem.size(path)
    if size is None:
        raise ConnectionError(f"{as_text(uri)}: the server does not tell the size of the file, which must be known: download it first")
    return int(size)


def read_bytes(uri: Uri, *, last: int = 0) -> bytes:
    """Return what a file holds, or only so many of its last bytes: all where it is shorter.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    PermissionError
        If it may not be read.
    """
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        return bytes(filesystem.cat_file(path, start=-last or None))[-last:]


def read_ranges(uri: Uri, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the bytes from `start` up to `end` of each range, fetched side by side; shorter where the file ends before.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    PermissionError
        If it may not be read.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        with plain_errors(uri), Path(path).open("rb", buffering=0) as file:
            for start, end in ranges if hasattr(os, "posix_fadvise") else ():
                os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)  # the disk goes ahead while we copy
            return [os.pread(file.fileno(), end - start, start) for start, end in ranges]
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    with plain_errors(uri):
        if ranges and protocol(uri) in ("http", "https"):
            first = bytes(filesystem.cat_file(path, start=starts[0], end=ends[0]))
            if len(first) > ends[0] - starts[0]:  # a plain web server knows no ranges and sends the whole file: do not ask for each
                return [first[start:end] for start, end in ranges]
        return [bytes(part) for part in filesystem.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")]


def write_bytes(uri: Uri, data: bytes) -> None:
    """Write a file, whole or not at all."""
    if is_local(uri):
        with new_file(uri) as path:
            path.write_bytes(data)
        return
    filesystem, path_there = resolve(uri)
    with plain_errors(uri):
        filesystem.pipe_file(path_there, data)


def remove(uri: Uri) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if exists(uri):
        filesystem, path = resolve(uri)
        with plain_errors(uri):
            filesystem.rm(path, recursive=True)


def remove_unfinished(folder: Uri) -> None:
    """Remove from a folder what writers have left that were killed. Objects are put whole, so there only local folders have any."""
    if is_local(folder):
        for left in local_path(folder).glob(f".*{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)


def patiently(action: Callable[[], Result], uri: Uri) -> Result:
    """Return what an action on storage returns, trying again where it failed for a reason that may pass.

    Raises
    ------
    OSError
        If it failed each time, or because something is missing or forbidden.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            log.warning("%s: %s; trying again", as_text(uri), error)
            time.sleep(2 ** (attempt - 1))
    return action()


@contextmanager
def new_file(uri: Uri) -> Iterator[Path]:
    """Yield a local path to write to; the file gets its name when the block ends well, and is dropped when it does not."""
    with _staging_folder(uri) as folder:
        written = folder / Path(as_text(uri)).name
        yield written
        if is_local(uri):
            written.replace(local_path(uri))
        else:
            _put(uri, [(written, as_text(uri))])


@contextmanager
def new_folder(uri: Uri) -> Iterator[Path]:
    """Yield a local folder to fill; it replaces what bears the name when the block ends well, and is dropped when it does not.

    A folder of objects cannot be put in one piece. The deepest files go first, so that those which say what the folder is
    (a card, `.zattrs`, `zarr.json`) are only there once the rest is.
    """
    with _staging_folder(uri) as staging:
        written = staging / "new"
        written.mkdir()
        yield written
        if is_local(uri):
            target = local_path(uri)
            if target.exists():
                target.replace(staging / "old")
            written.replace(target)
            return
        files = sorted((path.relative_to(written) for path in written.rglob("*") if path.is_file()), key=lambda path: -len(path.parts))
        remove(uri)
        for depth in sorted({len(path.parts) for path in files}, reverse=True):
            _put(uri, [(written / path, join(uri, *path.parts)) for path in files if len(path.parts) == depth])


@contextmanager
def local_copy(uri: Uri) -> Iterator[Path]:
    """Yield a local path of a file or folder: its own where it is local, else that of a copy which goes away with the block."""
    if is_local(uri):
        yield local_path(uri)
        return
    filesystem, path = resolve(uri)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rpartition("/")[2]

        def get() -> None:
            shutil.rmtree(copy, ignore_errors=True)  # of a first attempt, into which the second would put its folder
            with plain_errors(uri):
                filesystem.get(path, str(copy), recursive=True)

        patiently(get, uri)
        yield copy


@contextmanager
def _staging_folder(uri: Uri) -> Iterator[Path]:
    """Yield a folder for work in progress, on the file system of a local target so that moving is one step."""
    if not is_local(uri):
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    target = local_path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _put(uri: Uri, copies: Sequence[tuple[Path, str]]) -> None:
    filesystem, _ = resolve(uri)
    sources, targets = [str(source) for source, _ in copies], [filesystem._strip_protocol(target) for _, target in copies]

    def put() -> None:
        with plain_errors(uri):
            filesystem.put(sources, targets)

    patiently(put, uri)


def plain_errors(uri: Uri) -> AbstractContextManager[None]:
    """Return a context in which errors of the storage libraries become plain ones: see `tomoray.storage_errors`."""
    return storage_errors.plain_errors(as_text(uri), local=is_local(uri))
