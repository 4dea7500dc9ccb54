"""What this machine can do at best: convolutions, memory and disk.

    python tests/benchmarks/ceilings.py [--device cpu] [--threads 2] [--folder .]

Convolutions: the best of 3^3 convolutions of the sizes of our network, channels last, as operations (two per multiplication and addition)
per second, in float32 and in the precision that `auto` picks in. Memory: copying a gigabyte. Disk: reading a file that the kernel was told to forget.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tomoray.training import autocast_dtype

CONVOLUTIONS = ((32, 64), (64, 32), (64, 64), (128, 24), (256, 12))  # channels, edge of the cube


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(options.device, options.threads))
    fastest = autocast_dtype("auto", options.device) or torch.float32  # what a processor only imitates takes minutes
    for dtype in dict.fromkeys((fastest, torch.float32)):
        print(f"convolution, {str(dtype).removeprefix('torch.')}: {convolution_rate(options.device, dtype) / 1e9:.0f} GFLOP/s")
    print(f"memory: {copy_rate(options.device) / 1e9:.1f} GB/s copied")
    print(f"disk: {disk_rate(Path(options.folder)) / 1e9:.2f} GB/s read")


def machine(device: str, threads: int) -> str:
    """Return the machine in words."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{threads} threads on {os.cpu_count()} cores of {model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def convolution_rate(device: str, dtype: torch.dtype) -> float:
    """Return the operations per second of the fastest of a few convolutions."""
    rates = []
    with torch.inference_mode():
        for channels, edge in CONVOLUTIONS:
            layer = nn.Conv3d(channels, channels, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            volume = torch.randn(1, channels, edge, edge, edge, device=device, dtype=dtype).to(memory_format=torch.channels_last_3d)
            rates.append(2 * 27 * channels**2 * edge**3 / _best(lambda layer=layer, volume=volume: layer(volume), device))
    return max(rates)


def copy_rate(device: str) -> float:
    """Return the bytes per second that copying a gigabyte moves, read and written."""
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def disk_rate(folder: Path, size: int = 2**28) -> float:
    """Return the bytes per second of reading a new file of a folder from its start, after the kernel was asked to drop it."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        Path(file.name).read_bytes()
        return size / (time.perf_counter() - began)


def _best(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    return min(timed(work, device) for _ in range(repeats))


def timed(work: Callable[[], object], device: str) -> float:
    """Return the seconds that some work takes, to the end of what it starts on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
