"""Whether bulk picking stays flat: hundreds or thousands of small tomograms, with faults, and the memory that they take over time.

    python tests/benchmarks/pick_many.py [--rows 500 5000] [--output memory.csv] [--actors 2]

Of the tomograms 1 % are corrupt and 5 % are refused once by a web server; one crashes every process that reads it, one only the first;
the driver is killed once, two predicting actors in the run that follows. Printed: what came of it, tomograms per second, and for each
kind of memory its peak and its slope over the second half of the run. The CSV holds a line per second.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import argparse
import csv
import sys
import tempfile
import threading
from pathlib import Path

from memory_use import KINDS, MemoryWatch

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from faults import faulty_catalogue, faulty_server, kill_actors, kill_driver, small_checkpoint, small_volume

from tomoray.catalogue import read_catalogue
from tomoray.cluster.pick import candidates_folder, pick_all
from tomoray.cluster.session import session
from tomoray.ensemble import ensemble_card
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import PickJob
from tomoray.results import committed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--output", default="memory.csv")
    options = parser.parse_args()
    samples = []
    for rows in options.rows:
        samples += run(rows, options.actors)
    with Path(options.output).open("w", newline="") as file:
        table = csv.DictWriter(file, ("rows", "seconds", "done", *KINDS))
        table.writeheader()
        table.writerows(samples)


def run(rows: int, actors: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        write_mrc(folder / "content.mrc", small_volume())
        corrupt, flaky = rows // 100, rows // 20
        with faulty_server((folder / "content.mrc").read_bytes()) as server:
            catalogue = faulty_catalogue(folder, server, good=rows - corrupt - flaky - 2, flaky=flaky, corrupt=corrupt)
            job = PickJob(
                catalogue=catalogue, checkpoint=small_checkpoint(folder / "picker"), output=str(folder / "picks"), actors=actors, tile_vox=32
            )
            tables = candidates_folder(job, ensemble_card(job.checkpoints))
            kill_driver(job, tables, folder / "pick.toml", tables=rows // 10)
            before = len(committed(tables))
            with session():
                watch, seconds, failed = follow(job, tables, (before + rows // 4, before + rows // 2))
        names = {row.tomogram_id for row in read_catalogue(catalogue)}
        there = {path.name for path in Path(tables).iterdir()}
    lost = {name for name in names if name == "deadly" or name.startswith("corrupt")}
    whole = there == {f"{name}.parquet" for name in names - lost} and failed == lost
    rate = (len(there) - before) / seconds
    print(f"{rows} rows: {before} before the driver was killed, then {rate:.1f} per second in {seconds:.0f} s;", end=" ")
    print("every readable one is there once, every other in the failures" if whole else f"WRONG: {sorted(failed ^ lost)[:5]}")
    watch.report("tomograms")
    return [{"rows": rows, **sample} for sample in watch.samples]


def follow(job: PickJob, tables: str, kills: tuple[int, ...]) -> tuple[MemoryWatch, float, set[str]]:
    """Pick, measuring memory; return the measurements, the seconds it took, and what failed."""
    killed: list[int] = []
    threading.Thread(target=kill_actors, args=(tables, kills, killed), daemon=True).start()
    with MemoryWatch(lambda: len(committed(tables))) as watch:
        picked = pick_all(job)
    assert len(killed) == len(kills), "too few actors were killed"
    return watch, picked.wall_s, {failure.tomogram_id for failure in picked.failures}


if __name__ == "__main__":
    main()
