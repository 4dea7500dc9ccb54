"""TomoPicker's residual U-Net, with one logit per class in every voxel.

Uddin et al. 2024 (bioRxiv 2024.11.04.620735) call it MultiRes-UNet; in their code it is a plain residual U-Net. For one class it has 10,944,225
parameters with four levels, as for sub-volumes of 32 voxels, and 2,650,081 with three, as for 16 or 24.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoray.networks.padding import crop_to_volume, pad_to_multiple
from tomoray.networks.unet import PRIOR


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3^3 convolution with batch norm; the published size counts its bias, though the norm takes it away again."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.BatchNorm3d(outputs))


class Block(nn.Module):
    """Three convolutions, of which the last two correct the first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.third = convolution(inputs, outputs), convolution(outputs, outputs), convolution(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        return F.relu(self.third(F.relu(self.second(first))) + first)


class ResUNet(nn.Module):
    """Residual U-Net with output stride 1.

    Parameters
    ----------
    classes
        Number of output channels.
    width, levels
        Channels at full resolution, which double at each further level, and the number of levels; 32 and 4, or 3, are the published network.
    """

    stride = 1

    def __init__(self, classes: int, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(Block(inputs, outputs) for inputs, outputs in pairwise([1, *channels]))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for deep, shallow in pairwise(reversed(channels)):
            self.up.append(nn.Sequential(nn.ConvTranspose3d(deep, shallow, 4, stride=2, padding=1), nn.BatchNorm3d(shallow), nn.ReLU(inplace=True)))
            self.join.append(Block(2 * shallow, shallow))
        self.head = nn.Conv3d(width, classes, 1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits `(b, classes, d, h, w)` of `(b, 1, d, h, w)`."""
        x = self.down[0](pad_to_multiple(volume, 2 ** len(self.up)))
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(F.max_pool3d(x, 2))
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        return crop_to_volume(self.head(x), volume.shape[2:], self.stride)
