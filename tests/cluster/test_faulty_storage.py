"""Picking and training while the server of their bucket has a bad day: it refuses, hangs up, sends half, and restarts in the middle."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from faults import row, small_checkpoint, small_volume
from mlflow import MlflowClient
from small_jobs import small_train_job

from services.ceph import S3Server
from services.fault_proxy import AWAY, CUT, DROP, faulty_proxy
from tomoray import storage
from tomoray.catalogue import read_catalogue, write_catalogue
from tomoray.config import dump_settings
from tomoray.formats import open_tomogram
from tomoray.formats.candidates import read_candidates
from tomoray.formats.failures import read_failures
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.results import committed, find_tables, table_uri

RATES = {"500": 0.04, "503": 0.04, DROP: 0.04}


@contextmanager
def bad_day(server: S3Server, requests: int) -> Iterator[None]:
    """Let all that is started in a `with` block find a faulty proxy in the server's place, which restarts after so many requests."""
    with faulty_proxy(server.address, RATES) as proxy, pytest.MonkeyPatch.context() as environment:

        def restart() -> None:
            while sum(proxy.seen.values()) < requests:
                time.sleep(0.05)
            proxy.restart(5.0)

        environment.setenv("AWS_ENDPOINT_URL", proxy.address)
        proxy.cut_next(3)
        restarting = threading.Thread(target=restart, daemon=True)
        restarting.start()
        yield
        restarting.join(10)
    assert (proxy.seen[CUT], proxy.seen[AWAY]) == (3, 1)
    assert all(proxy.seen[fault] >= 3 for fault in RATES), f"too little went wrong to show anything: {proxy.seen}"


def tomoray(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a Ray of its own, whose workers have the environment of now."""
    return subprocess.run([sys.executable, "-m", "tomoray", *words], capture_output=True, text=True, check=False)


@pytest.mark.timeout(1200)
def test_a_bad_day_of_the_server_costs_no_tomogram(ceph: S3Server, ceph_bucket: str, tmp_path: Path) -> None:
    """Of all the tomograms only the one that is not there fails, by its key."""
    volume, names = small_volume(), [f"TS_{number:02d}" for number in range(16)]
    uris = {name: f"{ceph_bucket}/data/{name}.{'mrc' if int(name[-1]) % 2 else 'zarr'}" for name in names}
    for uri in uris.values():
        write_mrc(uri, volume) if uri.endswith("mrc") else write_ome_zarr(uri, volume, chunk_vox=16)
    catalogue, output = f"{ceph_bucket}/catalogue.parquet", f"{ceph_bucket}/picks"
    write_catalogue(catalogue, [row(name, uri) for name, uri in {**uris, "gone": f"{ceph_bucket}/data/gone.mrc"}.items()])
    with storage.new_folder(f"{ceph_bucket}/picker") as folder:
        for file in Path(small_checkpoint(tmp_path / "picker")).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    options = ["--catalogue", catalogue, "--checkpoint", f"{ceph_bucket}/picker", "--output", output, "--tile-vox", "16"]
    with bad_day(ceph, requests=80):
        done = tomoray("pick", *options)

    assert done.returncode == 3, done.stdout + done.stderr
    (failure,) = read_failures(f"{output}/failures.parquet")
    assert failure.tomogram_id == "gone"
    assert failure.reason.startswith(f"{ceph_bucket}/data/gone.mrc: there is no such file or folder; check the path")
    tables = find_tables(f"{output}/candidates")
    assert sorted(committed(tables)) == names
    counts = {len(read_candidates(table_uri(tables, name))[0]) for name in names}
    assert len(counts) == 1, "copies of a tomogram have equally many candidates, in whichever kind of file"
    assert counts != {0}


@pytest.mark.timeout(1200)
def test_a_bad_day_of_the_server_changes_nothing_in_training(ceph: S3Server, ceph_bucket: str, catalogue: str, tracking: str, tmp_path: Path) -> None:
    """Every epoch is trained once, with the same losses to the last bit."""
    rows = []
    for number, local in enumerate(read_catalogue(catalogue)):
        tomogram = open_tomogram(local.uri, name=local.run)
        uri = f"{ceph_bucket}/data/{local.run}.{'mrc' if number % 2 else 'zarr'}"
        whole = replace(tomogram, voxels=tomogram.read())
        write_mrc(uri, whole) if uri.endswith("mrc") else write_ome_zarr(uri, whole, chunk_vox=24)
        rows.append(replace(local, uri=uri))
    write_catalogue(f"{ceph_bucket}/catalogue.parquet", rows)
    few = {"epochs": 3, "steps_per_epoch": 8, "network__width": 4, "workers__count": 1, "validation__every_epochs": 1}

    def losses(name: str) -> list[tuple[int, float]]:
        job = small_train_job(f"{ceph_bucket}/catalogue.parquet", tmp_path, name=name, **few)
        (tmp_path / f"{name}.toml").write_text(dump_settings(job))
        done = tomoray("train", str(tmp_path / f"{name}.toml"))
        assert done.returncode == 0, done.stdout + done.stderr
        client = MlflowClient(tracking)
        (run,) = client.search_runs(["1"], f"tags.`tomoray.folder` = '{tmp_path / name}'")
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]

    with bad_day(ceph, requests=80):
        bad = losses("bad-day")
    assert [step for step, _ in bad] == [8, 16, 24], "no epoch is lost, and none done twice"
    assert bad == losses("good-day")
