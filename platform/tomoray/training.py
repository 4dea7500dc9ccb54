"""The training loop: a generator of epochs, the same on a laptop, in a test and on every worker of a cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tomoray.methods import Batch, Method

Precision = Literal["auto", "bf16", "float32"]


@dataclass(frozen=True)
class Epoch:
    """What happened in a fixed number of steps: mean of every metric, and how long it took.

    `wait_s` is the part of `wall_s` that the loop stood waiting for data.
    """

    index: int
    steps: int
    metrics: dict[str, float]
    wall_s: float
    wait_s: float


def fit(
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Mapping[str, Iterable[Mapping[str, Tensor]]],
    *,
    epochs: int,
    steps_per_epoch: int,
    start_epoch: int = 0,
    cosine: bool = True,
    seed: int = 0,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Iterator[Epoch]:
    """Yield an `Epoch` after every `steps_per_epoch` optimiser steps; whoever iterates decides what an epoch is worth.

    `method` is a `Method`, bare or wrapped by DistributedDataParallel. Every stream restarts when it runs out, so that shards of
    unequal length never leave one worker waiting for another. With `cosine` the learning rate falls from each group's `initial_lr` to zero
    over all epochs; without, it is left to whoever iterates, who may step a `plateau` between epochs. Each epoch draws its own random
    numbers from `seed`, so that a run which goes on at `start_epoch` draws what the unbroken run would have drawn; give every worker its
    own seed.

    Raises
    ------
    ValueError
        If a stream that the method needs is missing, or empty.
    FloatingPointError
        If the loss is no longer finite.
    """
    device = torch.device(device)
    inner = cast(Method, getattr(method, "module", method))
    streams = {name: _restart(name, loaders) for name in inner.streams}
    dtype = autocast_dtype(precision, device)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    method.train()
    for epoch in range(start_epoch, epochs):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        began, waited, history = time.perf_counter(), 0.0, list[Mapping[str, Tensor]]()
        for step in range(steps_per_epoch):
            progress = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
            asked = time.perf_counter()
            batch: Batch = {name: _to_device(next(stream), device) for name, stream in streams.items()}
            waited += time.perf_counter() - asked
            if cosine:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * progress))
            history.append(_step(method, optimizer, batch, progress, dtype))
            inner.after_step(progress)
        metrics = {key: float(torch.stack([step[key] for step in history]).mean()) for key in history[-1]}
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"epoch {epoch}: the loss is {metrics['loss']}; lower the learning rate, or train in float32")
        yield Epoch(epoch, steps_per_epoch, metrics, time.perf_counter() - began, waited)


def plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return a schedule that halves the learning rate, down to 1e-5, where five validations in a row were not better than the best before.

    As TomoPicker's code has it. Step it with the value of each validation, the same on every worker; its state belongs to a checkpoint.
    """
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=4, min_lr=1e-5)


def autocast_dtype(precision: Precision, device: torch.device | str) -> torch.dtype | None:
    """Return the type that convolutions compute in, or None for float32; `auto` takes bf16 where the processor has it."""
    kind = torch.device(device).type
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if kind == "cuda" else _cpu_has_bf16()
        precision = "bf16" if has_bf16 else "float32"
    return torch.bfloat16 if precision == "bf16" else None


def _cpu_has_bf16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None) or getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def _step(method: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, progress: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
    kind = next(iter(next(iter(batch.values())).values())).device.type
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        loss, metrics = method(batch, progress)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach(), **metrics}


def _restart(name: str, loaders: Mapping[str, Iterable[Any]]) -> Iterator[Any]:
    if name not in loaders:
        raise ValueError(f"stream {name!r} is missing; the method needs it, the loaders are: {', '.join(loaders) or 'none'}")
    while True:
        empty = True
        for batch in loaders[name]:
            empty = False
            yield batch
        if empty:
            raise ValueError(f"stream {name!r} is empty; it must hold at least one batch: check the splits in the catalogue")


def _to_device(fields: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    moved = {key: value.to(device, non_blocking=True) for key, value in fields.items()}
    moved["volume"] = moved["volume"].float()  # crops travel as float16
    return moved
