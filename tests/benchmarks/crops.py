"""Crops per second from many tomograms: tomoray's reading against MONAI's caches and against memory-mapped volumes.

    python tests/benchmarks/crops.py [--tomograms 16] [--shape 184 630 630] [--patch 96] [--per-visit 16] [--crops 1600]
                                     [--cached 0.25] [--workers 2] [--repeats 1] [--folder bench/crops] [--ray]

All read the same volumes (noise with a few hundred marked particles each), `per-visit` cubes of `patch` voxels from each tomogram in turn,
half of them around a particle, in as many worker processes of PyTorch's DataLoader:

    tomoray, ingested    read_crops from OME-Zarr as `tomoray ingest` writes it
    tomoray, MRC         read_crops from MRC files of float32
    tomoray, S3          read_crops from those of `tomoray ingest` on an S3 server: Ceph's gateway, started here with its disk in memory,
                         which takes its share of the same cores; left out where it cannot be had
    monai, cache         CacheDataset with RandCropByPosNegLabeld, as its tutorials have it, from the MRC files and label volumes
    monai, indices       the same with FgBgToIndicesd, which finds foreground once and for all, for its price in memory
    monai, smart cache   SmartCacheDataset with RandCropByPosNegLabeld, a quarter of its cache replaced after each epoch
    memory map           a Dataset that cuts cubes out of numpy files of float32, scaled before
    tomoray under Ray    crop_stream, with as many readers, from the ingested files; with --ray

`cached` is the share of the tomograms that fits into memory, as where data are larger than it: so many MONAI's caches may hold, and of so
many that were read last the kernel may keep the files; it is told to forget those that were read before them, and all before a contender
starts. Each contender has a process of its own; with `repeats` they take turns so often, and medians are told. Time counts from the second
visit on, after what a cache has to be filled with, which is told apart. Memory is the most that a contender's processes held together, of
what the kernel cannot drop: anonymous and shared pages. Bytes are those that the disk was asked for, and for tomoray also those that its
readers got, and those in the chunks that crops touch.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from ceilings import machine
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.ceph import ceph_gateway
from services.fixtures import new_bucket
from services.programs import UnavailableError
from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, write_catalogue
from tomoray.crops import Scales, alone_bytes, read_crops
from tomoray.formats import open_tomogram
from tomoray.formats.czii import read_czii_csv, write_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.index import Intensities
from tomoray.ingest import ChunkLayout, ingest_tomogram
from tomoray.patches import cut, draw_corners
from tomoray.preprocessing import Preparation, as_half
from tomoray.tomogram import Particle, Picks, Tomogram

FORK = "fork"  # what DataLoader does by itself on Linux, but not in a process that was spawned: caches are shared, not copied
VOXEL, RADIUS_VOX, PARTICLES = 10.0, 6, 300
INGESTED, MRC, S3, RAY = "tomoray, ingested", "tomoray, MRC", "tomoray, S3", "tomoray under Ray"
CACHE, INDICES, SMART, MAPPED = "monai, cache", "monai, indices", "monai, smart cache", "memory map"
CATALOGUES = {INGESTED: "ingested.parquet", MRC: "mrc.parquet", S3: "s3.parquet"}
SERVER_BYTES = 8 * 2**30

Visit = tuple[int, int, int]  # crops, bytes that readers asked for, bytes of the chunks that each of these crops touches


@dataclass
class Result:
    """What came of a contender, or the median of each over its turns."""

    crops_per_s: float
    ready_s: float
    held_gb: float
    disk_mb: float  # per crop, as the next two
    asked_mb: float
    chunks_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tomograms", type=int, default=16)
    parser.add_argument("--shape", type=int, nargs=3, default=(184, 630, 630))
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--per-visit", type=int, default=16)
    parser.add_argument("--crops", type=int, default=1600)
    parser.add_argument("--cached", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", default="bench/crops")
    parser.add_argument("--only", nargs="*", default=[], help="contenders; all by default")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    print(machine("cpu", 1), flush=True)
    make(Path(options.folder), options)
    names = [INGESTED, MRC, S3, CACHE, INDICES, SMART, MAPPED, *([RAY] if options.ray else [])]
    results: dict[str, list[Result]] = {}
    for name in names * options.repeats:
        if not options.only or name in options.only:
            with on_server(Path(options.folder)) if name == S3 else nullcontext(True) as there:
                if there:
                    results.setdefault(name, []).append(run(name, options))
    report({name: Result(*np.median([astuple(turn) for turn in turns], axis=0).tolist()) for name, turns in results.items()})


def make(folder: Path, options: argparse.Namespace) -> None:
    """Write the volumes in the form that each contender reads, unless they are there."""
    asked = json.dumps([options.tomograms, options.shape, options.patch])
    if (folder / "made.json").exists() and (folder / "made.json").read_text() == asked:
        return
    rows = [make_one(folder, index, options) for index in range(options.tomograms)]
    layout = ChunkLayout.for_crops(options.patch)
    write_catalogue(folder / "mrc.parquet", rows)
    write_catalogue(folder / "ingested.parquet", [ingest_tomogram(row, str(folder / "ingested"), layout)[0] for row in rows])
    (folder / "made.json").write_text(asked)


def make_one(folder: Path, index: int, options: argparse.Namespace) -> CatalogueRow:
    """Write one volume as MRC, its scaled values and its labels as numpy files, and its picks; return its row."""
    rng, name = np.random.default_rng(index), f"TS_{index:03d}"
    shape = (options.shape[0], options.shape[1], options.shape[2])
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-5)
    centres = rng.uniform(0, shape, (PARTICLES, 3))
    seen, labels = Intensities(), np.zeros(shape, np.uint8)
    for plane in values:
        seen.add(plane)
    for z, y, x in np.maximum(centres.astype(int) - RADIUS_VOX, 0):
        labels[z : z + 2 * RADIUS_VOX, y : y + 2 * RADIUS_VOX, x : x + 2 * RADIUS_VOX] = 1
    write_mrc(folder / f"{name}.mrc", Tomogram(name, values, (VOXEL,) * 3))
    np.save(folder / f"{name}.npy", (values - np.float32(seen.mean)) / np.float32(seen.std))
    np.save(folder / f"{name}_labels.npy", labels)
    write_czii_csv(folder / f"{name}.csv", [Picks(name, centres * VOXEL, np.array(["particle"] * PARTICLES))])
    numbers = (seen.mean, seen.std, seen.minimum, seen.maximum)
    uri, picks = str(folder / f"{name}.mrc"), str(folder / f"{name}.csv")
    return CatalogueRow(name, name, uri, shape, "float32", VOXEL, *numbers, "dark", split="train", picks_uri=picks, particles={"particle": PARTICLES})


@contextmanager
def on_server(folder: Path) -> Iterator[bool]:
    """Have what was ingested lie on an S3 server for the length of a `with` block; say so where there is none."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(ceph_gateway(SERVER_BYTES))
        except UnavailableError as reason:
            print(f"  {S3}: {reason}")
            yield False
            return
        os.environ |= {**server.environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
        bucket = new_bucket()
        rows = read_catalogue(folder / "ingested.parquet")
        for row in rows:
            filesystem, target = storage.resolve(f"{bucket}/{row.run}.zarr")
            filesystem.put(row.uri, target, recursive=True)
        write_catalogue(folder / CATALOGUES[S3], [replace(row, uri=f"{bucket}/{row.run}.zarr") for row in rows])
        yield True


def run(name: str, options: argparse.Namespace) -> Result:
    """Return what became of a contender in a process of its own, with a cold cache of the kernel."""
    forget(Path(options.folder))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, options))
    process.start()
    theirs.close()
    watch = Watch(process.pid or 0)
    began = time.perf_counter()
    ours.recv()
    ready_s = time.perf_counter() - began
    disk = watch.disk_bytes
    seconds, crops, asked, chunks = ours.recv()
    watch.end()
    process.join()
    per_crop = [number / crops / 1e6 for number in (watch.disk_bytes - disk, asked, chunks)]
    result = Result(crops / seconds, ready_s, watch.held_bytes / 1e9, *per_crop)
    print(f"  {name}: {result.crops_per_s:.1f} crops/s, {result.held_gb:.2f} GB", flush=True)
    return result


def serve(connection: Connection, name: str, options: argparse.Namespace) -> None:
    """Read crops until there are enough; tell when the first visit was there, and then how long the others took."""
    torch.set_num_threads(1)
    visits = CONTENDERS[name](name, options)
    next(visits)
    connection.send("ready")
    began, total = time.perf_counter(), np.zeros(3)
    while total[0] < options.crops:
        total += next(visits)
    connection.send((time.perf_counter() - began, *total.tolist()))
    connection.close()
    os._exit(0)  # workers read ahead without end


def forget(path: Path) -> None:
    """Tell the kernel to drop a file, or all files in a folder, from its cache."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class KernelCache:
    """The kernel's cache as it would be if it held few tomograms: those that a worker read last. All workers share its room."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.room = max(1, int(options.cached * options.tomograms / max(1, options.workers)))
        self.held: dict[str, tuple[Path, ...]] = {}

    def note(self, run: str, *files: Path) -> None:
        """Take note that the files of a tomogram were read, and drop those of the one that was not for longest."""
        self.held.pop(run, None)
        self.held[run] = files
        if len(self.held) > self.room:
            for file in self.held.pop(next(iter(self.held))):
                forget(file)


class Watch:
    """A thread that looks at a process and its children: the most they held together, and what they had from disk."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self.pid, self.every_s, self.held_bytes = pid, every_s, 0
        self.disk: dict[int, int] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    @property
    def disk_bytes(self) -> int:
        return sum(list(self.disk.values()))

    def end(self) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(self.every_s):
            held = 0
            for pid in family(self.pid):
                pages, reads = fields(pid, "smaps_rollup"), fields(pid, "io")
                held += 1024 * sum(pages.get(name, 0) for name in ("Pss_Anon", "Pss_Shmem"))
                self.disk[pid] = max(self.disk.get(pid, 0), reads.get("read_bytes", 0))
            self.held_bytes = max(self.held_bytes, held)


def family(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found, parents = [pid], {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            parents[int(folder.name)] = fields(int(folder.name), "status").get("PPid", 0)
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def fields(pid: int, name: str) -> dict[str, int]:
    """Return the numbers of a file of /proc; none of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


class OurVisits(IterableDataset):  # type: ignore[type-arg]
    """Visits without end, as the reading tasks of a stream make them; each worker makes its share."""

    def __init__(self, rows: list[CatalogueRow], options: argparse.Namespace) -> None:
        self.rows, self.options, self.cache = rows, options, KernelCache(options)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Visit]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        scales: Scales = {}
        while True:
            lap, place = divmod(number, len(self.rows))
            row = self.rows[np.random.default_rng((0, lap)).permutation(len(self.rows))[place]]
            yield self.visit(row, np.random.default_rng((1, number)), scales)
            number += step

    def visit(self, row: CatalogueRow, rng: np.random.Generator, scales: Scales) -> tuple[torch.Tensor, Visit]:
        tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom)
        (picks,) = read_czii_csv(row.picks_uri)
        points = np.column_stack([np.zeros(len(picks)), picks.positions_zyx / VOXEL])
        corners = draw_corners(rng, tomogram.shape, self.options.patch, points, self.options.per_visit)
        wanted = Preparation(row.contrast, row.voxel_angstrom)
        crops = np.empty((len(corners), *(self.options.patch,) * 3), np.float16)
        for place, crop in zip(crops, read_crops(tomogram, row, corners, self.options.patch, wanted, scales), strict=True):
            place[:] = as_half(crop)
        if storage.is_local(row.uri):
            self.cache.note(row.run, Path(row.uri))
        numbers = (len(crops), tomogram.bytes_read, alone_bytes(tomogram, corners, self.options.patch, wanted))
        return torch.from_numpy(crops), numbers


def ours(name: str, options: argparse.Namespace) -> Iterator[Visit]:
    """Yield visits of tomoray's reader."""
    rows = read_catalogue(Path(options.folder) / CATALOGUES[name])
    for _, numbers in DataLoader(OurVisits(rows, options), batch_size=None, num_workers=options.workers, multiprocessing_context=FORK):
        yield numbers


class Mapped(Dataset):  # type: ignore[type-arg]
    """Volumes in numpy files, of which an item is the crops of one visit."""

    def __init__(self, rows: list[CatalogueRow], options: argparse.Namespace) -> None:
        self.rows, self.options, self.cache = rows, options, KernelCache(options)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.rows[index]
        file = Path(self.options.folder) / f"{row.run}.npy"
        volume = np.load(file, mmap_mode="r")
        (picks,) = read_czii_csv(row.picks_uri)
        points = np.column_stack([np.zeros(len(picks)), picks.positions_zyx / VOXEL])
        corners = draw_corners(np.random.default_rng(), volume.shape, self.options.patch, points, self.options.per_visit)
        self.cache.note(row.run, file)
        return torch.from_numpy(np.stack([as_half(cut(volume, corner, self.options.patch)) for corner in corners]))


def mapped(name: str, options: argparse.Namespace) -> Iterator[Visit]:
    """Yield visits of memory-mapped volumes, epoch after epoch."""
    dataset = Mapped(read_catalogue(Path(options.folder) / "mrc.parquet"), options)
    workers = {"num_workers": options.workers, "multiprocessing_context": FORK, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size=None, shuffle=True, **workers)
    while True:
        for crops in loader:
            yield len(crops), 0, 0


def monai_visits(name: str, options: argparse.Namespace) -> Iterator[Visit]:
    """Yield visits of MONAI's cached datasets, epoch after epoch."""
    from monai.data import CacheDataset, SmartCacheDataset, list_data_collate
    from monai.transforms import Compose, FgBgToIndicesd, Lambda, NormalizeIntensityd, RandCropByPosNegLabeld

    found = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"} if name == INDICES else {}
    crop = RandCropByPosNegLabeld(("image", "label"), "label", options.patch, num_samples=options.per_visit, **found)
    load = Lambda(Loader(options), track_meta=False)  # MONAI caches nothing behind what is no transform of its own
    steps = [load, NormalizeIntensityd("image"), *([FgBgToIndicesd("label")] if found else []), crop]
    items = [{"stem": row.uri.removesuffix(".mrc")} for row in read_catalogue(Path(options.folder) / "mrc.parquet")]
    kept = max(1, int(options.cached * len(items)))
    if name == SMART:
        dataset = SmartCacheDataset(items, Compose(steps), 0.25, kept, num_init_workers=1, num_replace_workers=1, progress=False)
        dataset.start()
    else:
        dataset = CacheDataset(items, Compose(steps), cache_num=kept, num_workers=1, progress=False)
    stay = name != SMART  # workers that stay would not see what is replaced
    workers = {"num_workers": options.workers, "multiprocessing_context": FORK, "persistent_workers": stay}
    loader = DataLoader(dataset, 1, shuffle=True, collate_fn=list_data_collate, **workers)
    while True:
        for batch in loader:
            yield len(batch["image"].half()), 0, 0
        if name == SMART:
            dataset.update_cache()


class Loader:
    """Reads tomograms and their labels, each with a channel in front."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.cache = KernelCache(options)

    def __call__(self, item: dict[str, str]) -> dict[str, torch.Tensor]:
        volume, marks = Path(f"{item['stem']}.mrc"), Path(f"{item['stem']}_labels.npy")
        values, labels = open_tomogram(str(volume)).read(), np.load(marks)
        self.cache.note(volume.stem, volume, marks)
        return {"image": torch.from_numpy(values)[None], "label": torch.from_numpy(labels)[None]}


def under_ray(name: str, options: argparse.Namespace) -> Iterator[Visit]:
    """Yield batches of a stream under Ray; what its tasks asked for is not known here."""
    from tomoray.cluster.data import CropSource, crop_stream
    from tomoray.cluster.session import session
    from tomoray.jobs import CropSettings

    settings = CropSettings(patch_vox=options.patch, per_visit=options.per_visit, readers=options.workers)
    rows = tuple(read_catalogue(Path(options.folder) / "ingested.parquet"))
    source = CropSource(rows, (Particle("particle", VOXEL * RADIUS_VOX),), VOXEL, "dark", settings, seed=0)
    with session():
        stream = crop_stream(source, lambda: (0, 10 + 4 * options.crops // options.per_visit))()
        for batch in stream.iter_batches(batch_size=options.per_visit):
            yield len(batch["volume"]), 0, 0


CONTENDERS: dict[str, Callable[[str, argparse.Namespace], Iterator[Visit]]] = {
    INGESTED: ours,
    MRC: ours,
    S3: ours,
    CACHE: monai_visits,
    INDICES: monai_visits,
    SMART: monai_visits,
    MAPPED: mapped,
    RAY: under_ray,
}


def report(results: dict[str, Result]) -> None:
    """Print all figures, and how ours compare with the best of the others."""
    print(f"{'':20} {'crops/s':>8} {'ready s':>8} {'GB held':>8} {'MB of disk':>11} {'MB asked':>9} {'MB of chunks':>13}")
    for name, r in results.items():
        asked = f"{r.asked_mb:9.2f} {r.chunks_mb:13.2f}" if r.asked_mb else f"{'-':>9} {'-':>13}"
        print(f"{name:20} {r.crops_per_s:8.1f} {r.ready_s:8.1f} {r.held_gb:8.2f} {r.disk_mb:11.2f} {asked}")
    peers = [result for name, result in results.items() if not name.startswith("tomoray")]
    for name, result in results.items():
        if name.startswith("tomoray") and peers:
            fastest = max(peers, key=lambda peer: peer.crops_per_s)
            times, share = result.crops_per_s / fastest.crops_per_s, result.held_gb / fastest.held_gb
            print(f"{name}: {times:.1f} times the crops per second of the fastest peer, {share:.2f} of its memory")


if __name__ == "__main__":
    main()
