"""Storage: whole files or none, the same calls for local paths and s3://, and errors that say what to do."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest

from tomoray import storage
from tomoray.formats import open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.tomogram import Tomogram


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place to write to, once on this machine and once in a bucket."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/root"


def write_half(path: Path) -> None:
    """Write something and then fail."""
    path.write_text("half")
    (path / "no folder").write_text("the other half")


def test_what_is_written_is_read_back(root: str) -> None:
    uri = storage.join(root, "folder", "file.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"0123456789")
    storage.write_bytes(uri, b"abcdefgh")  # the second write replaces the first
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"abcdefgh"
    assert storage.size_bytes(uri) == 8
    assert storage.read_ranges(uri, [(0, 2), (5, 8), (6, 100)]) == [b"ab", b"fgh", b"gh"]
    storage.remove(root)
    assert not storage.exists(uri)
    storage.remove(root)


def test_names_are_sorted_and_see_what_others_wrote(root: str) -> None:
    for name in ("b.txt", "a/deep.txt"):
        storage.write_bytes(storage.join(root, *name.split("/")), b"x")
    assert storage.list_names(root) == ["a", "b.txt"]
    storage.write_bytes(storage.join(root, "c.txt"), b"x")
    assert storage.list_names(root) == ["a", "b.txt", "c.txt"]


def test_missing_files_say_what_and_what_to_do(root: str) -> None:
    uri = storage.join(root, "nowhere.bin")
    for read in (storage.read_bytes, storage.size_bytes, storage.list_names, lambda u: storage.read_ranges(u, [(0, 4)])):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.bin: there is no such file or folder; check the path"):
            read(uri)


def test_new_folder_replaces_the_old_one_only_when_it_is_whole(root: str) -> None:
    target = storage.join(root, "made")
    with storage.new_folder(target) as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "data").write_text("first")
        (folder / "card").write_text("first")
    with pytest.raises(NotADirectoryError), storage.new_folder(target) as folder:
        write_half(folder / "card")
    assert storage.read_bytes(storage.join(target, "card")) == b"first"
    with storage.new_folder(target) as folder:
        (folder / "card").write_text("second")
    assert storage.list_names(target) == ["card"]
    assert storage.read_bytes(storage.join(target, "card")) == b"second"
    assert storage.list_names(root) == ["made"]  # nothing is left beside it


def test_new_file_leaves_nothing_behind_when_writing_fails(root: str) -> None:
    target = storage.join(root, "table.parquet")
    storage.write_bytes(target, b"old")
    with pytest.raises(NotADirectoryError), storage.new_file(target) as path:
        write_half(path)
    assert storage.read_bytes(target) == b"old"
    assert storage.list_names(root) == ["table.parquet"]
    with storage.new_file(target) as path:
        path.write_bytes(b"new")
    assert storage.read_bytes(target) == b"new"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """Planted: whole files removed too; a missing folder taken for an error."""
    storage.write_bytes(tmp_path / "whole.parquet", b"whole")
    left = tmp_path / ".half.parquet.0123abcd.partial"
    left.mkdir()
    (left / "half.parquet").write_bytes(b"ha")
    storage.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.parquet"]
    storage.remove_unfinished(tmp_path / "nowhere")
    storage.remove_unfinished("s3://bucket/folder")


def test_local_copy_holds_the_same_files(root: str) -> None:
    storage.write_bytes(storage.join(root, "folder", "in", "file"), b"deep")
    with storage.local_copy(storage.join(root, "folder")) as folder:
        assert (folder / "in" / "file").read_bytes() == b"deep"
    with storage.local_copy(storage.join(root, "folder", "in", "file")) as path:
        assert path.read_bytes() == b"deep"


def test_folders_of_objects_get_their_top_files_last(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that finds the card must find the rest too; uploading in any other order would break that."""
    put: list[list[str]] = []
    monkeypatch.setattr(storage, "_put", lambda uri, copies: put.append([target for _, target in copies]))
    with storage.new_folder(f"{s3_bucket}/made") as folder:
        (folder / "a" / "b").mkdir(parents=True)
        for name in ("card", "a/mid", "a/b/deep"):
            (folder / name).write_text("x")
    assert put == [[f"{s3_bucket}/made/a/b/deep"], [f"{s3_bucket}/made/a/mid"], [f"{s3_bucket}/made/card"]]


def test_refused_access_names_the_keys_to_set(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="file", Body=b"x", ACL="public-read")
    client.close()
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    for key in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(key, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    kind = type(storage.resolve(s3_bucket)[0])
    monkeypatch.setattr(kind, "_cache", {})  # without the file system that was made with keys
    with pytest.raises(PermissionError, match=r"file: access refused .*: set AWS_ACCESS_KEY_ID .* or TOMORAY_S3_ANONYMOUS=1"):
        storage.read_bytes(f"{s3_bucket}/file")
    monkeypatch.setattr(kind, "_cache", {})
    monkeypatch.setenv("TOMORAY_S3_ANONYMOUS", "1")
    assert storage.read_bytes(f"{s3_bucket}/file") == b"x"


def test_two_servers_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1111")
    first, _ = storage.resolve("s3://bucket/key")
    assert storage.resolve("s3://bucket/other")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2222")
    assert storage.resolve("s3://bucket/key")[0] is not first


def test_paths_are_spelt_one_way() -> None:
    assert storage.as_text(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert storage.as_text("s3://bucket/a/") == "s3://bucket/a"
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"
    assert storage.join("folder", "b") == str(Path("folder") / "b")
    assert storage.is_local("a/b")
    assert storage.is_local("file:///a/b")
    assert not storage.is_local("https://host/a")
    assert storage.local_path("file:///a/b") == Path("/a/b")
    with pytest.raises(ValueError, match="unknown kind of storage 'gs'; give a local path, s3://"):
        storage.resolve("gs://bucket/key")
    with pytest.raises(ValueError, match="needs a local path; copy the file"):
        storage.local_path("s3://bucket/key")


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a folder where a file is needed"):
        storage.read_bytes(tmp_path)


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    """Address of a plain web server over `tmp_path`, which knows nothing of byte ranges."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_web_addresses_are_read(web_server: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"0123456789")
    assert storage.read_bytes(f"{web_server}/file.bin") == b"0123456789"
    assert storage.read_ranges(f"{web_server}/file.bin", [(2, 4), (8, 10)]) == [b"23", b"89"]
    assert storage.size_bytes(f"{web_server}/file.bin") == 10
    assert not storage.exists(f"{web_server}/none.bin")
    with pytest.raises(FileNotFoundError, match=r"none\.bin: there is no such file"):
        storage.read_bytes(f"{web_server}/none.bin")


def test_tomograms_are_read_from_the_web(web_server: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(9, 10, 11)).astype("f4")
    tomogram = Tomogram("a", values, (10.0, 10.0, 10.0))
    write_mrc(tmp_path / "a.mrc", tomogram)
    write_ome_zarr(tmp_path / "a.zarr", tomogram, chunk_vox=8)
    for name in ("a.mrc", "a.zarr"):
        opened = open_tomogram(f"{web_server}/{name}")
        assert np.array_equal(opened.read(np.s_[2:5, 3:10, 4:8]), values[2:5, 3:10, 4:8])
        assert np.array_equal(opened.read(), values)
