"""What Ray costs, and what it gains: the pipeline of `tomoray pick` against a plain loop with as many replicas and threads.

    python tests/benchmarks/pick_pipeline.py [--volumes 12] [--shape 64 128 128] [--replicas 2] [--checkpoint FOLDER] [--delay 1.0]

Two regimes, each timed for both in turn: `network`, files on the local disk; and `reading`, the same files from a web server that waits
before it answers, as object stores do. The loop is one process per replica that opens, predicts and writes one tomogram after another
with the functions of the pipeline. Both are timed from the first call to the last table, each with its own start of processes and loading
of networks; Ray itself is started before, as it is on a cluster. `steady` is the rate between the first table and the last.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import argparse
import multiprocessing
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from faults import faulty_server, row, small_checkpoint

from tomoray.catalogue import CatalogueRow, write_catalogue
from tomoray.cluster.pick import pick_all
from tomoray.cluster.pick_stages import Predict, commit, items, read
from tomoray.cluster.session import session
from tomoray.ensemble import ensemble_card
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import PickJob
from tomoray.results import SUFFIX
from tomoray.tomogram import Tomogram


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=12)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 128, 128))
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that the web server waits before each answer")
    parser.add_argument("--checkpoint", default="", help="a small one without training by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, session():
        folder = Path(temporary)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        checkpoint = options.checkpoint or small_checkpoint(folder / "picker", width=16)
        file = folder / "volume.mrc"
        values = np.random.default_rng(0).normal(size=options.shape).astype(np.float32)
        write_mrc(file, Tomogram("volume", values, (ensemble_card((checkpoint,)).voxel_angstrom,) * 3))
        with faulty_server(file.read_bytes(), delay_s=options.delay) as server:
            for regime in ("network", "reading"):
                uris = [str(file) if regime == "network" else server.uri(f"v{i:03d}") for i in range(options.volumes)]
                catalogue = str(folder / f"{regime}.parquet")
                rows = [row(f"v{i:03d}", uri) for i, uri in enumerate(uris)]
                write_catalogue(catalogue, rows)
                for repeat in range(options.repeats):
                    compare(regime, rows, PickJob(
                        catalogue=catalogue, checkpoint=checkpoint, output=str(folder / f"{regime}{repeat}"), actors=options.replicas,
                        readers=2 * options.replicas, thresholds={p.name: 1.0 for p in ensemble_card((checkpoint,)).particles},
                    ))  # fmt: skip


def compare(regime: str, rows: list[CatalogueRow], job: PickJob) -> None:
    looped = Path(job.output) / "loop"
    began = time.perf_counter()
    plain_loop(rows, job, str(looped))
    loop_s = time.perf_counter() - began
    began = time.perf_counter()
    picked = pick_all(job)
    pipeline_s = time.perf_counter() - began
    assert not picked.failures
    assert sorted(p.name for p in looped.iterdir()) == sorted(p.name for p in Path(picked.candidates).iterdir())
    steady = [steady_rate(folder) for folder in (looped, Path(picked.candidates))]
    print(f"{regime}: loop {loop_s:.1f} s, pipeline {pipeline_s:.1f} s, ratio {pipeline_s / loop_s:.3f};", end=" ")
    print(f"steady {steady[0]:.3f} and {steady[1]:.3f} per second, ratio {steady[0] / steady[1]:.3f}")


def plain_loop(rows: list[CatalogueRow], job: PickJob, folder: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=replica, args=(rows[i :: job.actors], job, folder)) for i in range(job.actors)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def replica(rows: list[CatalogueRow], job: PickJob, folder: str) -> None:
    """Pick a fixed share of the rows, one after another."""
    predict = Predict(job, job.actors)
    step = partial(read, card=predict.card, permissive=False)
    for item in items(rows):
        prepared = step(item)
        table = predict({name: _column(value) for name, value in prepared.items()})
        commit({name: column[0] for name, column in table.items()}, folder=folder)


def _column(value: object) -> np.ndarray:
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


def steady_rate(folder: Path) -> float:
    """Return tables per second between the first and the last."""
    times = sorted(path.stat().st_mtime for path in folder.glob(f"*{SUFFIX}"))
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    main()
