"""How good a picker is on validation tomograms while it is trained: what is found in each, and what all of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoray.catalogue import CatalogueRow, read_row_picks
from tomoray.checkpoint import Card
from tomoray.formats import open_tomogram
from tomoray.jobs import TrainJob, ValidationSettings
from tomoray.patches import particle_points
from tomoray.picking import pick
from tomoray.preprocessing import prepare
from tomoray.scoring import czii_score, f1_score
from tomoray.soft_f1 import soft_counts_of, soft_f1
from tomoray.targets import ball_radii
from tomoray.thresholds import apply_thresholds, choose_thresholds
from tomoray.tiles import Window
from tomoray.tomogram import Picks, Triple

MEASURED = {"f1": "val_f1", "czii": "val_czii"}  # objective -> the metric by which checkpoints are kept
SOFT_F1 = "val_soft_f1"


@dataclass(frozen=True)
class Seen:
    """What a picker sees in one tomogram: candidates, and sums for the soft F1 where that is asked for."""

    candidates: Picks
    soft: Tensor | None = None


def measure_of(validation: ValidationSettings) -> str:
    """Return the metric by which the best checkpoint is told, and that a plateau is looked for in."""
    return SOFT_F1 if validation.best_by == "soft_f1" else MEASURED[validation.objective]


def look(picker: nn.Module, card: Card, row: CatalogueRow, job: TrainJob) -> Seen:
    """Return what a picker sees in a row's tomogram, as its card and the job's validation have it."""
    volume, voxel = _prepared(card, row)
    candidates = _find(picker, card, row, job, volume, voxel)
    if job.validation.best_by != "soft_f1":
        return Seen(candidates)
    points = particle_points(known_picks(row, job), card.particles, voxel)
    radii = ball_radii(card.particles, card.voxel_angstrom, int(picker.stride))  # type: ignore[arg-type]
    return Seen(candidates, soft_counts_of(picker, volume, points, radii, job.crops.patch_vox))


def find_candidates(picker: nn.Module, card: Card, row: CatalogueRow, job: TrainJob) -> Picks:
    """Return every candidate of a row's tomogram above the floor of a job's validation, seen and searched as a card says."""
    return _find(picker, card, row, job, *_prepared(card, row))


def _prepared(card: Card, row: CatalogueRow) -> tuple[NDArray[np.float32], Triple]:
    tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom, permissive=True)
    return prepare(tomogram, contrast=row.contrast, to_voxel_angstrom=card.voxel_angstrom, to_contrast=card.contrast, clip_sd=card.clip_sd)


def _find(picker: nn.Module, card: Card, row: CatalogueRow, job: TrainJob, volume: NDArray[np.float32], voxel: Triple) -> Picks:
    window, floor = Window(tile_vox=card.tile_vox), job.validation.floor
    return pick(picker, volume, card.particles, voxel, run=row.run, window=window, floor=floor, finder=card.finder)


def known_picks(row: CatalogueRow, job: TrainJob) -> Picks:
    """Return a row's truth, of the job's classes."""
    picks = read_row_picks(row)
    names = {p.name for p in job.particles}
    return picks[[name in names for name in picks.names.tolist()]]


def conclude(card: Card, rows: Sequence[CatalogueRow], seen: Sequence[Seen], job: TrainJob) -> tuple[Card, dict[str, float]]:
    """Return a card with thresholds and what they reach, and the metrics of a validation, from what was seen in each of its tomograms."""
    particles, truth, candidates = job.particle_list(), [known_picks(row, job) for row in rows], [one.candidates for one in seen]
    options: dict[str, Any] = {"objective": job.validation.objective, "regularise": job.validation.regularise}
    thresholds = choose_thresholds(truth, candidates, particles, expected=job.expected_particles(), **options)
    values = {name: choice.threshold for name, choice in thresholds.items()}
    picked = [apply_thresholds(picks, values) for picks in candidates]
    score = f1_score(truth, picked, particles)
    expected = {name: choice.expected for name, choice in thresholds.items() if choice.expected is not None}
    default = [name for name, choice in thresholds.items() if choice.is_default]
    notes: dict[str, Any] = {"runs": list(score.runs), "f1": score.as_dict(), "expected": expected, "default_thresholds": default}
    metrics = {"val_f1": score.value} | {f"val_f1/{c.name}": c.value for c in score.classes if c.truths}
    if job.validation.objective == "czii":
        notes["czii"] = metrics["val_czii"] = czii_score(truth, picked, particles).value
    if sums := [one.soft for one in seen if one.soft is not None]:
        notes["soft_f1"] = metrics[SOFT_F1] = _headline(soft_f1(torch.stack(sums).sum(0)))
    return card.with_thresholds(values, notes), metrics


def _headline(values: Tensor) -> float:
    """Return the mean over the classes of which something is marked."""
    return float(values.nanmean().nan_to_num())
