"""How long training waits for its crops where storage is far: behind 50 ms of latency, and 50 MB/s for each connection.

    python tests/benchmarks/slow_storage.py [--latency-s 0.05] [--mb-per-s 50] [--step-s 0.2] [--steps 100] [--batch 1 2 4] [--patch 96]
                                            [--per-visit 16] [--readers 2] [--tomograms 4] [--shape 184 630 630]

Tomograms of noise, ingested for such crops, lie on Ceph's gateway, which is started here with its disk in memory, behind a proxy that delays what
it passes on. A step is a pause of `step-s`, so that the cores are left to server, proxy and readers, of which a real machine has only the last.
Printed for each size of batch, far and near by turns: the share of the time between the tenth step and the last that was spent waiting for the
next batch, the crops per second that steps took, and the bytes per second that were read meanwhile: the stream does not end before the steps
do. At last the same, far, with a cache of chunks on this disk, twice: while it fills, and when it is full.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ceilings import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.ceph import ceph_gateway
from services.fault_proxy import FaultyProxy, faulty_proxy
from services.fixtures import new_bucket
from tomoray.catalogue import CatalogueRow
from tomoray.cluster.data import CropSource, batches, crop_stream
from tomoray.cluster.session import session
from tomoray.formats.mrc import write_mrc
from tomoray.ingest import ChunkLayout, ingest_tomogram
from tomoray.jobs import CropSettings
from tomoray.tomogram import Particle, Tomogram

VOXEL = 10.0
FIRST = 10  # steps that are not counted: what a stream needs until it flows
LONGER = 2  # times as many crops as are taken, so that reading goes on while they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.05)
    parser.add_argument("--mb-per-s", type=float, default=50.0)
    parser.add_argument("--step-s", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--per-visit", type=int, default=16)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--tomograms", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(184, 630, 630))
    options = parser.parse_args()
    print(machine("cpu", 1), flush=True)
    with ceph_gateway() as server:
        os.environ |= {**server.environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "TOMORAY_CONNECT_TIMEOUT_S": "60"}
        bucket = new_bucket()
        rows = tuple(write(bucket, number, options) for number in range(options.tomograms))
        with faulty_proxy(server.address) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.address
            for batch in options.batch:
                for far in (True, False):
                    measure(rows, proxy, batch, far, options)
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TOMORAY_CHUNK_CACHE"] = folder
                for _ in range(2):
                    measure(rows, proxy, max(options.batch), True, options)


def write(bucket: str, number: int, options: argparse.Namespace) -> CatalogueRow:
    """Write a tomogram of noise as `tomoray ingest` does, and return its row."""
    name, shape = f"TS_{number:02d}", (options.shape[0], options.shape[1], options.shape[2])
    values = np.random.default_rng(number).standard_normal(shape, dtype=np.float32)
    numbers = (float(values.mean()), float(values.std()), float(values.min()), float(values.max()))
    with tempfile.TemporaryDirectory() as folder:
        write_mrc(f"{folder}/{name}.mrc", Tomogram(name, values, (VOXEL,) * 3))
        row = CatalogueRow(name, name, f"{folder}/{name}.mrc", shape, "float32", VOXEL, *numbers, "dark", split="train")
        return ingest_tomogram(row, f"{bucket}/ingested", ChunkLayout.for_crops(options.patch))[0]


def measure(rows: tuple[CatalogueRow, ...], proxy: FaultyProxy, batch: int, far: bool, options: argparse.Namespace) -> None:
    """Take as many steps as asked for, and print how long they waited."""
    proxy.latency_s, proxy.bytes_per_s = (options.latency_s, 1e6 * options.mb_per_s) if far else (0.0, np.inf)
    settings = CropSettings(patch_vox=options.patch, per_visit=options.per_visit, readers=options.readers)
    source = CropSource(rows, (Particle("particle", VOXEL),), VOXEL, "dark", settings, seed=0, labelled=False)
    visits = LONGER * (options.steps * batch + settings.shuffle_crops) // settings.per_visit
    waited, began, passed = 0.0, 0.0, 0
    with session():
        crops = iter(batches(crop_stream(source, lambda: (0, visits))(), settings, batch, seed=0))
        for step in range(options.steps):
            asked = time.perf_counter()
            next(crops)
            waited += time.perf_counter() - asked
            if step == FIRST - 1:
                waited, began, passed = 0.0, time.perf_counter(), proxy.passed_bytes
            time.sleep(options.step_s)
        seconds, read = time.perf_counter() - began, proxy.passed_bytes - passed
        for _ in crops:  # to its end: a stream that outlives its Ray takes this process along
            pass
    where = ("far" if far else "near") + (", with a cache" if os.environ.get("TOMORAY_CHUNK_CACHE") else "")
    rate = (options.steps - FIRST) * batch / seconds
    print(f"batch of {batch}, {where}: waiting {100 * waited / seconds:.1f} %, {rate:.1f} crops/s, {read / seconds / 1e6:.0f} MB/s", flush=True)


if __name__ == "__main__":
    main()
