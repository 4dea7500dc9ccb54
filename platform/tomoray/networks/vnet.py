"""V-Net, as MONAI has it: the other backbone that Lin et al. 2025 (arXiv 2510.22454) train with the same loss and peaks.

Milletari et al. 2016 (arXiv 1606.04797). The paper gives no settings; these are MONAI's, with 45.6 million parameters and 323 GMAC for
a 96^3 crop, seven times the asymmetric U-Net's.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from tomoray.networks.padding import crop_to_volume, pad_to_multiple
from tomoray.networks.unet import PRIOR


class VNet(nn.Module):
    """V-Net with output stride 2.

    V-Net answers at every voxel; the mean over each 2^3 voxels is its answer here. Since its last layer is a 1^3 convolution, this
    equals pooling the features before it: no weight is added, and none is changed.

    Parameters
    ----------
    classes
        Number of output channels.
    """

    stride = 2

    def __init__(self, classes: int) -> None:
        super().__init__()
        from monai.networks.nets import VNet as MonaiVNet  # here, since importing monai takes seconds

        self.body = MonaiVNet(spatial_dims=3, in_channels=1, out_channels=classes)
        nn.init.constant_(self.body.out_tr.conv2.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits `(b, classes, d / 2, h / 2, w / 2)` (rounded up) of `(b, 1, d, h, w)`."""
        logits = F.avg_pool3d(self.body(pad_to_multiple(volume, 16)), self.stride)
        return crop_to_volume(logits, volume.shape[2:], self.stride)
