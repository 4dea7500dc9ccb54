"""Storage: whole files or none, the same calls for local paths and s3://, and errors that say what to do."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boto3.session import Session

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
    assert [storage.read_bytes(uri, last=size) for size in (3, 8, 100)] == [b"fgh", b"abcdefgh", b"abcdefgh"]
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
    client = Session().client("s3")
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


class FakeS3:
    """A server that answers each request with the next of its replies, the last again and again, and notes what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []

    def handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which answers Expect: 100-continue

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.asked.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
                reply = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
                with contextlib.suppress(OSError):  # of a client that has gone
                    reply(self)

            do_GET = do_PUT = do_HEAD = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def reply(status: int, body: bytes = b"", *, promised: int | None = None, after_s: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer, perhaps late, perhaps with less than it promises."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(after_s)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if promised is None else promised))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b"" if handler.command == "HEAD" else body)
        handler.close_connection = True

    return send


@pytest.fixture
def fake_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """A server under our command, which every S3 client takes for S3."""
    fake = FakeS3()
    with ThreadingHTTPServer(("127.0.0.1", 0), fake.handler()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**address, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_MAX_ATTEMPTS", "AWS_REQUEST_CHECKSUM_CALCULATION", "TOMORAY_S3_ANONYMOUS"):
            monkeypatch.delenv(name, raising=False)
        yield fake
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("trouble", [reply(503), reply(500), reply(206, b"half", promised=8)], ids=["503", "500", "cut short"])
def test_what_a_server_does_once_is_tried_again(fake_s3: FakeS3, trouble: Callable[[BaseHTTPRequestHandler], None]) -> None:
    fake_s3.replies = [trouble, reply(206, b"whole123")]
    assert storage.read_ranges("s3://bucket/key", [(0, 8)]) == [b"whole123"]
    assert len(fake_s3.asked) == 2


def test_a_server_that_says_nothing_is_asked_again(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the timeout of the libraries, of which the late answer would be the first."""
    monkeypatch.setenv("TOMORAY_READ_TIMEOUT_S", "0.3")
    fake_s3.replies = [reply(206, b"late", after_s=3.0), reply(206, b"soon")]
    assert storage.read_ranges("s3://bucket/key", [(0, 4)]) == [b"soon"]


def test_attempts_are_counted_and_the_error_names_the_object(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the libraries' own words, which name neither bucket nor key."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    fake_s3.replies = [reply(503)]
    with pytest.raises(OSError, match=r"^s3://bucket/folder/key: the server did not answer as it must \(.*Service Unavailable.*\); check"):
        storage.read_ranges("s3://bucket/folder/key", [(0, 4)])
    assert len(fake_s3.asked) == 2


def test_checksums_are_sent_only_when_required_if_asked_for(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the setting left to the library, which keeps the file system that it made first."""
    fake_s3.replies = [reply(200)]
    for setting, sent in (("when_supported", True), ("WHEN_REQUIRED", False)):
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
        storage.write_bytes("s3://bucket/key", b"content")
        command, headers = fake_s3.asked[-1]
        assert command == "PUT"
        assert any("checksum" in name or name == "x-amz-trailer" for name in headers) == sent


def test_anonymous_requests_are_not_signed(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_s3.replies = [reply(206, b"public")]
    for anonymous in ("0", "1"):
        monkeypatch.setenv("TOMORAY_S3_ANONYMOUS", anonymous)
        assert storage.read_ranges("s3://bucket/key", [(0, 6)]) == [b"public"]
        assert ("authorization" in fake_s3.asked[-1][1]) == (anonymous == "0")


@pytest.mark.parametrize("variable", ["TOMORAY_CONNECT_TIMEOUT_S", "TOMORAY_READ_TIMEOUT_S", "AWS_MAX_ATTEMPTS"])
@pytest.mark.parametrize("text", ["soon", "0", "-1"])
def test_settings_that_are_no_numbers_are_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=f"{variable}={text}: it must be a positive number; correct it in the environment"):
        storage.options("s3://bucket/key")


def test_web_servers_that_say_nothing_are_given_up(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMORAY_READ_TIMEOUT_S", "0.2")
    fake_s3.replies = [reply(200, b"late", after_s=2.0)]
    with pytest.raises(TimeoutError, match=r"/file: the server did not answer in time; .* raise TOMORAY_CONNECT_TIMEOUT_S"):
        storage.read_bytes(f"{os.environ['AWS_ENDPOINT_URL']}/file")


def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Planted: a missing file waited for."""
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    answers: list[Any] = [ConnectionError("down"), ConnectionError("down"), "up"]

    def action() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert storage.patiently(action, "s3://bucket/key") == "up"
    assert waits == [1, 2]
    assert caplog.messages == ["s3://bucket/key: down; trying again"] * 2
    answers[:] = [ConnectionError("down")] * storage.ATTEMPTS
    with pytest.raises(ConnectionError):
        storage.patiently(action, "s3://bucket/key")
    assert waits[2:] == [1, 2, 4, 8]
    answers[:] = [FileNotFoundError("gone"), "up"]
    with pytest.raises(FileNotFoundError):
        storage.patiently(action, "s3://bucket/key")
