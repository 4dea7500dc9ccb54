"""Picking from a bucket and to it while its server has a bad day: it refuses, hangs up, sends half, and restarts in the middle."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import row, small_checkpoint, small_volume

from services.ceph import S3Server
from services.fault_proxy import AWAY, CUT, DROP, FaultyProxy, faulty_proxy
from tomoray import storage
from tomoray.catalogue import write_catalogue
from tomoray.formats.candidates import read_candidates
from tomoray.formats.failures import read_failures
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.results import committed, find_tables, table_uri

RATES = {"500": 0.04, "503": 0.04, DROP: 0.04}


def restart_after(requests: int, proxy: FaultyProxy) -> None:
    """Restart the server once it has seen so many requests."""
    while sum(proxy.seen.values()) < requests:
        time.sleep(0.05)
    proxy.restart(5.0)


@pytest.mark.timeout(1200)
def test_a_bad_day_of_the_server_costs_no_tomogram(ceph: S3Server, ceph_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the tomograms only the one that is not there fails, by its key. Planted: one attempt for each request, and one for each task."""
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
    with faulty_proxy(ceph.address, RATES) as proxy, monkeypatch.context() as bad_day:
        bad_day.setenv("AWS_ENDPOINT_URL", proxy.address)
        proxy.cut_next(3)
        restarting = threading.Thread(target=restart_after, args=(80, proxy), daemon=True)
        restarting.start()
        done = subprocess.run([sys.executable, "-m", "tomoray", "pick", *options], capture_output=True, text=True, check=False)
        restarting.join(10)

    assert done.returncode == 3, done.stdout + done.stderr
    (failure,) = read_failures(f"{output}/failures.parquet")
    assert failure.tomogram_id == "gone"
    assert failure.reason.startswith(f"{ceph_bucket}/data/gone.mrc: there is no such file or folder; check the path")
    tables = find_tables(f"{output}/candidates")
    assert sorted(committed(tables)) == names
    counts = {len(read_candidates(table_uri(tables, name))[0]) for name in names}
    assert len(counts) == 1, "copies of a tomogram have equally many candidates, in whichever kind of file"
    assert counts != {0}
    assert (proxy.seen[CUT], proxy.seen[AWAY]) == (3, 1)
    assert all(proxy.seen[fault] >= 3 for fault in RATES), f"too little went wrong to show anything: {proxy.seen}"
