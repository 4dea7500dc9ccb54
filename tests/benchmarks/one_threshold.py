"""What the pickers of a study find above one threshold that nobody chose, beside what they find above their own.

    python tests/benchmarks/one_threshold.py studies/tomopicker-small --catalogue data/crowded.parquet [--threshold 0.5]

A score that is the probability of a particle needs no threshold but one half. Each picker's own comes from its validation. Printed for each
arm, over its seeds and the test tomograms of the catalogue: F1 at half the radius above either, and precision and recall above the one for all.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from ceilings import machine

from tomoray.catalogue import CatalogueRow, read_catalogue
from tomoray.checkpoint import load_picker
from tomoray.config import read_settings
from tomoray.inference import for_inference
from tomoray.jobs import TrainJob
from tomoray.scoring import f1_score
from tomoray.thresholds import apply_thresholds
from tomoray.validation import find_candidates, known_picks

COLUMNS = ("own threshold", "one threshold", "precision", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("cpu", options.threads))
    rows = [row for row in read_catalogue(options.catalogue) if row.split == "test"]
    values = defaultdict[str, list[list[float]]](list)
    for folder in sorted((options.study / "runs").iterdir()):
        values[folder.name.partition("-")[0]].append(measure(folder, rows, options.threshold))
    print(f"{len(rows)} tomograms, F1 at half the radius; one threshold: {options.threshold:g}")
    print(f"{'arm':24}seeds" + "".join(f"{column:>18}" for column in COLUMNS))
    for arm, seeds in values.items():
        columns = zip(np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=1 if len(seeds) > 1 else 0), strict=True)
        print(f"{arm:24}{len(seeds):5}" + "".join(f"{f'{mean:.3f} ± {spread:.3f}':>18}" for mean, spread in columns))


def measure(folder: Path, rows: list[CatalogueRow], threshold: float) -> list[float]:
    """Return the columns of one trial."""
    job = read_settings(TrainJob, folder / "job.toml")
    picker, card = load_picker(folder / "picker")
    lean, particles = for_inference(picker, "auto"), job.particle_list()
    candidates, truth = [find_candidates(lean, card, row, job) for row in rows], [known_picks(row, job) for row in rows]
    own = f1_score(truth, [apply_thresholds(found, card.thresholds) for found in candidates], particles)
    one = f1_score(truth, [found[found.scores >= threshold] for found in candidates], particles)
    found = [c for c in one.classes if c.truths]
    return [own.value, one.value, float(np.mean([c.precision for c in found])), float(np.mean([c.recall for c in found]))]


if __name__ == "__main__":
    main()
