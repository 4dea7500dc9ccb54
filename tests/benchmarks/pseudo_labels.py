"""What a teacher tells a student of tomograms without labels, where the truth is known after all.

    python tests/benchmarks/pseudo_labels.py CHECKPOINT --catalogue data/study.parquet [--labelled-runs 2] [--views 4] [--floor 0.1]

A heat map is at once the target of the unlabelled loss and the weight of its foreground, so that what lies elsewhere than on particles
counts as much as what lies on them. Printed for each class, over the training tomograms whose labels a run with so many labelled
ones does not show: the mass of the teacher's maps as a multiple of the true maps' mass; the share of it that lies on particles of the class
(where the true map is above 0.1), on particles of other classes, and elsewhere; the mean score in the centres of particles; and all of that
once more with values below the floor set to 0.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse

import torch
from ceilings import machine
from torch import Tensor

from tomoray.catalogue import CatalogueRow, read_catalogue, read_row_picks
from tomoray.checkpoint import Card, load_picker
from tomoray.formats import open_tomogram
from tomoray.inference import for_inference
from tomoray.patches import particle_points
from tomoray.picking import predict
from tomoray.preprocessing import prepare
from tomoray.targets import gaussian_heatmaps, heatmap_sigmas
from tomoray.tiles import Window

ON_PARTICLE = 0.1  # of a true map's peak

COLUMNS = ("mass", "on its own", "on others", "elsewhere", "at centres")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--labelled-runs", type=int, default=2)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--floor", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("cpu", options.threads))
    picker, card = load_picker(options.checkpoint)
    lean = for_inference(picker, "auto")
    rows = [row for row in read_catalogue(options.catalogue) if row.split == "train"][options.labelled_runs :]
    sums = {"as they are": torch.zeros(5, len(card.particles)), f"from {options.floor:g}": torch.zeros(5, len(card.particles))}
    counts = torch.zeros(len(card.particles))
    for row in rows:
        scores, truth, cells = maps(lean, card, row, options.views)
        counts += torch.stack([(cells[0] == label).sum() for label in range(len(card.particles))])
        for floor, total in zip((0.0, options.floor), sums.values(), strict=True):
            total += masses(torch.where(scores < floor, 0.0, scores), truth, cells)
    print(f"{len(rows)} tomograms, {options.views} views")
    for name, total in sums.items():
        print(f"{name:22}" + "".join(f"{column:>12}" for column in COLUMNS))
        for particle, (mass, true, own, others, centres), count in zip(card.particles, total.T.tolist(), counts.tolist(), strict=True):
            shares = [mass / true, own / mass, others / mass, (mass - own - others) / mass, centres / count]
            print(f"  {particle.name:20}" + "".join(f"{share:12.3f}" for share in shares))


def maps(picker: torch.nn.Module, card: Card, row: CatalogueRow, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's maps and the true ones `(classes, d, h, w)`, and class and cell of each particle `(4, n)`."""
    tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom)
    volume, voxel = prepare(tomogram, contrast=row.contrast, to_voxel_angstrom=card.voxel_angstrom, to_contrast=card.contrast)
    points = torch.from_numpy(particle_points(read_row_picks(row), card.particles, voxel)).float()
    truth = gaussian_heatmaps(points[None], heatmap_sigmas(card.particles, card.voxel_angstrom), volume.shape)[0]
    scores = predict(picker, volume, window=Window(views=views))
    cells = torch.cat([points[:, :1], points[:, 1:] // 2], dim=1).long()
    limits = torch.tensor(truth.shape[1:]) - 1
    return scores, truth, torch.cat([cells[:, :1], cells[:, 1:].clamp(min=torch.zeros(3, dtype=torch.long), max=limits)], dim=1).T


def masses(scores: Tensor, truth: Tensor, cells: Tensor) -> Tensor:
    """Return sums `(5, classes)`: all scores, the true maps, scores on particles of the class, on those of others, and in centres."""
    own = truth > ON_PARTICLE
    others = own.any(0, keepdim=True) & ~own
    centres = torch.zeros(len(scores)).index_add_(0, cells[0], scores[tuple(cells)])
    sums = [part.sum((1, 2, 3), dtype=torch.float64).float() for part in (scores, truth, scores * own, scores * others)]
    return torch.stack([*sums, centres])


if __name__ == "__main__":
    main()
