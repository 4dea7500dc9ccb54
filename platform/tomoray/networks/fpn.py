"""A feature pyramid on the asymmetric U-Net's encoder: the light backbone of Lin et al. 2025 (arXiv 2510.22454, table 4).

Lin et al. 2017 (arXiv 1612.03144). Of the pyramid only the finest level is used. The paper gives no widths: with as many channels as the
first stage, a 90^3 crop costs 38 GMAC, 0.85 of the U-Net's 45, near the ratio of the published times (0.58 s to 0.66 s).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tomoray.networks.unet import ResidualEncoder, convolution, heatmap_head


class FPN(ResidualEncoder):
    """Feature pyramid network with output stride 2.

    Parameters
    ----------
    classes
        Number of output channels.
    width, blocks
        See `ResidualEncoder`; every level of the pyramid has `width` channels.
    """

    def __init__(self, classes: int, width: int = 64, blocks: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__(width, blocks)
        self.laterals = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in self.channels)
        self.smooth = convolution(width, width)
        self.head = heatmap_head(width, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits `(b, classes, d / 2, h / 2, w / 2)` (rounded up) of `(b, 1, d, h, w)`."""
        *levels, x = (lateral(features) for lateral, features in zip(self.laterals, self.features(volume), strict=True))
        for level in reversed(levels):
            x = level + F.interpolate(x, size=level.shape[2:], mode="nearest")
        return self.head(self.smooth(x))  # type: ignore[no-any-return]
