"""From the values of a file to what a network sees: one voxel size, one contrast, mean 0 and standard deviation 1."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tomoray.augment import blur, blur_reach
from tomoray.tomogram import Box, Contrast, FormatError, Tomogram, Triple

log = logging.getLogger(__name__)

Moments = tuple[float, float]  # mean and standard deviation

SAME_VOXEL = 0.01  # voxel sizes that differ by less than one per cent count as equal


@dataclass(frozen=True)
class Preparation:
    """What one tomogram is, and what a picker wants it to be."""

    contrast: Contrast
    to_voxel_angstrom: float
    to_contrast: Contrast = "dark"
    clip_sd: float = 0.0

    def factor(self, tomogram: Tomogram) -> float:
        """Return by how much the number of voxels grows along each axis; 1 where voxel sizes differ by less than one per cent."""
        factor = tomogram.voxel_size_angstrom / self.to_voxel_angstrom
        return 1.0 if abs(factor - 1) <= SAME_VOXEL else factor

    def shape(self, tomogram: Tomogram) -> tuple[int, int, int]:
        """Return the shape of the prepared volume."""
        factor = self.factor(tomogram)
        d, h, w = tomogram.shape if factor == 1 else resampled_shape(tomogram.shape, factor)
        return d, h, w

    def voxel_angstrom(self, tomogram: Tomogram) -> Triple:
        """Return the voxel size of the prepared volume along z, y, x, so that `index * voxel_angstrom` is a position in the tomogram."""
        if self.factor(tomogram) == 1:
            return tomogram.voxel_angstrom
        z, y, x = (float(v * n / m) for v, n, m in zip(tomogram.voxel_angstrom, tomogram.shape, self.shape(tomogram), strict=True))
        return z, y, x


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation by which a tomogram is z-scored: of its values, and of what clipping and then resampling made of them."""

    values: Moments
    clipped: Moments | None = None
    resampled: Moments | None = None


def prepare(
    tomogram: Tomogram, *, contrast: Contrast, to_voxel_angstrom: float, to_contrast: Contrast = "dark", clip_sd: float = 0.0
) -> tuple[NDArray[np.float32], Triple]:
    """Return the volume as a picker sees it, `(d, h, w)` float32, and its voxel size along z, y, x in angstrom.

    Reads the whole tomogram, inverts it where its contrast differs, resamples it where its voxel size differs from the picker's by more
    than one per cent, and z-scores it, with `clip_sd` by `clip_outliers`. The voxel size that comes back is that of the returned volume, so
    that `index * voxel_angstrom` is a position in the tomogram's own angstrom; both changes are said in the log.

    Raises
    ------
    FormatError
        If values are not finite, all equal, or voxels no cubes.
    """
    wanted = Preparation(contrast, to_voxel_angstrom, to_contrast, clip_sd)
    return prepare_whole(tomogram, wanted)[0], wanted.voxel_angstrom(tomogram)


def prepare_whole(tomogram: Tomogram, wanted: Preparation) -> tuple[NDArray[np.float32], Scale]:
    """Return the volume as `prepare` does, and the scale by which `prepare_box` gives the same values of any part of it."""
    where = tomogram.uri or tomogram.name
    factor = wanted.factor(tomogram)
    volume, values = _z_scored(tomogram.read(), where)
    clipped = resampled = None
    if wanted.clip_sd:
        volume, clipped = _z_scored(np.clip(volume, -wanted.clip_sd, wanted.clip_sd), where)
    if wanted.contrast != wanted.to_contrast:
        log.info("%s: particles are %s, the picker expects %s: inverted", tomogram.name, wanted.contrast, wanted.to_contrast)
        np.negative(volume, out=volume)
    if factor != 1:
        volume, resampled = _z_scored(resample(volume, factor), tomogram.name)
        sizes = tomogram.voxel_size_angstrom, wanted.to_voxel_angstrom
        log.info("%s: resampled from %.3f to %.3f angstrom, %s to %s voxels", tomogram.name, *sizes, tomogram.shape, volume.shape)
    return volume, Scale(values, clipped, resampled)


def prepare_box(tomogram: Tomogram, box: Box, wanted: Preparation, scale: Scale) -> NDArray[np.float32]:
    """Return what lies in a box of the prepared volume, `(d, h, w)` float32, from no more of the file than `source_box` says.

    It agrees with the same box of `prepare_whole` to the rounding of float32.

    Raises
    ------
    FormatError
        If a value that was read is not finite.
    """
    values = _wide(tomogram.read(source_box(tomogram, box, wanted)))
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise FormatError(f"{tomogram.uri}: {bad} of {values.size} values in a box are NaN or infinite; all must be finite: index it again")
    volume = _scaled(values, scale.values)
    if scale.clipped:
        volume = _scaled(np.clip(volume, -wanted.clip_sd, wanted.clip_sd), scale.clipped)
    if wanted.contrast != wanted.to_contrast:
        np.negative(volume, out=volume)
    if scale.resampled:
        volume = _scaled(_resampled_part(volume, _lines(tomogram, box, wanted), wanted.factor(tomogram)), scale.resampled)
    return volume


def source_box(tomogram: Tomogram, box: Box, wanted: Preparation) -> Box:
    """Return the box of the file that must be read for a box of the prepared volume; for resampling it reaches a little further."""
    if wanted.factor(tomogram) == 1:
        return box
    z, y, x = (slice(line.start, line.stop) for line in _lines(tomogram, box, wanted))
    return z, y, x


def z_score(volume: NDArray[Any], *, where: str = "volume") -> NDArray[np.float32]:
    """Return the volume as float32 with mean 0 and standard deviation 1.

    Raises
    ------
    FormatError
        If a value is NaN or infinite, or all values are equal.
    """
    return _z_scored(volume, where)[0]


def as_half(volume: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return a volume as float16, twenty times as fast as numpy, which converts one number after another."""
    return np.asarray(torch.from_numpy(np.require(volume, requirements="W")).half().numpy())


def _wide(volume: NDArray[Any]) -> NDArray[Any]:
    """Return a volume as float32 if it is of float16, of which numpy is slow to do anything."""
    if volume.dtype != np.float16:
        return volume
    return np.asarray(torch.from_numpy(np.require(volume, requirements=["C", "W"])).float().numpy())


def _z_scored(volume: NDArray[Any], where: str) -> tuple[NDArray[np.float32], Moments]:
    volume = _wide(volume)
    with np.errstate(invalid="ignore"):  # plus and minus infinity; said below
        mean = float(np.mean(volume, dtype=np.float64))
    if not np.isfinite(mean):
        bad = int((~np.isfinite(volume)).sum())
        raise FormatError(f"{where}: {bad} of {volume.size} values are NaN or infinite; all must be finite: reconstruct it again, or fill the gaps")
    deviations = _deviations(volume, mean)
    std = float(np.sqrt(np.mean(np.square(deviations, dtype=np.float64))))
    if not std > 0 or volume.min() == volume.max():  # the mean of equal numbers can be off by its last bit, and std above 0
        raise FormatError(f"{where}: all values are {mean:g}; a tomogram must vary: check the file")
    return np.asarray(deviations / std, dtype=np.float32), (mean, std)


def _scaled(volume: NDArray[Any], moments: Moments) -> NDArray[np.float32]:
    scaled = _deviations(volume, moments[0])
    return np.asarray(np.divide(scaled, moments[1], out=scaled), dtype=np.float32)


def _deviations(volume: NDArray[Any], mean: float) -> NDArray[Any]:
    deviations: NDArray[Any] = volume - np.asarray(mean, dtype=np.float64 if volume.dtype == np.float64 else np.float32)  # CZII: near 1e-5
    return deviations


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
    grid = blur(torch.from_numpy(np.ascontiguousarray(volume))[None], blur_sigma_vox(factor))
    size = resampled_shape(volume.shape, factor)
    return np.asarray(F.interpolate(grid[None], size=size, mode="trilinear", align_corners=False)[0, 0].numpy(), dtype=np.float32)


def resampled_shape(shape: Sequence[int], factor: float) -> list[int]:
    """Return the number of voxels along each axis after `resample`."""
    return [max(2, round(n * factor)) for n in shape]


def blur_sigma_vox(factor: float) -> float:
    """Return the sigma of the blur that a volume needs before it shrinks by a factor; 0 where it grows."""
    return 0.5 * (1 / factor**2 - 1) ** 0.5 if factor < 1 else 0.0


@dataclass(frozen=True)
class _Line:
    """One axis of a box: the voxels to read, and between which of them each voxel of the prepared volume lies."""

    start: int
    stop: int
    low: NDArray[np.int64]  # counted from `start`
    high: NDArray[np.int64]
    weight: NDArray[np.float64]  # of `high`


def _lines(tomogram: Tomogram, box: Box, wanted: Preparation) -> list[_Line]:
    factor, reach = wanted.factor(tomogram), 0
    if factor < 1:
        reach = blur_reach(blur_sigma_vox(factor))
    lines = []
    for part, n, m in zip(box, tomogram.shape, wanted.shape(tomogram), strict=True):
        indices = np.arange(*part.indices(m))
        places = np.clip((indices + 0.5) * n / m - 0.5, 0, n - 1)  # as `interpolate` places them
        low = np.floor(places).astype(np.int64)
        high = np.minimum(low + 1, n - 1)
        start, stop = max(0, int(low[0]) - reach), min(n, int(high[-1]) + 1 + reach)
        lines.append(_Line(start, stop, low - start, high - start, places - low))
    return lines


def _resampled_part(volume: NDArray[np.float32], lines: Sequence[_Line], factor: float) -> NDArray[np.float32]:
    """Return what `resample` makes of a volume, in the voxels of some lines."""
    grid = blur(torch.from_numpy(volume)[None], blur_sigma_vox(factor))[0]
    for axis, line in enumerate(lines):
        low, high = (grid.index_select(axis, torch.from_numpy(indices)) for indices in (line.low, line.high))
        weight = torch.from_numpy(line.weight.astype(np.float32)).reshape([-1 if axis == other else 1 for other in range(3)])
        grid = torch.lerp(low, high, weight)
    return np.asarray(grid.numpy())
