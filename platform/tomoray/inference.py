"""A picker made ready to pick: with fewer operations, and in a precision that can be trusted."""

from __future__ import annotations

import copy
import logging
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tomoray.training import autocast_dtype

log = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "fp16", "float32"]

LEAST_AGREEMENT = 0.98  # with the picks of float32; trained networks reach 0.99 and more


def for_inference(picker: nn.Module, precision: Precision = "float32") -> nn.Module:
    """Return a copy of a picker in eval mode, its batch norms folded into the convolutions before them, its weights in a precision.

    Batch norms that follow no convolution directly stay as they are. Channels come last in memory, as oneDNN and cuDNN like it.
    """
    device = next(picker.parameters()).device
    dtype = torch.float16 if precision == "fp16" else autocast_dtype(precision, device)
    lean = copy.deepcopy(picker).requires_grad_(False).eval()
    _fold_batch_norm(lean)
    lean = lean.to(dtype or torch.float32)
    return lean.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def _fold_batch_norm(module: nn.Module) -> None:
    for child in module.children():
        _fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for i in range(len(module) - 1):
            convolution, norm = module[i], module[i + 1]
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                module[i], module[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def trusted(precision: Precision, agreement: float) -> Precision:
    """Return the precision to pick in: where `auto` is asked for, only one whose picks agree with those of float32 (see `checkpoint.Card`)."""
    if precision != "auto" or agreement >= LEAST_AGREEMENT:
        return precision
    log.warning("picks of lower precision agree with those of float32 by %.3f only, less than %.2f: picking in float32", agreement, LEAST_AGREEMENT)
    return "float32"
