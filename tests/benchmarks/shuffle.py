"""How well crops of different tomograms are mixed: the batches that training sees, against a full shuffle of the same crops.

    python tests/benchmarks/shuffle.py [--tomograms 64] [--per-visit 4 16] [--buffer 0 32 128 512] [--batch 8] [--batches 800]

A stream as training has it, of tomograms each of which holds one value drawn from a normal distribution; so a crop tells which it is of.
Printed for each number of crops per visit and size of the shuffle buffer: the share of batches whose crops are all of one tomogram, the
tomograms in a batch, and the correlation of the mean values of neighbouring batches. Of a full shuffle, which has all crops at hand, the same,
and two standard errors of a correlation of as many pairs that have nothing to do with each other.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
from numpy.typing import NDArray

from tomoray.catalogue import CatalogueRow
from tomoray.cluster.data import CropSource, batches, crop_stream
from tomoray.cluster.session import session
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import CropSettings
from tomoray.tomogram import Particle, Tomogram

EDGE, VOXEL = 16, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tomograms", type=int, default=64)
    parser.add_argument("--per-visit", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--buffer", type=int, nargs="+", default=[0, 32, 128, 512])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=800)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, session():
        rows = tuple(write(Path(folder), number) for number in range(options.tomograms))
        print(f"{'crops per visit':>15} {'buffer':>7} {'of one tomogram':>16} {'tomograms in a batch':>21} {'correlation':>12}")
        for per_visit in options.per_visit:
            for buffer in options.buffer:
                seen = stream(rows, CropSettings(patch_vox=EDGE, per_visit=per_visit, shuffle_crops=buffer), options)
                tell(f"{per_visit:15d} {buffer:7d}", seen)
            shuffled = np.random.default_rng(0).permutation(seen.ravel()).reshape(seen.shape)
            tell(f"{per_visit:15d} {'all':>7}", shuffled)
        print(f"two standard errors of a correlation: {2 / np.sqrt(options.batches):.2f}")


def write(folder: Path, number: int) -> CatalogueRow:
    """Write a tomogram of one value, and return its row, which has values stay as they are."""
    name, value = f"TS_{number:03d}", np.random.default_rng(number).standard_normal()
    write_mrc(folder / f"{name}.mrc", Tomogram(name, np.full((EDGE,) * 3, value, np.float32), (VOXEL,) * 3))
    return CatalogueRow(name, name, str(folder / f"{name}.mrc"), (EDGE,) * 3, "float32", VOXEL, 0.0, 1.0, -4.0, 4.0, "dark", split="train")


def stream(rows: tuple[CatalogueRow, ...], settings: CropSettings, options: argparse.Namespace) -> NDArray[np.float32]:
    """Return the value of each crop `(batches, batch)`."""
    source = CropSource(rows, (Particle("particle", VOXEL),), VOXEL, "dark", settings, seed=0, labelled=False)
    visits = -(-options.batch * options.batches // settings.per_visit)
    crops = crop_stream(source, lambda: (0, visits))()
    return np.stack([batch["volume"][:, 0, 0, 0, 0].float().numpy() for batch in batches(crops, settings, options.batch, seed=0)])


def tell(what: str, seen: NDArray[np.float32]) -> None:
    """Print how mixed batches are."""
    kinds = np.array([len(np.unique(batch)) for batch in seen])
    means = seen.mean(axis=1)
    correlation = np.corrcoef(means[:-1], means[1:])[0, 1]
    print(f"{what} {(kinds == 1).mean():16.3f} {kinds.mean():21.1f} {correlation:+12.2f}", flush=True)


if __name__ == "__main__":
    main()
