"""How picking scales, simulated: the pipeline of `tomoray pick` with stand-ins that sleep, on more and more actors of one machine.

    python tests/benchmarks/scaling.py [--actors 1 2 4 8 16 32] [--predict-s 2] [--read-s 0.5] [--megabytes 1] [--output scaling.csv]

What is real: Ray Data's scheduling, the object store, processes, committed files, and the driver that follows them all. What is not: networks,
tomograms, machines and the wires between them; all logical CPUs lie on the cores that are here. So the line bends where the driver, Ray's own
processes or these cores are at their end, which on real nodes comes later, or the network comes first (docs/operations.md reckons when).

Printed: tomograms per hour between the first results and the last, what that is of the ideal (actors / predict-s), the seconds until the first,
the share of a core that the driver took, and how busy this machine was. A line below 0.9 of the ideal is where it bends.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tomoray.catalogue import CatalogueRow
from tomoray.cluster import pick as picking
from tomoray.jobs import PickJob

import psutil  # type: ignore[import-untyped]  # isort: skip, ray brings it

LOGICAL_CPUS = 64
TABLE = bytes(20_000)  # as large as the candidates of a tomogram are
PER_ACTOR, AT_LEAST = 15, 40  # tomograms
BENDS = 0.9
COLUMNS = ("actors", "readers", "tomograms", "per_hour", "ideal_per_hour", "share", "first_s", "driver_cores", "machine_busy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--predict-s", type=float, default=2.0)
    parser.add_argument("--read-s", type=float, default=0.5)
    parser.add_argument("--megabytes", type=float, default=1.0, help="of a prepared tomogram; one of CZII has 146")
    parser.add_argument("--output", default="scaling.csv")
    options = parser.parse_args()
    stand_in(options.predict_s, options.read_s, int(options.megabytes * 1e6))
    ray.init(address="local", num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False)
    points = []
    for actors in options.actors:
        points.append(measure(actors, options))
        print("  ".join(f"{key} {value:g}" for key, value in points[-1].items()), flush=True)
    ray.shutdown()
    bent = next((point["actors"] for point in points if point["share"] < BENDS), None)
    print(f"below {BENDS:g} of the ideal from {bent:g} actors on" if bent else f"{BENDS:g} of the ideal or more up to {options.actors[-1]} actors")
    with Path(options.output).open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(points)


def measure(actors: int, options: argparse.Namespace) -> dict[str, float]:
    """Pick with a number of actors, and return what it was like."""
    count = max(AT_LEAST, PER_ACTOR * actors)
    readers = max(2, round(2 * actors * options.read_s / options.predict_s))  # twice as fast as they are needed
    todo = [CatalogueRow(f"v{i:05d}", f"v{i:05d}", "/v", (8, 8, 8), "float32", 10.0, 0.0, 1.0, -1.0, 1.0, "dark") for i in range(count)]
    driver = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        job = PickJob(actors=actors, readers=readers, output=folder)
        began, cpu = time.perf_counter(), sum(driver.cpu_times()[:2])
        psutil.cpu_percent()
        rows = picking._pipeline(job, None, todo, folder, actors).iter_rows()  # type: ignore[arg-type]  # the stand-ins need no card
        done = [time.perf_counter() for row in rows if not row["error"]]
        wall_s = time.perf_counter() - began
        assert len(done) == count == len(list(Path(folder).iterdir()))
    ideal = 3600 * actors / options.predict_s
    rate = 3600 * (count - actors) / (done[-1] - done[actors - 1])  # the first of all actors come together
    busy = psutil.cpu_percent() / 100
    driver_cores = (sum(driver.cpu_times()[:2]) - cpu) / wall_s
    return dict(zip(COLUMNS, (actors, readers, count, rate, ideal, rate / ideal, done[0] - began, driver_cores, busy), strict=True))


def stand_in(predict_s: float, read_s: float, size: int) -> None:
    """Put stages that sleep in the place of the real ones. They import neither torch nor tomoray, so that dozens of processes fit."""

    def read(row: dict[str, Any], *, card: Any, permissive: bool) -> dict[str, Any]:
        time.sleep(read_s)
        return {"tomogram_id": str(row["tomogram_id"]), "error": "", "volume": np.zeros(size // 2, np.float16)}

    class Predict:
        def __init__(self, job: Any, actors_on_node: int) -> None:
            self.table = TABLE

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            time.sleep(predict_s)
            return {"tomogram_id": [str(batch["tomogram_id"][0])], "error": [""], "table": [self.table]}

    def commit(row: dict[str, Any], *, folder: str) -> dict[str, Any]:
        Path(folder, row["tomogram_id"]).write_bytes(row["table"])
        return {"tomogram_id": row["tomogram_id"], "error": row["error"]}

    stages: dict[str, Callable[..., Any]] = {"read": read, "Predict": Predict, "commit": commit}
    for name, stage in stages.items():
        setattr(picking, name, stage)


if __name__ == "__main__":
    main()
