"""The asymmetric 3-D U-Net of SemiETPicker: a residual encoder and a decoder that stops at half resolution.

Lin et al. 2025 (arXiv 2510.22454) describe "an asymmetric U-Net with a ResNet-34 backbone whose first 7x7x7 convolution is replaced
by three 3x3x3 convolutions" and an output stride of 2; widths and the shape of the decoder are our reconstruction. At full width it has
70,617,350 parameters and needs 45 GMAC for a 90^3 crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = 0.01  # share of cells that a fresh network believes to hold a particle; keeps the first steps from drowning in background
SLAB = 32  # planes of half resolution


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3^3 convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


def heatmap_head(inputs: int, classes: int) -> nn.Conv3d:
    """Return a 3^3 convolution to one logit per class that starts by believing in few particles."""
    head = nn.Conv3d(inputs, classes, 3, padding=1)
    nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]
    return head


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions and a parameter-free shortcut (He et al. 2016, type A: subsample, pad with zero channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm3d(outputs))
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else x[..., :: self.stride, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, 0, 0, self.new_channels))
        return F.relu(self.second(self.first(x)) + shortcut)


class Decoder(nn.Module):
    """Bring deep features to the size of a skip connection, join both, and mix them with two convolutions.

    What is joined takes more memory than all else of a pass. A network that only picks therefore joins and mixes it slab by slab.
    """

    def __init__(self, deep: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(deep, outputs, 1)
        self.mix = nn.Sequential(convolution(outputs + skip, outputs), convolution(outputs, outputs))

    def forward(self, deep: Tensor, skips: list[Tensor]) -> Tensor:
        """Return deep features mixed with the last of some skip connections, which is taken off the list: nobody need hold it meanwhile."""
        skip, narrow = skips.pop(), self.narrow(deep)
        picks_only = not (self.training or torch.is_grad_enabled())
        mixed = self._mix_slabs(narrow, skip) if picks_only and skip.shape[2] >= 2 * SLAB else self.mix[0](join(narrow, skip))
        del skip
        return self.mix[1](mixed)  # type: ignore[no-any-return]

    def _mix_slabs(self, narrow: Tensor, skip: Tensor) -> Tensor:
        """Return what the first convolution makes of all that is joined, a slab of `SLAB` planes at a time."""
        (batch, channels), depth = narrow.shape[:2], skip.shape[2]
        planes = torch.arange(narrow.shape[2], dtype=torch.float32, device=skip.device)
        source = F.interpolate(planes[None, None], size=depth, mode="nearest")[0, 0].long()  # which plane is raised to each
        mixed = torch.empty((batch, channels, *skip.shape[2:]), dtype=skip.dtype, device=skip.device, memory_format=_layout(skip))
        for start in range(0, depth, SLAB):
            low, high = max(0, start - 1), min(depth, start + SLAB + 1)  # a plane more on either side, as the convolution sees
            slab = self.mix[0](join(narrow.index_select(2, source[low:high]), skip[:, :, low:high]))
            mixed[:, :, start : start + SLAB] = slab[:, :, start - low :][:, :, :SLAB]
        return mixed


def _layout(values: Tensor) -> torch.memory_format:
    """Return how values lie in memory; those of a slab have gaps between one item of a batch and the next."""
    return torch.channels_last_3d if values.stride(1) == 1 else torch.contiguous_format


def join(narrow: Tensor, skip: Tensor) -> Tensor:
    """Return deep features at the size of a skip connection, and the skip behind them."""
    narrow = narrow.contiguous(memory_format=_layout(skip))  # which 1^3 convolutions do not keep, and all after them would copy
    # to the skip's own size: padding instead, as FlexibleUNet does, fails on sizes like 90 (45, 23, 12, 6, 3)
    return torch.cat([F.interpolate(narrow, size=skip.shape[2:], mode="nearest"), skip], dim=1)


class ResidualEncoder(nn.Module):
    """What networks with a residual encoder share: a stem that halves the volume, and stages that each halve it again.

    Parameters
    ----------
    width
        Channels of the stem and the first stage; each further stage doubles them. 64 is ResNet-34's.
    blocks
        Residual blocks per stage; (3, 4, 6, 3) is ResNet-34. Fewer stages make a shallower network.
    """

    stride = 2

    def __init__(self, width: int = 64, blocks: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"network width {width}: it must be an even number, since the stem works at half of it; 64 is the published one")
        self.stem = nn.Sequential(convolution(1, width // 2, stride=2), convolution(width // 2, width // 2), convolution(width // 2, width))
        self.stages = nn.ModuleList()
        self.channels = [width]  # of every feature map, shallow to deep
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            first = ResidualBlock(self.channels[-1], outputs, stride=1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(ResidualBlock(outputs, outputs) for _ in range(count - 1))))
            self.channels.append(outputs)

    def features(self, volume: Tensor) -> list[Tensor]:
        """Return the encoder's feature maps, from half resolution to the deepest."""
        maps = [self.stem(volume)]
        x = F.max_pool3d(maps[0], 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class AsymmetricUNet(ResidualEncoder):
    """Residual U-Net with output stride 2.

    Parameters
    ----------
    classes
        Number of output channels.
    width, blocks
        See `ResidualEncoder`; the defaults are the published network.
    """

    def __init__(self, classes: int, width: int = 64, blocks: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__(width, blocks)
        self.decoders = nn.ModuleList()
        *skips, deep = self.channels
        for skip in reversed(skips):
            outputs = skip if len(self.decoders) < len(skips) - 1 else width // 2
            self.decoders.append(Decoder(deep, skip, outputs))
            deep = outputs
        self.head = heatmap_head(deep, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits `(b, classes, d / 2, h / 2, w / 2)` (rounded up) of `(b, 1, d, h, w)`."""
        maps = self.features(volume)
        x = maps.pop()
        for decoder in self.decoders:
            x = decoder(x, maps)
        return self.head(x)  # type: ignore[no-any-return]
