"""How large a tile may be: what a network needs per voxel, and what memory there is."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from tomoray.tiles import BUDGET_VOX

WARM_UP, PROBE = (32, 32, 32), (160, 160, 160)  # voxels; the first pass pays for what passes share, the second tells what a voxel needs
PART = 0.8  # of the memory there is; the rest is for the volume, its maps, and what an allocator cannot use

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@torch.inference_mode()
def memory_budget(picker: nn.Module, share: float = 1.0) -> int:
    """Return the voxels that a tile may have where a picker lies, if a share of the memory that is free there is ours.

    By trying with a small tile. Where a system does not tell what a process needs, it is `tiles.BUDGET_VOX`.
    """
    weights = next(picker.parameters())
    warm_up, probe = (torch.zeros(1, 1, *shape, dtype=weights.dtype, device=weights.device) for shape in (WARM_UP, PROBE))
    picker(warm_up)
    if _on_gpu(weights):
        torch.cuda.reset_peak_memory_stats(weights.device)
        before = torch.cuda.memory_allocated(weights.device)
        picker(probe)
        needed = torch.cuda.max_memory_allocated(weights.device) - before
        free, _ = torch.cuda.mem_get_info(weights.device)
    elif sys.platform == "linux":
        _give_back()
        before = reset_peak()
        picker(probe)
        needed, free = peak() - before, free_memory()
    else:
        return BUDGET_VOX
    return int(PART * share * free / max(needed, 1) * math.prod(PROBE))


def _on_gpu(weights: Tensor) -> bool:
    return weights.device.type == "cuda"


def reset_peak() -> int:
    """Forget the highest memory that this process ever held, and return what it holds, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _line("/proc/self/status", "VmRSS")


def peak() -> int:
    """Return the highest memory that this process held since the last `reset_peak`, in bytes (Linux)."""
    return _line("/proc/self/status", "VmHWM")


def free_memory() -> int:
    """Return the bytes that this machine, or the container that we are in, has left (Linux)."""
    free = _line("/proc/meminfo", "MemAvailable")
    for folder, limit, used in (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")):
        group = Path("/sys/fs/cgroup") / folder
        if (group / limit).exists() and (text := (group / limit).read_text().strip()).isdigit():
            free = min(free, int(text) - int((group / used).read_text()))
    return free


def _give_back() -> None:
    """Return to the kernel what the allocator keeps of freed memory: it would count as held before, and not as needed."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _line(path: str, field: str) -> int:
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, instead of having the kernel clear the same pages for every layer's answer.

    A third of the time of a pass over ten million voxels on a CPU, where glibc would map and unmap every large tensor; with seven times as
    many it gained nothing in one trial. Elsewhere nothing happens.
    For processes that do nothing but predict: what they needed once at most they hold until they end.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
