"""One whole tomogram: tomoray against MONAI's sliding window, and against what the machine can do.

    python tests/benchmarks/picking.py [--checkpoint FOLDER] [--shape 184 630 630] [--repeats 3] [--views 1 4] [--device cpu]

The contenders take turns in one process, on a simulated tomogram, with one trained network of full width (without a checkpoint it is
trained first, a few minutes, and kept in bench/picker):

    monai            sliding_window_inference as a user would write it: 90^3, overlap 0.25, Gaussian, float32;
                     then a cubic max-pool, or connected components, which are timed apart
    monai, lean      the same windows with our folded bf16 network and our peaks
    tomoray          predict and find_peaks with for_inference

Picks are compared, one to one within a voxel, with those of the whole volume in one pass in float32. Peak memory is that of the process,
less what it held before. On a GPU only tomoray runs, with all numbers of views. On a CPU start it with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as Ray starts our workers; MONAI gains by that too.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import ctypes
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ceilings import convolution_rate, machine, timed
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tomoray.checkpoint import Card, load_picker, save_checkpoint
from tomoray.inference import for_inference
from tomoray.memory import keep_freed_memory, memory_budget, peak, reset_peak
from tomoray.methods import Supervised
from tomoray.networks import Picker, build_network
from tomoray.patches import cut, draw_corners, points_near
from tomoray.peaks import Peaks, find_components, find_peaks, window_widths
from tomoray.picking import predict
from tomoray.preprocessing import z_score
from tomoray.simulate import Scene, simulate_tomogram
from tomoray.targets import pad_particles
from tomoray.tiles import Window
from tomoray.tomogram import CZII_PARTICLES
from tomoray.training import autocast_dtype, fit

VOXEL = 10.012
WIDTHS = window_widths(CZII_PARTICLES, VOXEL)
THRESHOLD = 0.3  # picks above it are compared
FLOOR = 0.02
REFERENCE, WINDOWS, MAX_POOL, CC3D, LEAN = "whole volume, float32", "monai: windows", "monai: max-pool", "monai: cc3d", "monai, lean"
SCENE = Scene(shape_zyx=(64, 192, 192), crowding=4.0)


@dataclass
class Result:
    """Seconds and peak memory of every turn, and the peaks of the first."""

    seconds: list[float]
    gigabytes: list[float]
    peaks: Peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="bench/picker")
    parser.add_argument("--shape", type=int, nargs=3, default=(184, 630, 630))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--views", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=500, help="of training, where there is no checkpoint yet")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(options.device, options.threads), flush=True)
    if not (Path(options.checkpoint) / "card.json").exists():
        train(Path(options.checkpoint), options.steps, options.device)
    picker, _ = load_picker(options.checkpoint, device=options.device)
    tomogram, _ = simulate_tomogram(Scene(shape_zyx=tuple(options.shape)), seed=1, name="TS_1")
    volume = z_score(tomogram.voxels[...]).astype(np.float16)  # as bulk picking hands it over
    report(compare(picker, volume, options), picker, options)


def train(folder: Path, steps: int, device: str) -> None:
    """Train the published network on simulated tomograms until it picks, and keep it."""
    torch.manual_seed(0)
    method = Supervised(build_network("asymmetric_unet", classes=len(CZII_PARTICLES)), CZII_PARTICLES, VOXEL).to(device)
    method.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.0)
    print(f"training a picker of full width, {steps} steps", flush=True)
    for epoch in fit(method, optimizer, {"labelled": list(crops(steps))}, epochs=10, steps_per_epoch=steps // 10, precision="auto", device=device):
        print(f"  loss {epoch.metrics['loss']:.4f}, {epoch.wall_s:.0f} s", flush=True)
    card = Card(CZII_PARTICLES, VOXEL, "dark", {"name": "asymmetric_unet"}, thresholds={p.name: THRESHOLD for p in CZII_PARTICLES})
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, card, method.picker())


def crops(steps: int, tomograms: int = 8, batch: int = 2, edge: int = 64) -> list[dict[str, Tensor]]:
    """Return batches of labelled crops of simulated tomograms."""
    rng, batches = np.random.default_rng(0), []
    names = [p.name for p in CZII_PARTICLES]
    for index in range(tomograms):
        tomogram, picks = simulate_tomogram(SCENE, seed=(2, index), name=f"TS_{index}")
        volume = z_score(tomogram.voxels[...])
        points = np.column_stack([[names.index(name) for name in picks.names], picks.positions_zyx / VOXEL])
        for _ in range(-(-steps // tomograms)):
            corners = [draw_corners(rng, volume.shape, edge, points, 1)[0] for _ in range(batch)]
            near = [torch.tensor(points_near(points, corner, edge, 24), dtype=torch.float32) for corner in corners]
            values = torch.from_numpy(np.stack([cut(volume, corner, edge) for corner in corners])).half()
            batches.append({"volume": values[:, None], "particles": pad_particles(near)})
    return [batches[i] for i in rng.permutation(len(batches))]


def report_name(views: int) -> str:
    return f"tomoray, {views} view{'s' * (views > 1)}"


def contenders(picker: Picker, volume: np.ndarray, options: argparse.Namespace) -> dict[str, Callable[[], Peaks]]:
    """Return who takes part, by name; each finds the peaks of the volume."""
    lean = for_inference(picker, "auto")
    budget = memory_budget(lean, 0.5)
    mine = {
        report_name(views): lambda views=views: found(predict(lean, volume, window=Window(views=views, budget_vox=budget))) for views in options.views
    }
    if options.device != "cpu":
        return mine
    from monai.inferers import sliding_window_inference

    exact = torch.from_numpy(volume.astype(np.float32))
    maps: list[Tensor] = []

    def windows(network: nn.Module, values: Tensor) -> Tensor:
        with torch.inference_mode():
            maps[:] = [sliding_window_inference(values[None, None], 90, 1, network, overlap=0.25, mode="gaussian")[0].float()]
        return maps[0]

    whole = Window(budget_vox=volume.size)
    return {
        REFERENCE: lambda: found(predict(picker, exact.numpy(), window=whole)),
        WINDOWS: lambda: found(windows(picker, exact)),
        MAX_POOL: lambda: max_pool_peaks(maps[0]),
        CC3D: lambda: components(maps[0]),
        LEAN: lambda: found(windows(lean, exact.to(next(lean.parameters()).dtype))),
        **mine,
    }


def compare(picker: Picker, volume: np.ndarray, options: argparse.Namespace) -> dict[str, Result]:
    """Return what became of every contender; they take turns."""
    results: dict[str, Result] = {}
    for turn in range(options.repeats):
        for name, work in contenders(picker, volume, options).items():
            if name == REFERENCE and turn:
                continue
            keep = name.startswith("tomoray")
            allocate(keep=keep)
            before, answer = start_measuring(options.device), list[Peaks]()
            seconds = timed(lambda work=work, answer=answer: answer.append(work()), options.device)
            gigabytes = (highest(options.device) - before) / 1e9
            result = results.setdefault(name, Result([], [], answer[0]))
            result.seconds.append(seconds)
            result.gigabytes.append(gigabytes)
            print(f"  {name}: {seconds:.2f} s, {gigabytes:.2f} GB", flush=True)
    return results


def report(results: dict[str, Result], picker: Picker, options: argparse.Namespace) -> None:
    """Print medians, ratios, agreement, and the share of what the machine can do."""
    work = operations(picker, options.shape)
    ceiling = convolution_rate(options.device, autocast_dtype("auto", options.device) or torch.float32)
    print(f"{work / 1e12:.2f} TFLOP in the whole volume once; ceiling of convolutions {ceiling / 1e9:.0f} GFLOP/s")
    reference = results.get(REFERENCE)
    print(f"{'':34} {'seconds':>8} {'GB':>6} {'picks':>6} {'F1 to whole float32':>20} {'share of ceiling':>17}")
    for name, result in results.items():
        seconds = statistics.median(result.seconds)
        agreement = f"{agree(result.peaks, reference.peaks):.4f}" if reference else "-"
        share = f"{work / seconds / ceiling:.2f}" if name not in (MAX_POOL, CC3D) else "-"
        print(f"{name:34} {seconds:8.2f} {max(result.gigabytes):6.2f} {sure(result.peaks).sum():6} {agreement:>20} {share:>17}")
    if reference:
        mine = statistics.median(results[report_name(options.views[0])].seconds)
        windows, pooled, cc3d, lean = (statistics.median(results[name].seconds) for name in (WINDOWS, MAX_POOL, CC3D, LEAN))
        print(
            f"times as fast as MONAI with max-pool {(windows + pooled) / mine:.1f}, with cc3d {(windows + cc3d) / mine:.1f}, lean {lean / mine:.1f}"
        )


def found(maps: Tensor) -> Peaks:
    """Return the peaks as `pick` finds them."""
    return find_peaks(maps, WIDTHS, floor=FLOOR, refine=True)


def max_pool_peaks(maps: Tensor) -> Peaks:
    """Return peaks as most users find them: cells that equal the maximum of their cube."""
    found = []
    for label, (scores, width) in enumerate(zip(maps, WIDTHS, strict=True)):
        highest = F.max_pool3d(scores[None], width, stride=1, padding=width // 2)[0]
        cells = ((scores == highest) & (scores > FLOOR)).nonzero()
        found.append(Peaks(torch.full((len(cells),), label), cells, scores[tuple(cells.T)]))
    return Peaks(*(torch.cat([getattr(f, field) for f in found]) for field in ("labels", "cells_zyx", "scores")))


def components(maps: Tensor) -> Peaks:
    """Return the centroids of what hangs together above the threshold, class by class."""
    found = [find_components(torch.where(scores > THRESHOLD, 1.0, 0.0)[None]) for scores in maps]
    labels = [torch.full_like(f.labels, label) for label, f in enumerate(found)]
    return Peaks(torch.cat(labels), torch.cat([f.cells_zyx for f in found]), torch.cat([f.scores for f in found]))


def agree(peaks: Peaks, others: Peaks) -> float:
    """Return the F1 of picks against others, one to one within a voxel, over all classes."""
    hits = 0
    for label in range(len(CZII_PARTICLES)):
        mine, theirs = (p.positions_vox(2)[sure(p) & (p.labels == label)].numpy() for p in (peaks, others))
        if len(mine) and len(theirs):
            near = KDTree(mine).sparse_distance_matrix(KDTree(theirs), 1.0 + 1e-6, output_type="coo_matrix")
            graph = csr_matrix((np.ones(near.nnz), (near.row, near.col)), shape=near.shape)  # a distance of 0 is an edge too
            hits += int((maximum_bipartite_matching(graph) >= 0).sum())
    return 2 * hits / int(sure(peaks).sum() + sure(others).sum())


def sure(peaks: Peaks) -> Tensor:
    return peaks.scores > THRESHOLD


def operations(picker: Picker, shape: Sequence[int]) -> int:
    """Return the operations of one pass over the whole volume, two per multiplication and addition."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        build_network("asymmetric_unet", classes=len(CZII_PARTICLES)).eval()(torch.empty(1, 1, *shape))
    return int(counter.get_total_flops())


def allocate(*, keep: bool) -> None:
    """Give freed memory back, and let the allocator keep what it frees from now on, as picking actors do, or behave as it does by default."""
    libc = ctypes.CDLL(None)
    gc.collect()
    libc.malloc_trim(0)
    if keep:
        keep_freed_memory()
    else:
        libc.mallopt(-4, 65536)
        libc.mallopt(-1, 128 * 1024)


def start_measuring(device: str) -> int:
    """Forget the highest memory so far, and return what is in use."""
    if not device.startswith("cuda"):
        return reset_peak()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def highest(device: str) -> int:
    """Return the highest memory since then, in bytes."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak()


if __name__ == "__main__":
    main()
