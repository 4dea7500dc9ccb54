"""A real S3 server on a bad day: it refuses, hangs up, sends half and is away for some seconds, and nothing is lost by that."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from services.ceph import S3Server
from services.fault_proxy import AWAY, CUT, DROP, FaultyProxy, faulty_proxy
from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, write_catalogue
from tomoray.formats import open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.tomogram import Tomogram

VALUES = np.random.default_rng(0).normal(size=(24, 40, 48)).astype(np.float32)
ROW = CatalogueRow("TS_1", "TS_1", "s3://b/TS_1.mrc", (24, 40, 48), "float32", 10.0, 0.0, 1.0, -4.0, 4.0, "dark", split="train")
ROWS = [replace(ROW, tomogram_id=f"TS_{number}", run=f"TS_{number}") for number in range(200)]
KINDS = ("a.mrc", "b.zarr", "c.zarr")


@pytest.fixture
def bucket(ceph_bucket: str) -> str:
    """A bucket with a tomogram in each kind of file, and a catalogue."""
    tomogram = Tomogram("TS_1", VALUES, (10.0,) * 3)
    write_mrc(f"{ceph_bucket}/a.mrc", tomogram)
    write_ome_zarr(f"{ceph_bucket}/b.zarr", tomogram, chunk_vox=8)
    write_ome_zarr(f"{ceph_bucket}/c.zarr", tomogram, zarr_format=3, chunk_vox=8, shard_vox=16)
    write_catalogue(f"{ceph_bucket}/catalogue.parquet", ROWS)
    return ceph_bucket


@pytest.fixture
def proxy(ceph: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What every S3 client now takes for the server."""
    with faulty_proxy(ceph.address) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
        yield between


def read_boxes(bucket: str, kind: str, count: int, seed: int = 0) -> None:
    """Read some boxes at random places, and hold them against what was written."""
    rng = np.random.default_rng(seed)
    tomogram = open_tomogram(f"{bucket}/{kind}")
    for _ in range(count):
        z, y, x = (slice(int(low), int(low) + 12) for low in rng.integers(0, np.array(VALUES.shape) - 12))
        np.testing.assert_array_equal(tomogram.read((z, y, x)), VALUES[z, y, x])


@pytest.mark.parametrize("rates", [{"500": 0.05, "503": 0.05}, {DROP: 0.1}], ids=["refusals", "dropped"])
def test_one_request_in_ten_fails_and_nothing_is_lost(bucket: str, proxy: FaultyProxy, rates: dict[str, float]) -> None:
    """Planted: one attempt for each request."""
    proxy.rates = rates
    for kind in KINDS:
        read_boxes(bucket, kind, 5)
    assert read_catalogue(f"{bucket}/catalogue.parquet") == ROWS
    with storage.new_folder(f"{bucket}/made") as folder:
        for number in range(40):
            (folder / f"{number:02d}").write_bytes(b"%d" % number)
    assert [storage.read_bytes(f"{bucket}/made/{name}") for name in storage.list_names(f"{bucket}/made")] == [b"%d" % n for n in range(40)]
    storage.remove(f"{bucket}/made")
    assert storage.list_names(bucket) == [*KINDS, "catalogue.parquet"]
    with pytest.raises(FileNotFoundError, match=rf"^{bucket}/none\.mrc: there is no such file or folder; check"):
        open_tomogram(f"{bucket}/none.mrc")
    assert all(proxy.seen[fault] >= 3 for fault in rates), f"too little went wrong to show anything: {proxy.seen}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_ends_halfway_is_fetched_again(bucket: str, proxy: FaultyProxy, kind: str) -> None:
    """Planted: half a body taken for all of it."""
    tomogram = open_tomogram(f"{bucket}/{kind}")
    proxy.cut_next()
    assert np.array_equal(tomogram.read(), VALUES)
    assert proxy.seen[CUT] == 1
    proxy.cut_next()
    with storage.local_copy(f"{bucket}/{kind}") as copy:
        assert np.array_equal(open_tomogram(copy).read(), VALUES)
    assert proxy.seen[CUT] == 2


def test_a_catalogue_that_ends_halfway_is_fetched_again(bucket: str, proxy: FaultyProxy) -> None:
    proxy.cut_next()
    assert read_catalogue(f"{bucket}/catalogue.parquet") == ROWS
    assert proxy.seen[CUT] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_restarts_is_waited_for(bucket: str, proxy: FaultyProxy, kind: str) -> None:
    """Away for four seconds, in the middle of it; readers of picking and visits of training wait like this. Planted: one attempt for each request."""
    tomogram = open_tomogram(f"{bucket}/{kind}")
    restarting = threading.Thread(target=proxy.restart, args=(4.0,))
    restarting.start()
    while restarting.is_alive():
        assert np.array_equal(storage.patiently(tomogram.read, tomogram.uri), VALUES)
    assert proxy.seen[AWAY] == 1
    read_boxes(bucket, kind, 2)


def test_folders_of_many_files_survive_a_restart(bucket: str, proxy: FaultyProxy) -> None:
    """So many fail at once that the client has nothing left to repeat them with, and gives up long before the server is back.

    Planted: one attempt at putting, and at fetching.
    """

    def restart_midway() -> threading.Thread:
        before = sum(proxy.seen.values())

        def restart() -> None:
            while sum(proxy.seen.values()) < before + 40:
                time.sleep(0.02)
            proxy.restart(4.0)

        thread = threading.Thread(target=restart, daemon=True)
        thread.start()
        return thread

    names = [f"{number:03d}" for number in range(250)]
    restarting = restart_midway()
    with storage.new_folder(f"{bucket}/many") as folder:
        for name in names:
            (folder / name).write_text(name)
    restarting.join()
    restarting = restart_midway()
    with storage.local_copy(f"{bucket}/many") as copy:
        assert {path.name: path.read_text() for path in copy.iterdir()} == {name: name for name in names}
    restarting.join()
    assert proxy.seen[AWAY] == 2
