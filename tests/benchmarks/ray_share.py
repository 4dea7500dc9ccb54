"""How much of an epoch is Ray's: the same co-training steps from memory in a plain loop, and fed by Ray Data inside Ray Train.

    python tests/benchmarks/ray_share.py [--epochs 6] [--steps 25] [--threads 1]

The plain loop's batches lie in memory before the clock starts, so it pays neither reading nor cutting. Ray's run reads tomograms of
64 x 192 x 192 from a local disk with two readers per stream beside the one worker. The first epoch of each is left out. Printed are steps
per second, the share of the epoch that the worker waited for data, and what the whole run took beside its epochs: start, validation, end.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ceilings import machine
from mlflow import MlflowClient
from picking import crops

from tomoray.catalogue import assign_splits, write_catalogue
from tomoray.cluster.train import build_method, train
from tomoray.config import read_settings
from tomoray.index import index
from tomoray.jobs import TrainJob
from tomoray.simulate import Scene, write_dataset
from tomoray.training import fit

SETTINGS = {
    "name": "ray-share",
    "labelled_runs": 2,
    "method.name": "semietpicker",
    "network.width": 16,
    "network.blocks": [1, 1, 1, 1],
    "crops.patch_vox": 64,
    "crops.batch_size": 4,
    "validation.every_epochs": 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(machine("cpu", options.threads), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), options)
        plain = plain_loop(job, options)
        print(f"plain loop: {plain:.2f} steps/s", flush=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        began = time.perf_counter()
        trained = train(job)
        whole = time.perf_counter() - began
        history = {key: values_of(trained.run.run_id, key) for key in ("steps_per_s", "data_wait_share")}
        rate = statistics.median(history["steps_per_s"][1:])
        wait = statistics.median(history["data_wait_share"][1:])
        epochs = sum(options.steps / r for r in history["steps_per_s"])
        print(f"under Ray:  {rate:.2f} steps/s, {100 * wait:.1f} % of the epoch waiting for data")
        print(f"Ray's share of the epoch: {100 * (1 - rate / plain):.1f} %; beside the epochs the run took {whole - epochs:.0f} s")


def prepare(folder: Path, options: argparse.Namespace) -> TrainJob:
    write_dataset(str(folder / "data"), Scene(shape_zyx=(64, 192, 192), crowding=4.0), runs=8, seed=0)
    rows, _ = index(str(folder / "data"), contrast="dark")
    write_catalogue(str(folder / "catalogue.parquet"), assign_splits(rows, validation=0.15, test=0.0))
    sizes = {"epochs": options.epochs, "steps_per_epoch": options.steps, "workers.threads": options.threads}
    paths = {"catalogue": str(folder / "catalogue.parquet"), "output": str(folder / "runs")}
    return read_settings(TrainJob, overrides=SETTINGS | sizes | paths)


def plain_loop(job: TrainJob, options: argparse.Namespace) -> float:
    """Return the steps per second of the same method on batches that lie in memory."""
    torch.set_num_threads(options.threads)
    method = build_method(job, {}).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    batches = crops(steps=2 * options.steps, tomograms=2, batch=4, edge=64)
    loaders = {"labelled": batches, "unlabelled": [{"volume": batch["volume"]} for batch in batches]}
    epochs = fit(method, optimizer, loaders, epochs=3, steps_per_epoch=options.steps, precision=job.precision)
    return statistics.median([epoch.steps / epoch.wall_s for epoch in epochs][1:])


def values_of(run: str, key: str) -> list[float]:
    return [metric.value for metric in MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_metric_history(run, key)]


if __name__ == "__main__":
    main()
