"""Whether streaming stays flat: crops of thousands of small tomograms on an S3 server, and the memory that this takes over time.

    python tests/benchmarks/stream_memory.py [--rows 2000] [--passes 1] [--readers 4] [--output bench/stream_memory.csv]
                                             [--plot bench/stream_memory.png]

The server is Ceph's gateway, started here with its disk in memory. Half of the tomograms are MRC files, half OME-Zarr as `tomoray ingest`
writes it. Two streams, labelled and not, are taken side by side as co-training takes them, without a network. The faster of two streams in
step runs ahead until Ray Data holds it up at a share of the object store, which is small here (200 MB, unless the variable below says
otherwise), so that this is seen. Printed: crops per second, and for each kind of memory its peak and its slope over the second half. The
CSV holds a line per second, and the plot shows it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", "200000000")

import argparse
import csv
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from ceilings import machine
from memory_use import KINDS, MemoryWatch

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.ceph import ceph_gateway
from services.fixtures import new_bucket
from tomoray.catalogue import CatalogueRow
from tomoray.cluster.data import CropSource, batches, crop_stream
from tomoray.cluster.session import session
from tomoray.formats.czii import write_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.jobs import CropSettings
from tomoray.tomogram import Particle, Picks, Tomogram

SHAPE, VOXEL, PARTICLES, BATCH = (48, 64, 64), 10.0, 20, 8
SETTINGS = {"patch_vox": 32, "per_visit": 8}
TOLD = 4000  # crops between two lines that say how far it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--readers", type=int, default=4, help="of each stream")
    parser.add_argument("--output", default="bench/stream_memory.csv")
    parser.add_argument("--plot", default="bench/stream_memory.png")
    options = parser.parse_args()
    print(machine("cpu", 1), flush=True)
    with ceph_gateway() as server:
        os.environ |= {**server.environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "TOMORAY_CONNECT_TIMEOUT_S": "60"}
        bucket = new_bucket()
        with ThreadPoolExecutor(8) as pool:
            rows = tuple(pool.map(lambda number: write(bucket, number), range(options.rows)))
        print(f"{options.rows} tomograms written", flush=True)
        with session():
            samples = stream(rows, options)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    with Path(options.output).open("w", newline="") as file:
        table = csv.DictWriter(file, ("seconds", "done", *KINDS))
        table.writeheader()
        table.writerows(samples)
    plot(samples, options.plot)


def write(bucket: str, number: int) -> CatalogueRow:
    """Write a tomogram of noise and its picks, and return its row."""
    rng, name = np.random.default_rng(number), f"TS_{number:05d}"
    values, half = rng.standard_normal(SHAPE, dtype=np.float32), number % 2 == 1
    tomogram, uri = Tomogram(name, values, (VOXEL,) * 3), f"{bucket}/data/{name}.{'zarr' if half else 'mrc'}"
    if half:
        write_ome_zarr(uri, replace(tomogram, voxels=values.astype(np.float16)), zarr_format=3, chunk_vox=16, shard_vox=64)
    else:
        write_mrc(uri, tomogram)
    picks = f"{bucket}/picks/{name}.csv"
    write_czii_csv(picks, [Picks(name, rng.uniform(0, SHAPE, (PARTICLES, 3)) * VOXEL, np.array(["particle"] * PARTICLES))])
    kind, numbers = "float16" if half else "float32", (0.0, 1.0, -6.0, 6.0)
    return CatalogueRow(name, name, uri, SHAPE, kind, VOXEL, *numbers, "dark", split="train", picks_uri=picks, particles={"particle": PARTICLES})


def stream(rows: tuple[CatalogueRow, ...], options: argparse.Namespace) -> list[dict[str, float]]:
    """Take all crops of both streams, and return the memory meanwhile."""
    settings, visits = CropSettings(**SETTINGS, readers=options.readers), options.passes * len(rows)
    told = ((Particle("particle", 3 * VOXEL),), VOXEL, "dark", settings)
    sources = [CropSource(rows, *told, seed=seed, labelled=labelled) for seed, labelled in ((0, True), (1, False))]
    seen, began = 0, time.perf_counter()
    with MemoryWatch(lambda: seen // SETTINGS["per_visit"]) as watch:
        for pair in zip(*(batches(crop_stream(source, lambda: (0, visits))(), settings, BATCH, seed=0) for source in sources), strict=True):
            seen += sum(len(batch["volume"]) for batch in pair)
            if seen % TOLD < 2 * BATCH:
                print(f"  {seen} crops, {time.perf_counter() - began:.0f} s", flush=True)
    seconds = time.perf_counter() - began
    assert seen == 2 * visits * SETTINGS["per_visit"]
    print(f"{2 * visits} visits, {seen} crops, {seen / seconds:.0f} crops/s, {seconds:.0f} s")
    watch.report("visits")
    return watch.samples


def plot(samples: list[dict[str, float]], path: str) -> None:
    """Draw each kind of memory over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="seconds", ylabel="megabytes", yscale="log")
    for kind in KINDS:
        axes.plot([s["seconds"] for s in samples], [max(s[kind], 1.0) for s in samples], label=kind.removesuffix("_mb").replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", ncols=3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
