"""How long candidates take to find in score maps: local peaks beside max pooling and components, greedy picks beside the plain search.

    python tests/benchmarks/find_peaks.py [--repeats 5] [--threads 1] [--device cpu]
    python tests/benchmarks/find_peaks.py --greedy [--shape 500 928 960] [--particles 5000] [--radius 9]

The maps are like those of a trained network on a CZII tomogram: 6 x 92 x 315 x 315 cells, 1,200 Gaussians of the widths of the six
targets, a haze below the floor, and smooth clutter of which 0.3 % of the cells lie above it. The finders take turns in one process;
medians of wall and processor time are printed. With `--greedy`, one map of noise and 5,000 blobs is picked until as many are found,
and the plain search, which reads the whole map for each pick, is extrapolated from its first 20.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tomoray.peaks import Peaks, find_components, find_greedy, find_peaks, window_widths
from tomoray.tomogram import CZII_PARTICLES

FLOOR = 0.02
STRIDE = 2
VOXEL_ANGSTROM = 10.012
CLUTTER = 0.003  # share of the cells above the floor
CLUTTER_SIGMA = 1.5  # cells: a network that learnt Gaussians answers no sharper than the narrowest of them
PLAIN_PICKS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("threads", 1), ("particles", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--shape", type=int, nargs=3)
    parser.add_argument("--radius", type=float, default=9.0, help="of greedy picking, in cells")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rng = np.random.default_rng(0)
    print(f"{options.threads} threads, {device}")
    if options.greedy:
        big_map(options.shape or (500, 928, 960), options.particles or 5000, options.radius, device, rng)
    else:
        small_maps(options.shape or (92, 315, 315), options.particles or 1200, options.repeats, device, rng)


def small_maps(shape: Sequence[int], particles: int, repeats: int, device: torch.device, rng: np.random.Generator) -> None:
    widths = window_widths(CZII_PARTICLES, VOXEL_ANGSTROM, STRIDE)
    sigmas = [p.radius_angstrom / 2 / (VOXEL_ANGSTROM * STRIDE) for p in CZII_PARTICLES]
    scores = torch.stack([network_like(shape, particles // len(sigmas), sigma, rng) for sigma in sigmas]).to(device)
    above = float((scores > FLOOR).float().mean())
    finders: dict[str, Callable[[], object]] = {
        "find_peaks": lambda: find_peaks(scores, widths, floor=FLOOR),
        "find_peaks, refined": lambda: find_peaks(scores, widths, floor=FLOOR, refine=True),
        "max_pool3d": lambda: pooled_peaks(scores, widths),
        "find_components (cc3d)": lambda: find_components(scores, floor=FLOOR),
    }
    print(f"{' x '.join(map(str, scores.shape))} cells, {particles} particles, {100 * above:.2f} % of the cells above the floor")
    wall, processor = interleaved(finders, repeats, device)
    for name in finders:
        found = finders[name]()
        count = len(found.scores if isinstance(found, Peaks) else found)  # type: ignore[arg-type]
        print(f"{name:24s} {wall[name]:8.3f} s, processor {processor[name]:8.3f} s, {count} found")


def big_map(shape: Sequence[int], particles: int, radius: float, device: torch.device, rng: np.random.Generator) -> None:
    scores = noisy_blobs(shape, particles, radius / 2, rng).to(device)[None]
    print(f"{' x '.join(map(str, shape))} cells, {particles} picks, radius {radius} cells, map {scores.nbytes / 2**20:.0f} MiB")
    before = peak_memory(device)
    wall, processor, found = once(lambda: find_greedy(scores, [radius], floor=-np.inf, limit=particles), device)
    print(f"find_greedy {wall:.2f} s, processor {processor:.2f} s, {peak_memory(device) - before:.0f} MiB beside the map, {len(found.scores)} picks")
    wall, processor, plain = once(lambda: plain_search(scores[0], radius, PLAIN_PICKS), device)
    assert plain == found.cells_zyx[:PLAIN_PICKS].tolist()
    factor = particles / PLAIN_PICKS
    print(f"plain search {wall * factor:.0f} s, processor {processor * factor:.0f} s: from its first {PLAIN_PICKS} picks, which are the same")


def network_like(shape: Sequence[int], particles: int, sigma: float, rng: np.random.Generator) -> Tensor:
    scores = np.clip(rng.normal(0.005, 0.003, shape), 0, 0.99 * FLOOR).astype(np.float32)
    smooth = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), CLUTTER_SIGMA)
    threshold = np.quantile(smooth, 1 - CLUTTER)
    clutter = smooth > threshold
    scores[clutter] = FLOOR + 0.2 * (smooth[clutter] - threshold) / np.ptp(smooth[clutter])
    return torch.from_numpy(with_blobs(scores, particles, sigma, rng))


def noisy_blobs(shape: Sequence[int], particles: int, sigma: float, rng: np.random.Generator) -> Tensor:
    scores = rng.standard_normal(shape, dtype=np.float32)
    scores *= 0.1  # in place: a copy here would hide what picking takes
    return torch.from_numpy(with_blobs(scores, particles, sigma, rng))


def with_blobs(scores: np.ndarray, particles: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the map, never below the Gaussians put into it, of heights 0.2 to 1, at places within cells."""
    reach = int(3 * sigma) + 1
    centres = rng.uniform(reach, np.array(scores.shape) - reach - 1, (particles, 3))
    for centre, height in zip(centres, rng.uniform(0.2, 1, particles), strict=True):
        start = centre.astype(int) - reach
        z, y, x = (np.exp(-((s + np.arange(2 * reach + 1) - c) ** 2) / (2 * sigma**2)) for s, c in zip(start, centre, strict=True))
        window = scores[tuple(slice(s, s + 2 * reach + 1) for s in start)]
        np.maximum(window, (height * z[:, None, None] * y[:, None] * x).astype(np.float32), out=window)
    return scores


def pooled_peaks(scores: Tensor, widths: Sequence[int]) -> Tensor:
    pooled = [F.max_pool3d(map_[None], width, stride=1, padding=width // 2)[0] for map_, width in zip(scores, widths, strict=True)]
    return torch.cat([((map_ == top) & (map_ > FLOOR)).nonzero() for map_, top in zip(scores, pooled, strict=True)])


def plain_search(scores: Tensor, radius: float, picks: int) -> list[list[int]]:
    left = scores.clone()
    axis = torch.arange(-int(radius), int(radius) + 1, device=left.device)
    offsets = torch.cartesian_prod(axis, axis, axis)
    ball = offsets[(offsets**2).sum(1) <= radius**2]
    shape = torch.tensor(left.shape, device=left.device)
    found = []
    for _ in range(picks):
        cell = torch.stack(torch.unravel_index(left.argmax(), left.shape))
        near = cell + ball
        left[tuple(near[((near >= 0) & (near < shape)).all(1)].T)] = -torch.inf
        found.append(cell.tolist())
    return found


def interleaved(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for run in range(repeats + 1):
        for name, work in works.items():
            wall, processor, _ = once(work, device)
            if run:  # the first warms up
                times[name].append((wall, processor))
    medians = {name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in times.items()}
    return {name: wall for name, (wall, _) in medians.items()}, {name: processor for name, (_, processor) in medians.items()}


def once(work: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - processor, result


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device) -> float:
    """Return MiB: of the device's memory where the map lies there, else the most this process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
