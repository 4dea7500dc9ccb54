"""How large a tile may be, by trying."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tomoray import memory
from tomoray.memory import PROBE, free_memory, keep_freed_memory, memory_budget, peak, reset_peak
from tomoray.networks import build_picker
from tomoray.tiles import BUDGET_VOX

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process needs")


class Copies(nn.Module):
    """A picker that holds so many float32 copies of what it sees."""

    stride = 1

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.tensor(float(count)))

    def forward(self, volume: Tensor) -> Tensor:
        return torch.stack([volume + i for i in range(int(self.count))]).amax(0)


@linux
def test_a_budget_follows_what_a_voxel_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the share forgotten; bytes for voxels; the whole process counted instead of what the pass added."""
    monkeypatch.setattr(memory, "free_memory", lambda: 10**10)
    few, many = memory_budget(Copies(5)), memory_budget(Copies(20))
    assert many == pytest.approx(0.8 * 10**10 / (4 * 40), rel=0.25)  # twenty copies and their stack
    assert few == pytest.approx(4 * many, rel=0.3)
    assert memory_budget(Copies(20), share=0.5) == pytest.approx(many / 2, rel=0.2)


@linux
def test_the_peak_is_that_since_the_reset() -> None:
    before = reset_peak()
    np.ones(50_000_000)
    assert peak() - before == pytest.approx(4e8, rel=0.1)
    reset_peak()
    assert peak() - before < 1e8
    assert 0 < free_memory() < 10**14


def test_a_tile_takes_no_more_than_our_share_of_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic, with a GPU's answers made up: 100 bytes per voxel, a gigabyte free."""

    used = iter([500, 500 + 100 * PROBE[0] ** 3])
    monkeypatch.setattr(memory, "_on_gpu", lambda weights: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(used))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(used))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    assert memory_budget(Copies(1), share=0.5) == 0.8 * 0.5 * 10**9 / 100


def test_where_a_system_tells_nothing_the_budget_is_a_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    picker = build_picker("asymmetric_unet", classes=2, width=2, blocks=(1,))
    assert memory_budget(picker) == BUDGET_VOX
    keep_freed_memory()
    assert torch.ones(3, 4).sum() == 12


def test_memory_that_is_kept_is_memory_all_the_same() -> None:
    keep_freed_memory()
    assert torch.ones(3, 4).sum() == 12
