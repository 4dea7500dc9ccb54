"""A real S3 server on a bad day: it refuses, hangs up, sends half and is away for some seconds, and nothing is lost by that."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.ceph import S3Server
from services.fault_proxy import AWAY, CUT, DROP, FaultyProxy, faulty_proxy
from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, write_catalogue
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.cluster.data import CropSource, cut_crops, plan
from tomoray.cluster.pick_stages import Predict, commit, items, read
from tomoray.formats import open_tomogram
from tomoray.formats.candidates import read_candidates
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.jobs import CropSettings, PickJob
from tomoray.results import committed, table_uri
from tomoray.tomogram import Particle, Tomogram

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


def restart_after(requests: int, proxy: FaultyProxy) -> threading.Thread:
    """Let the server be away for four seconds after so many more requests; join what is returned."""
    before = sum(proxy.seen.values())

    def restart() -> None:
        while sum(proxy.seen.values()) < before + requests:
            time.sleep(0.02)
        proxy.restart(4.0)

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("rates", [{"500": 0.05, "503": 0.05}, {DROP: 0.1}], ids=["refusals", "dropped"])
def test_one_request_in_ten_fails_and_nothing_is_lost(bucket: str, proxy: FaultyProxy, rates: dict[str, float]) -> None:
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
    """Away for four seconds, in the middle of it; readers of picking and visits of training wait like this."""
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

    names = [f"{number:03d}" for number in range(250)]
    restarting = restart_after(40, proxy)
    with storage.new_folder(f"{bucket}/many") as folder:
        for name in names:
            (folder / name).write_text(name)
    restarting.join()
    restarting = restart_after(40, proxy)
    with storage.local_copy(f"{bucket}/many") as copy:
        assert {path.name: path.read_text() for path in copy.iterdir()} == {name: name for name in names}
    restarting.join()
    assert proxy.seen[AWAY] == 2


def test_training_sees_the_same_crops_on_a_bad_day(bucket: str, proxy: FaultyProxy) -> None:
    """Of each kind of file, although the server refuses, hangs up, sends half and restarts while they are cut."""
    rows = tuple(replace(ROW, tomogram_id=kind, run=kind, uri=f"{bucket}/{kind}") for kind in KINDS)
    settings = CropSettings(patch_vox=16, per_visit=4)
    source = CropSource(rows, (Particle("ribosome", 150.0),), 10.0, "dark", settings, seed=0, labelled=False)

    def crops() -> list[NDArray[np.float16]]:
        visits = [{name: np.array([value]) for name, value in visit.items()} for visit in plan(len(rows), 0, 9, seed=0)]
        return [block["volume"] for visit in visits for block in cut_crops(visit, source=source)]

    expected = crops()
    proxy.rates = {"500": 0.05, "503": 0.05, DROP: 0.05}
    proxy.cut_next(2)
    restarting = restart_after(40, proxy)
    np.testing.assert_array_equal(np.concatenate(crops()), np.concatenate(expected))
    restarting.join()
    assert (proxy.seen[CUT], proxy.seen[AWAY]) == (2, 1)


@pytest.mark.timeout(1200)  # most of it waits, that we or the client put between attempts
def test_picking_loses_no_tomogram(bucket: str, proxy: FaultyProxy) -> None:
    """What Ray runs side by side, one after the other: only what is not there fails, by its key."""
    card = Card((Particle("ribosome", 150.0),), 10.0, "dark", {"name": "asymmetric_unet", "width": 4, "blocks": [1, 1]}, tile_vox=16)
    torch.manual_seed(0)
    picker = card.build()
    *_, bias = (parameter for name, parameter in picker.named_parameters() if name.endswith("bias"))
    torch.nn.init.zeros_(bias)  # of the last layer, which starts where it sees nothing anywhere
    with storage.new_folder(f"{bucket}/picker") as folder:
        save_checkpoint(folder, card, picker)
    names = {f"{kind}-{number}": f"{bucket}/{kind}" for number in range(2) for kind in KINDS}
    rows = [replace(ROW, tomogram_id=name, run=name, uri=uri) for name, uri in {**names, "gone": f"{bucket}/gone.mrc"}.items()]
    proxy.rates = {"500": 0.05, "503": 0.05, DROP: 0.05}
    proxy.cut_next(2)
    restarting = restart_after(40, proxy)
    predict, told = Predict(PickJob(checkpoint=f"{bucket}/picker", tile_vox=16), 1), {}
    for item in items(rows):
        predicted = predict({key: [value] for key, value in read(item, card=card, permissive=False).items()})
        told[item["tomogram_id"]] = commit({key: column[0] for key, column in predicted.items()}, folder=f"{bucket}/candidates")["error"]
    restarting.join()
    assert told.pop("gone").startswith(f"{bucket}/gone.mrc: there is no such file or folder; check the path")
    assert told == dict.fromkeys(names, "")
    assert committed(f"{bucket}/candidates") == set(names)
    (count,) = {len(read_candidates(table_uri(f"{bucket}/candidates", name))[0]) for name in names}
    assert count > 0
    assert (proxy.seen[CUT], proxy.seen[AWAY]) == (2, 1)
