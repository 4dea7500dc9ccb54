"""How much a co-training step costs beyond the bare sum of its parts.

    python tests/benchmarks/co_training_step.py [--width 16] [--patch 64] [--batch 4] [--repeats 7]

The parts: the student's forward and backward pass on labelled and on unlabelled crops, and the teacher's forward pass on every
view. The whole: one step of `training.fit` with `SemiETPicker`, which adds targets, augmentation, DropBlock, losses, optimiser and
the moving teacher. Both are timed in turn in one process; medians and their ratio are printed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from tomoray.methods import SemiETPicker, Supervised
from tomoray.networks import build_network
from tomoray.tomogram import CZII_PARTICLES
from tomoray.training import autocast_dtype, fit

VOXEL_ANGSTROM = 10.012
PARTICLES_IN_CROP = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("patch", 64), ("batch", 4), ("repeats", 7), ("threads", 1), ("views", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = build_network("asymmetric_unet", classes=6, width=options.width, blocks=(1, 1, 1, 1) if options.width < 64 else (3, 4, 6, 3))
    student = Supervised(network, CZII_PARTICLES, VOXEL_ANGSTROM)
    method = SemiETPicker(student, CZII_PARTICLES, VOXEL_ANGSTROM, views=options.views)
    method = method.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    bare = copy.deepcopy(network)
    dtype = autocast_dtype("auto", device)
    volume = torch.randn(options.batch, 1, *(options.patch,) * 3, device=device)
    particles = torch.full((options.batch, 256, 4), -1.0, device=device)
    particles[:, :PARTICLES_IN_CROP] = torch.rand(options.batch, PARTICLES_IN_CROP, 4, device=device) * options.patch
    particles[:, :PARTICLES_IN_CROP, 0] = torch.randint(6, (options.batch, PARTICLES_IN_CROP), device=device).float()
    fields = {"volume": volume, "particles": particles}
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)

    def parts() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            with torch.no_grad():
                for _ in range(options.views):
                    method.teacher(volume)
            loss = bare(volume).float().mean() + bare(volume).float().mean()
        bare.zero_grad(set_to_none=True)
        loss.backward()

    def whole() -> None:
        loaders = {"labelled": [fields], "unlabelled": [fields]}
        next(fit(method, optimizer, loaders, epochs=1, steps_per_epoch=1, precision="auto", device=device))

    times: dict[str, list[float]] = {"parts": [], "whole": []}
    for run in range(options.repeats + 1):
        for name, work in (("parts", parts), ("whole", whole)):
            seconds = _timed(work, device)
            if run:  # the first warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    what = f"{options.batch} + {options.batch} crops of {options.patch}^3, width {options.width}, {options.views} views"
    print(f"{what}, {options.threads} threads, {dtype or torch.float32}")
    print(f"parts {medians['parts']:.3f} s, whole {medians['whole']:.3f} s, ratio {medians['whole'] / medians['parts']:.3f}")


def _timed(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
