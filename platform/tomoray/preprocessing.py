"""From the values of a file to what a network sees: one voxel size, one contrast, mean 0 and standard deviation 1."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tomoray.augment import blur
from tomoray.tomogram import Contrast, FormatError, Tomogram

log = logging.getLogger(__name__)

SAME_VOXEL = 0.01  # voxel sizes that differ by less than one per cent count as equal


def prepare(
    tomogram: Tomogram, *, contrast: Contrast, to_voxel_angstrom: float, to_contrast: Contrast = "dark", clip_sd: float = 0.0
) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """Return the volume as a picker sees it, `(d, h, w)` float32, and its voxel size along z, y, x in angstrom.

    Reads the whole tomogram, resamples it where its voxel size differs from the picker's by more than one per cent, inverts it where its
    contrast differs, and z-scores it, with `clip_sd` by `clip_outliers`. The voxel size that comes back is that of the returned volume, so
    that `index * voxel_angstrom` is a position in the tomogram's own angstrom; both changes are said in the log.

    Raises
    ------
    FormatError
        If values are not finite, all equal, or voxels no cubes.
    """
    where = tomogram.uri or tomogram.name
    volume = clip_outliers(tomogram.read(), at_sd=clip_sd, where=where) if clip_sd else z_score(tomogram.read(), where=where)
    voxel = tomogram.voxel_size_angstrom
    if contrast != to_contrast:
        log.info("%s: particles are %s, the picker expects %s: inverted", tomogram.name, contrast, to_contrast)
        np.negative(volume, out=volume)
    if abs(voxel - to_voxel_angstrom) <= SAME_VOXEL * to_voxel_angstrom:
        return volume, tomogram.voxel_angstrom
    resampled = resample(volume, voxel / to_voxel_angstrom)
    log.info("%s: resampled from %.3f to %.3f angstrom, %s to %s voxels", tomogram.name, voxel, to_voxel_angstrom, volume.shape, resampled.shape)
    z, y, x = (float(v * n / m) for v, n, m in zip(tomogram.voxel_angstrom, volume.shape, resampled.shape, strict=True))
    return z_score(resampled, where=tomogram.name), (z, y, x)


def z_score(volume: NDArray[Any], *, where: str = "volume") -> NDArray[np.float32]:
    """Return the volume as float32 with mean 0 and standard deviation 1.

    Raises
    ------
    FormatError
        If a value is NaN or infinite, or all values are equal.
    """
    with np.errstate(invalid="ignore"):  # plus and minus infinity; said below
        mean = float(np.mean(volume, dtype=np.float64))
    if not np.isfinite(mean):
        bad = int((~np.isfinite(volume)).sum())
        raise FormatError(f"{where}: {bad} of {volume.size} values are NaN or infinite; all must be finite: reconstruct it again, or fill the gaps")
    deviations = volume - np.asarray(mean, dtype=np.float64 if volume.dtype == np.float64 else np.float32)  # CZII values are near 1e-5: no eps
    std = float(np.sqrt(np.mean(np.square(deviations, dtype=np.float64))))
    if not std > 0 or volume.min() == volume.max():  # the mean of equal numbers can be off by its last bit, and std above 0
        raise FormatError(f"{where}: all values are {mean:g}; a tomogram must vary: check the file")
    return np.asarray(deviations / std, dtype=np.float32)


def clip_outliers(volume: NDArray[Any], *, at_sd: float = 3.0, where: str = "volume") -> NDArray[np.float32]:
    """Return the volume as float32 with mean 0 and standard deviation 1 after values further than `at_sd` deviations were clipped to those.

    Gold and ice lose their weight (TomoPicker's normalisation). Since values are z-scored once more, what was clipped lies a little
    beyond `at_sd`.

    Raises
    ------
    FormatError
        As `z_score`.
    """
    return z_score(np.clip(z_score(volume, where=where), -at_sd, at_sd), where=where)


def resample(volume: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Return the volume with `factor` times as many voxels along each axis, its corners staying where they are.

    Linear interpolation; when shrinking, after a Gaussian blur that takes away what the coarser grid cannot hold.
    """
    size = [max(2, round(n * factor)) for n in volume.shape]
    grid = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    if factor < 1:
        grid = blur(grid[0], 0.5 * (1 / factor**2 - 1) ** 0.5)[None]
    return np.asarray(F.interpolate(grid, size=size, mode="trilinear", align_corners=False)[0, 0].numpy(), dtype=np.float32)
