"""DeepFinder's U-Net: plain convolutions at full resolution, for segmentation.

Moebel et al. 2021 (Nature Methods, doi 10.1038/s41592-021-01275-4), with the widths of its released code: 903,060 parameters for three
classes and background, 193 kMAC per voxel. Its published picking is mean shift; connected components are the sturdier choice where labels
are few (SaSi, table 1).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoray.networks.padding import crop_to_volume, pad_to_multiple


def convolutions(*widths: int) -> nn.Sequential:
    """Return 3^3 convolutions with ReLU from each width to the next."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv3d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Raise(nn.Module):
    """Double the size of a map by repeating cells, then mix them with a 2^3 convolution and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(width, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.relu(self.mix(F.pad(doubled, (0, 1, 0, 1, 0, 1))))  # Keras's "same": the cell that is missing is added behind


class DeepFinder(nn.Module):
    """DeepFinder's U-Net, with output stride 1 and without normalisation.

    Parameters
    ----------
    classes
        Number of output channels, for a softmax with the background.
    """

    stride = 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fine = convolutions(1, 32, 32)
        self.middle = convolutions(32, 48, 48)
        self.deep = convolutions(48, 64, 64, 64, 64)
        self.raise_to_middle = Raise(64)
        self.join_middle = convolutions(64 + 48, 48, 48)
        self.raise_to_fine = Raise(48)
        self.join_fine = convolutions(48 + 32, 32, 32)
        self.head = nn.Conv3d(32, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):  # as in Keras: torch's own start fades away over a dozen layers without normalisation
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits `(b, classes, d, h, w)` of `(b, 1, d, h, w)`."""
        fine = self.fine(pad_to_multiple(volume, 4))
        middle = self.middle(F.max_pool3d(fine, 2))
        x = self.deep(F.max_pool3d(middle, 2))
        x = self.join_middle(torch.cat([self.raise_to_middle(x), middle], dim=1))
        x = self.join_fine(torch.cat([self.raise_to_fine(x), fine], dim=1))
        return crop_to_volume(self.head(x), volume.shape[2:], self.stride)
