"""From catalogue rows to a stream of crops, with Ray Data.

A stream follows a *plan*: one visit per item, each with its tomogram and its own random numbers. A visit opens a tomogram once, in the
task that cuts it, reads of it what its crops need (`tomoray.crops`), and only crops as float16 travel on. A plan has no epochs, and a
restarted run goes on behind the visits it has seen.

Crops arrive in the order of the plan, however long each visit takes, so that a run of one seed and so many workers sees the same batches
each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray.data
import ray.train
import torch
from numpy.typing import NDArray
from ray.data import ExecutionOptions, TaskPoolStrategy
from ray.data.collate_fn import NumpyBatchCollateFn

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_row_picks
from tomoray.cluster.pace import Pace
from tomoray.crops import Scales, read_crops
from tomoray.formats import open_tomogram
from tomoray.jobs import CropSettings
from tomoray.patches import draw_corners, grid_walk, particle_points, points_near
from tomoray.preprocessing import Preparation, as_half
from tomoray.targets import reach_vox
from tomoray.tomogram import Contrast, Particle

PARTICLES_PER_CROP = 256  # slots that travel with every crop; unused ones cost four kilobytes
CROPS_PER_BLOCK = 8
IN_ORDER = ExecutionOptions(preserve_order=True)  # readers still work side by side; what is ready too early waits for its turn
SCALES: Scales = {}  # by this process: tasks of one worker share what they had to read whole tomograms for


@dataclass(frozen=True)
class CropSource:
    """All that a task needs to know to cut crops."""

    rows: tuple[CatalogueRow, ...]
    particles: tuple[Particle, ...]
    voxel_angstrom: float
    contrast: Contrast
    crops: CropSettings
    seed: int
    labelled: bool = True
    clip_sd: float = 0.0


class Collate(NumpyBatchCollateFn):  # type: ignore[misc]
    """Tensors of their own from the read-only arrays that Ray Data shares."""

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        tensors = {key: torch.as_tensor(np.array(value)) for key, value in batch.items()}
        tensors["volume"] = tensors["volume"][:, None]
        return tensors


def plan(rows: int, first: int, last: int, seed: int) -> list[dict[str, int]]:
    """Return the visits from `first` to before `last`: each pass over the rows in another, reproducible order."""
    laps = range(first // rows, -(-last // rows))
    order = np.concatenate([np.random.default_rng((seed, lap)).permutation(rows) for lap in laps])
    return [{"visit": visit, "row": int(order[visit - laps[0] * rows])} for visit in range(first, last)]


def crop_stream(source: CropSource, visits: Callable[[], tuple[int, int]]) -> Callable[[], ray.data.Dataset]:
    """Return a function that makes the stream; Ray Train calls it at every start of its workers, and so `visits` is asked then."""

    def make() -> ray.data.Dataset:
        items = plan(len(source.rows), *visits(), source.seed)
        stream = ray.data.from_items(items, override_num_blocks=max(1, len(items)))  # a task for each, or its turn would hold up several
        readers = TaskPoolStrategy(size=source.crops.readers)
        stream = stream.map_batches(partial(cut_crops, source=source), batch_size=1, num_cpus=1, compute=readers)
        stream.context.execution_options = IN_ORDER  # unless Ray Train has its own
        stream.context.execution_no_progress_timeout_s = -1  # a stream that waits for a validation has not failed
        stream.context.enable_progress_bars = False
        stream.context.custom_execution_callback_classes = [Pace]
        return stream

    return make


def cut_crops(batch: dict[str, NDArray[Any]], *, source: CropSource) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the crops of each visit, a few at a time: `volume` `(n, p, p, p)` float16 and `particles` `(n, slots, 4)` float32."""
    halo = reach_vox(source.particles, source.voxel_angstrom)
    for visit, index in zip(batch["visit"], batch["row"], strict=True):
        row = source.rows[int(index)]
        crops, corners, points = storage.patiently(partial(pay_visit, source, int(visit), int(index)), row.uri)
        for first in range(0, len(crops), CROPS_PER_BLOCK):
            near = [points_near(points, corner, source.crops.patch_vox, halo) for corner in corners[first : first + CROPS_PER_BLOCK]]
            yield {"volume": np.stack(crops[first : first + CROPS_PER_BLOCK]), "particles": np.stack([_slots(p, row.uri) for p in near])}


def pay_visit(source: CropSource, visit: int, index: int) -> tuple[list[NDArray[np.float16]], NDArray[np.int64], NDArray[np.float64]]:
    """Return the crops of one visit in float16, their corners `(n, 3)`, and the particles `(m, 4)` of their tomogram."""
    row = source.rows[index]
    tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom, permissive=True)
    wanted = Preparation(row.contrast, source.voxel_angstrom, source.contrast, source.clip_sd)
    points = particle_points(read_row_picks(row), source.particles, wanted.voxel_angstrom(tomogram)) if source.labelled else np.empty((0, 4))
    corners = visit_corners(source, visit, index, wanted.shape(tomogram), points)
    crops = read_crops(tomogram, row, corners, source.crops.patch_vox, wanted, SCALES)
    return [as_half(crop) for crop in crops], corners, points


def visit_corners(source: CropSource, visit: int, index: int, shape: Sequence[int], points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the `(n, 3)` corners of one visit's crops."""
    settings = source.crops
    if settings.layout == "grid":
        earlier = visit // len(source.rows)  # each lap of the plan visits each row once
        return grid_walk(shape, settings.patch_vox, earlier, settings.per_visit, (source.seed, index))
    rng = np.random.default_rng((source.seed, visit))
    return draw_corners(rng, shape, settings.patch_vox, points, settings.per_visit, centred_fraction=settings.centred_fraction)


def _slots(points: NDArray[np.float64], uri: str) -> NDArray[np.float32]:
    if len(points) > PARTICLES_PER_CROP:
        raise ValueError(f"{uri}: {len(points)} particles near one crop, more than {PARTICLES_PER_CROP}; make crops.patch_vox smaller")
    slots = np.full((PARTICLES_PER_CROP, 4), -1, dtype=np.float32)
    slots[: len(points)] = points
    return slots


def batch_size(stream: str, crops: CropSettings) -> int:
    """Return how many crops of a stream one worker sees per step."""
    return crops.unlabelled_batch_size or crops.batch_size if stream == "unlabelled" else crops.batch_size


def batches(crops: ray.data.Dataset | ray.data.DataIterator, settings: CropSettings, size: int, seed: int) -> Iterable[dict[str, torch.Tensor]]:
    """Return crops as batches of tensors, each drawn at random among `shuffle_crops` of them; every iteration starts the stream anew."""
    return crops.iter_torch_batches(  # type: ignore[no-any-return]
        batch_size=size,
        local_shuffle_buffer_size=settings.shuffle_crops or None,
        local_shuffle_seed=seed if settings.shuffle_crops else None,
        prefetch_batches=2,
        drop_last=True,
        collate_fn=Collate(),
        pin_memory=torch.cuda.is_available(),  # so that copies to a GPU need not be waited for
    )


class Shard:
    """One worker's share of a stream; every iteration starts it anew."""

    def __init__(self, name: str, crops: CropSettings, seed: int) -> None:
        self.iterator = ray.train.get_dataset_shard(name)
        self.crops = crops
        self.batch_size = batch_size(name, crops)
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(batches(self.iterator, self.crops, self.batch_size, self.seed))
