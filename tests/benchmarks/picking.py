"""One whole tomogram: tomoray against MONAI's sliding window, and against what the machine can do.

    python tests/benchmarks/picking.py [--checkpoint FOLDER] [--shape 184 630 630] [--repeats 3] [--views 1 4] [--device cpu] [--alone]

The contenders take turns, each in a process of its own that keeps what a picking actor keeps between tomograms, on a simulated tomogram,
with one trained network of full width (without a checkpoint it is trained first, up to half an hour, and kept in bench/picker):

    monai            sliding_window_inference as a user would write it: 90^3, overlap 0.25, Gaussian, float32;
                     then a cubic max-pool, or connected components, which are timed apart
    monai, lean      the same windows with our folded network, in the precision that `auto` picks in, and our peaks
    tomoray          predict and find_peaks with for_inference

Picks are compared, one to one within a voxel, with those of the whole volume in one pass in float32. Seconds are medians of the turns, of which
the first also pays for memory that the kernel has to clear. Memory is what a turn took at its peak beyond what the process held before its
first. On a GPU only tomoray runs, with all numbers of views. On a CPU start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as Ray starts
our workers; MONAI gains by that too.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
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
from tomoray.picking import pick, predict
from tomoray.preprocessing import z_score
from tomoray.simulate import Scene, simulate_tomogram
from tomoray.targets import pad_particles
from tomoray.thresholds import choose_thresholds
from tomoray.tiles import Window
from tomoray.tomogram import CZII_PARTICLES
from tomoray.training import autocast_dtype, fit

VOXEL = 10.012
WIDTHS = window_widths(CZII_PARTICLES, VOXEL)
FLOOR = 0.02
REFERENCE, WINDOWS, MAX_POOL, CC3D, LEAN = "whole volume, float32", "monai: windows", "monai: max-pool", "monai: cc3d", "monai, lean"
SCENE = Scene(shape_zyx=(64, 192, 192), crowding=4.0)

Turn = tuple[float, float, Peaks]  # seconds, gigabytes, what was found


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
    parser.add_argument("--alone", action="store_true", help="without MONAI")
    parser.add_argument("--steps", type=int, default=500, help="of training, where there is no checkpoint yet")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(options.device, options.threads), flush=True)
    if not (Path(options.checkpoint) / "card.json").exists():
        train(Path(options.checkpoint), options.steps, options.device)
    tomogram, _ = simulate_tomogram(Scene(shape_zyx=tuple(options.shape)), seed=1, name="TS_1")
    volume = z_score(tomogram.voxels[...]).astype(np.float16)  # as bulk picking hands it over
    report(compare(volume, options), options)


def train(folder: Path, steps: int, device: str) -> None:
    """Train the published network on simulated tomograms until it picks, and keep it."""
    torch.manual_seed(0)
    method = Supervised(build_network("asymmetric_unet", classes=len(CZII_PARTICLES)), CZII_PARTICLES, VOXEL).to(device)
    method.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.0)
    print(f"training a picker of full width, {steps} steps", flush=True)
    for epoch in fit(method, optimizer, {"labelled": list(crops(steps))}, epochs=10, steps_per_epoch=steps // 10, precision="auto", device=device):
        print(f"  loss {epoch.metrics['loss']:.4f}, {epoch.wall_s:.0f} s", flush=True)
    card = Card(CZII_PARTICLES, VOXEL, "dark", {"name": "asymmetric_unet"}, thresholds=thresholds(method.picker()))
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, card, method.picker())


def thresholds(picker: Picker, tomograms: int = 4) -> dict[str, float]:
    """Return the thresholds that serve a picker best on simulated tomograms that it was not trained on."""
    seen = [simulate_tomogram(SCENE, seed=(3, index), name=f"TS_{index}") for index in range(tomograms)]
    candidates = [pick(picker, z_score(t.voxels[...]), CZII_PARTICLES, t.voxel_angstrom, run=t.name) for t, _ in seen]
    return {name: choice.threshold for name, choice in choose_thresholds([truth for _, truth in seen], candidates).items()}


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


def compare(volume: np.ndarray, options: argparse.Namespace) -> dict[str, Result]:
    """Return what became of every contender; each has a process of its own, and they take turns."""
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "volume.npy"
        np.save(file, volume)
        mine = [report_name(views) for views in options.views]
        if options.device == "cpu":
            with contender(REFERENCE, file, options) as turn:  # once, and gone before the others come: it takes much memory
                note(turn(), results)
            mine = [*mine, *([] if options.alone else [WINDOWS, LEAN])]  # ours first: it looks how much memory is free, as an actor does
        with ExitStack() as stack:
            turns = [stack.enter_context(contender(name, file, options)) for name in mine]
            for _ in range(options.repeats):
                for turn in turns:
                    note(turn(), results)
    return results


@contextmanager
def contender(name: str, file: Path, options: argparse.Namespace) -> Iterator[Callable[[], dict[str, Turn]]]:
    """Start the process of a contender, and return what lets it take a turn."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, file, options), daemon=True)
    process.start()
    theirs.close()

    def turn() -> dict[str, Turn]:
        ours.send("go")
        answer: dict[str, Turn] = ours.recv()
        return answer

    assert ours.recv() == "ready"
    try:
        yield turn
    finally:
        ours.close()
        process.join()


def serve(connection: Connection, name: str, file: Path, options: argparse.Namespace) -> None:
    """Take a turn whenever told to, and send what became of it, until the connection closes."""
    torch.set_num_threads(options.threads)
    if name.startswith("tomoray") and options.device == "cpu":
        keep_freed_memory()  # as picking actors do
    picker, card = load_picker(options.checkpoint, device=options.device)
    limits = torch.tensor([card.thresholds[p.name] for p in CZII_PARTICLES], device=options.device)
    steps = works(name, picker, limits, np.load(file), options)
    connection.send("ready")
    with suppress(EOFError):
        while connection.recv():
            connection.send({step: measure(work, options.device) for step, work in steps.items()})


def works(name: str, picker: Picker, limits: Tensor, volume: np.ndarray, options: argparse.Namespace) -> dict[str, Callable[[], Peaks]]:
    """Return the steps of a contender's turn, by name; each picks the volume."""
    if name == REFERENCE:
        return {name: lambda: picks(predict(picker, volume.astype(np.float32), window=Window(budget_vox=volume.size)), limits)}
    lean = for_inference(picker, "auto")
    if name not in (WINDOWS, LEAN):
        window = Window(views=int(name.split()[1]), budget_vox=memory_budget(lean, 0.5))
        return {name: lambda: picks(predict(lean, volume, window=window), limits)}
    from monai.inferers import sliding_window_inference

    maps: list[Tensor] = []

    def windows(network: nn.Module) -> Tensor:
        values = torch.from_numpy(volume).to(next(network.parameters()).dtype)
        with torch.inference_mode():
            maps[:] = [sliding_window_inference(values[None, None], 90, 1, network, overlap=0.25, mode="gaussian")[0].float()]
        return maps[0]

    if name == LEAN:
        return {name: lambda: picks(windows(lean), limits)}
    return {
        WINDOWS: lambda: picks(windows(picker), limits),
        MAX_POOL: lambda: max_pool_picks(maps[0], limits),
        CC3D: lambda: component_picks(maps[0], limits),
    }


def measure(work: Callable[[], Peaks], device: str) -> Turn:
    """Return what a turn took and found."""
    before, answer = start_measuring(device), list[Peaks]()
    seconds = timed(lambda: answer.append(work()), device)
    gigabytes = (highest(device) - before) / 1e9
    return seconds, gigabytes, Peaks(*(getattr(answer[0], field.name).cpu() for field in fields(Peaks)))


def note(turns: Mapping[str, Turn], results: dict[str, Result]) -> None:
    """Add turns to the results, and say what they took."""
    for name, (seconds, gigabytes, peaks) in turns.items():
        result = results.setdefault(name, Result([], [], peaks))
        result.seconds.append(seconds)
        result.gigabytes.append(gigabytes)
        print(f"  {name}: {seconds:.2f} s, {gigabytes:.2f} GB", flush=True)


def report(results: dict[str, Result], options: argparse.Namespace) -> None:
    """Print medians, ratios, agreement, and the share of what the machine can do."""
    work = operations(options.shape)
    ceiling = convolution_rate(options.device, autocast_dtype("auto", options.device) or torch.float32)
    print(f"{work / 1e12:.2f} TFLOP in the whole volume once; ceiling of convolutions {ceiling / 1e9:.0f} GFLOP/s")
    reference = results.get(REFERENCE)
    print(f"{'':34} {'seconds':>8} {'GB':>6} {'picks':>6} {'F1 to whole float32':>20} {'share of ceiling':>17}")
    for name, result in results.items():
        seconds = statistics.median(result.seconds)
        agreement = f"{agree(result.peaks, reference.peaks):.4f}" if reference else "-"
        share = f"{work / seconds / ceiling:.2f}" if name not in (MAX_POOL, CC3D) else "-"
        print(f"{name:34} {seconds:8.2f} {max(result.gigabytes):6.2f} {len(result.peaks.scores):6} {agreement:>20} {share:>17}")
    if reference and WINDOWS in results:
        mine = statistics.median(results[report_name(options.views[0])].seconds)
        windows, pooled, cc3d, lean = (statistics.median(results[name].seconds) for name in (WINDOWS, MAX_POOL, CC3D, LEAN))
        print(
            f"times as fast as MONAI with max-pool {(windows + pooled) / mine:.1f}, with cc3d {(windows + cc3d) / mine:.1f}, lean {lean / mine:.1f}"
        )


def picks(maps: Tensor, limits: Tensor) -> Peaks:
    """Return the peaks as `pick` finds them that reach the threshold of their class."""
    peaks = find_peaks(maps, WIDTHS, floor=FLOOR, refine=True)
    good = peaks.scores >= limits[peaks.labels]
    return Peaks(*(getattr(peaks, field.name)[good] for field in fields(Peaks)))


def max_pool_picks(maps: Tensor, limits: Tensor) -> Peaks:
    """Return picks as most users find them: cells that equal the maximum of their cube."""
    found = []
    for label, (scores, width, limit) in enumerate(zip(maps, WIDTHS, limits, strict=True)):
        highest = F.max_pool3d(scores[None], width, stride=1, padding=width // 2)[0]
        cells = ((scores == highest) & (scores >= limit)).nonzero()
        found.append(Peaks(torch.full((len(cells),), label), cells, scores[tuple(cells.T)]))
    return Peaks(*(torch.cat([getattr(f, field.name) for f in found]) for field in fields(Peaks)))


def component_picks(maps: Tensor, limits: Tensor) -> Peaks:
    """Return the centroids of what hangs together above the threshold, class by class."""
    found = [find_components((scores >= limit).float()[None]) for scores, limit in zip(maps, limits, strict=True)]
    labels = [torch.full_like(f.labels, label) for label, f in enumerate(found)]
    return Peaks(torch.cat(labels), torch.cat([f.cells_zyx for f in found]), torch.cat([f.scores for f in found]))


def agree(peaks: Peaks, others: Peaks) -> float:
    """Return the F1 of picks against others, one to one within a voxel, over all classes."""
    hits = 0
    for label in range(len(CZII_PARTICLES)):
        mine, theirs = (p.positions_vox(2)[p.labels == label].numpy() for p in (peaks, others))
        if len(mine) and len(theirs):
            near = KDTree(mine).sparse_distance_matrix(KDTree(theirs), 1.0 + 1e-6, output_type="coo_matrix")
            graph = csr_matrix((np.ones(near.nnz), (near.row, near.col)), shape=near.shape)  # a distance of 0 is an edge too
            hits += int((maximum_bipartite_matching(graph) >= 0).sum())
    return 2 * hits / (len(peaks.scores) + len(others.scores))


def operations(shape: Sequence[int]) -> int:
    """Return the operations of one pass over the whole volume, two per multiplication and addition."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # with gradients: in slabs, some planes would count twice
        build_network("asymmetric_unet", classes=len(CZII_PARTICLES)).eval()(torch.empty(1, 1, *shape))
    return int(counter.get_total_flops())


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
