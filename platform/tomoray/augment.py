"""Augmentations of batches, on the device that holds them.

Geometric ones move volume and target together; intensity ones touch the volume alone. Volumes are `(b, 1, d, h, w)` with mean 0 and
standard deviation 1, targets `(b, classes, d / stride, ...)`. Each crop draws its own numbers from torch's default generator, whose
state a checkpoint keeps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_flips_and_turns(volume: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, each crop mirrored along a random set of axes and turned by a random multiple of 90 degrees about z.

    Only turns about the beam axis keep a tomogram's missing wedge along z. Non-square crops are turned by 0 or 180 degrees. Crops must
    have even sizes, or mirrored targets are half a cell off.
    """
    turns_of = 4 if volume.shape[-1] == volume.shape[-2] else 2
    flips = (torch.rand(len(volume), 3) < 0.5).tolist()
    turns = (torch.randint(turns_of, (len(volume),)) * (4 // turns_of)).tolist()
    volumes, targets = [], []
    for crop, wanted, flip, turn in zip(volume, target, flips, turns, strict=True):
        axes = [axis for axis, chosen in zip((1, 2, 3), flip, strict=True) if chosen]
        volumes.append(torch.rot90(crop.flip(axes), turn, (2, 3)))
        targets.append(torch.rot90(wanted.flip(axes), turn, (2, 3)))
    return torch.stack(volumes), torch.stack(targets)


def random_intensity(volume: Tensor, *, strength: float = 1.0) -> Tensor:
    """Return the volume with random contrast, brightness, gamma, blur and noise; `strength` 0 changes nothing.

    Sizes at strength 1: scale and shift of up to 0.2 (p 0.5 each), gamma 0.8 to 1.25 (p 0.3), Gaussian blur of 0.25 to 1 voxel
    (p 0.2), noise of standard deviation 0.1 (p 0.5). The paper names MONAI's intensity augmentations without sizes; these are ours.
    """
    if strength == 0:
        return volume
    chosen = torch.rand(5, len(volume)) < torch.tensor([[0.5], [0.5], [0.3], [0.2], [0.5]])
    size = torch.rand(4, len(volume))  # where in its range each drawn number lies
    centred = (2 * size - 1) * strength
    scale = torch.where(chosen[0], 1 + 0.2 * centred[0], 1.0)
    shift = torch.where(chosen[1], 0.2 * centred[1], 0.0)
    gamma = torch.where(chosen[2], torch.exp(centred[2] * math.log(1.25)), 1.0)
    sigma = torch.where(chosen[3], (0.25 + 0.75 * size[3]) * strength, 0.0)
    noise = torch.where(chosen[4], 0.1 * strength, 0.0)
    changed = []
    for crop, (a, b, g, s, n) in zip(volume, torch.stack([scale, shift, gamma, sigma, noise], dim=1).tolist(), strict=True):
        seen = blur(change_gamma(crop * a + b, g), s)
        changed.append(seen + n * torch.randn_like(seen) if n else seen)
    return torch.stack(changed)


def mixup(volume: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, each crop blended with another of the batch, its target with the other's in the same share.

    The shares are drawn evenly from [0, 1], which is Beta(1, 1), and the partners are a permutation of the batch (Zhang et al. 2018,
    arXiv 1710.09412). A batch of one stays as it is.
    """
    share = _per_crop(torch.rand(len(volume)), volume)
    partner = torch.randperm(len(volume))
    return torch.lerp(volume[partner], volume, share), torch.lerp(target[partner], target, share.to(target))


def drop_blocks(volume: Tensor, seed_probability: float, *, block_vox: int = 3) -> Tensor:
    """Return the volume with small cubes set to 0, the mean of a normalised tomogram.

    SemiETPicker's CryoET-DropBlock (Lin et al. 2025, section 2.4): each voxel is a seed with `seed_probability`, each seed takes the cube of
    `block_vox` around it, in all channels. Inside a crop a share of `1 - (1 - p)^(block^3)` is dropped: 0.30 for p = 0.0131. A block
    is smaller than a particle, so it hides parts where cutting out a region hides the whole. What stays is not rescaled, since this is
    the input and not a feature map. The paper pools with a stride of "half the kernel"; only 3 // 2 = 1 keeps the shape.
    """
    if seed_probability == 0:
        return volume
    dropped = torch.rand_like(volume[:, :1]) < seed_probability
    for axis in (2, 3, 4):  # from seeds to rods to slabs to cubes; max_pool3d does the same ten times slower on a CPU
        seeds, dropped = dropped, dropped.clone()
        for step in range(1, block_vox // 2 + 1):
            rest = seeds.shape[axis] - step
            dropped.narrow(axis, step, rest).logical_or_(seeds.narrow(axis, 0, rest))
            dropped.narrow(axis, 0, rest).logical_or_(seeds.narrow(axis, step, rest))
    return volume.masked_fill(dropped, 0.0)


def change_gamma(crop: Tensor, gamma: float) -> Tensor:
    """Return the crop with its range kept and the values in between raised to the power `gamma`."""
    if gamma == 1:
        return crop
    low, high = crop.amin(), crop.amax()
    span = (high - low).clamp_min(1e-7)
    return ((crop - low) / span).pow(gamma) * span + low


def blur(crop: Tensor, sigma_vox: float) -> Tensor:
    """Return a crop `(1, d, h, w)` smoothed by a Gaussian of `sigma_vox` voxels; 0 changes nothing."""
    if sigma_vox <= 0:
        return crop
    reach = blur_reach(sigma_vox)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=crop.device, dtype=crop.dtype) ** 2) / (2 * sigma_vox**2))
    weights = weights / weights.sum()
    smooth = crop[None]
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = len(weights)
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
        smooth = F.conv3d(F.pad(smooth, padding, mode="replicate"), weights.reshape(1, 1, *size))
    return smooth[0]


def blur_reach(sigma_vox: float) -> int:
    """Return how many voxels away `blur` looks."""
    return max(1, round(3 * sigma_vox))


def _per_crop(values: Tensor, volume: Tensor) -> Tensor:
    return values.to(volume).reshape(-1, 1, 1, 1, 1)
