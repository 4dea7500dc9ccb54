"""Cubes of one tomogram as a picker sees them, each read alone where that asks for fewer bytes than the whole."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tomoray.catalogue import CatalogueRow
from tomoray.patches import cut
from tomoray.preprocessing import Preparation, Scale, prepare_box, prepare_whole, source_box
from tomoray.tomogram import EVERYTHING, Box, Tomogram

Scales = MutableMapping[tuple[str, Preparation], Scale]
"""What was measured of tomograms: address and preparation -> scale."""


def read_crops(
    tomogram: Tomogram, row: CatalogueRow, corners: NDArray[np.int64], patch_vox: int, wanted: Preparation, scales: Scales
) -> Iterator[NDArray[np.float32]]:
    """Yield the cubes `(p, p, p)` at corners of the prepared volume, as `patches.cut` would cut them from all of it.

    A cube is normalised by the mean and deviation of the whole tomogram. The catalogue knows them for values as they are in the file; what
    clipping and resampling make of them is measured when such a tomogram is first read, which then is whole, and kept in `scales`.

    The whole is read, too, where the cubes together would ask for more bytes: each voxel would be read more than once on average. Where
    bytes come in chunks it then also takes fewer requests.
    """
    key = (tomogram.uri, wanted)
    scale = scales.get(key) or catalogued_scale(row, tomogram, wanted)
    if scale is None:
        volume, scales[key] = prepare_whole(tomogram, wanted)
    elif alone_bytes(tomogram, corners, patch_vox, wanted) > tomogram.bytes_of(EVERYTHING):
        volume = prepare_box(tomogram, EVERYTHING, wanted, scale)
    else:
        for corner in corners:
            yield cut(prepare_box(tomogram, _cube(corner, patch_vox), wanted, scale), (0, 0, 0), patch_vox)
        return
    yield from (cut(volume, corner, patch_vox) for corner in corners)


def catalogued_scale(row: CatalogueRow, tomogram: Tomogram, wanted: Preparation) -> Scale | None:
    """Return the scale that a catalogue's row knows, or nothing where it must be measured.

    That is where values are clipped or resampled before they are scaled, and where the file is no longer the one that was indexed.
    """
    same = row.shape_zyx == tomogram.shape and row.dtype == tomogram.voxels.dtype.name
    known = same and row.std > 0 and not wanted.clip_sd and wanted.factor(tomogram) == 1
    return Scale((row.mean, row.std)) if known else None


def alone_bytes(tomogram: Tomogram, corners: NDArray[np.int64], patch_vox: int, wanted: Preparation) -> int:
    """Return how many bytes the cubes ask for when each is read alone."""
    return sum(tomogram.bytes_of(source_box(tomogram, _cube(corner, patch_vox), wanted)) for corner in corners)


def _cube(corner: Sequence[int] | NDArray[np.int64], patch_vox: int) -> Box:
    z, y, x = (slice(int(low), int(low) + patch_vox) for low in corner)
    return z, y, x
