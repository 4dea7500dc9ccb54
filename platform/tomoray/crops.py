"""Cubes of one tomogram as a picker sees them, each read alone where that asks for fewer bytes than the whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.catalogue import CatalogueRow
from tomoray.patches import cut
from tomoray.preprocessing import Preparation, Scale, prepare_box, prepare_whole, source_box
from tomoray.tomogram import EVERYTHING, Box, Tomogram

CROPS_AT_ONCE = 4  # that are fetched from a server side by side: one alone mostly waits for answers

Scales = MutableMapping[tuple[str, Preparation], Scale]
"""What was measured of tomograms: address and preparation -> scale."""


def read_crops(
    tomogram: Tomogram, row: CatalogueRow, corners: NDArray[np.int64], patch_vox: int, wanted: Preparation, scales: Scales
) -> Iterator[NDArray[np.float32]]:
    """Yield the cubes `(p, p, p)` at corners of the prepared volume, as `patches.cut` would cut them from all of it.

    A cube is normalised by the mean and deviation of the whole tomogram. The catalogue knows them for values as they are in the file; what
    clipping and resampling make of them is measured when such a tomogram is first read, which then is whole, and kept in `scales`.

    The whole is read, too, where the cubes together would ask for more bytes: each voxel would be read more than once on average. Where
    bytes come in chunks it then also takes fewer requests. From a server some cubes are fetched ahead of the one that is yielded.
    """
    key = (tomogram.uri, wanted)
    scale = scales.get(key) or catalogued_scale(row, tomogram, wanted)
    if scale is None:
        volume, scales[key] = prepare_whole(tomogram, wanted)
    elif alone_bytes(tomogram, corners, patch_vox, wanted) > tomogram.bytes_of(EVERYTHING):
        volume = prepare_box(tomogram, EVERYTHING, wanted, scale)
    else:
        read = partial(_read_alone, tomogram, wanted, scale, patch_vox)
        yield from map(read, corners) if storage.is_local(tomogram.uri) else _ahead(read, corners)
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


def _read_alone(tomogram: Tomogram, wanted: Preparation, scale: Scale, patch_vox: int, corner: NDArray[np.int64]) -> NDArray[np.float32]:
    return cut(prepare_box(tomogram, _cube(corner, patch_vox), wanted, scale), (0, 0, 0), patch_vox)


def _ahead(read: Callable[[NDArray[np.int64]], NDArray[np.float32]], corners: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield what is read at each corner, in their order, while those that follow are being read."""
    with ThreadPoolExecutor(CROPS_AT_ONCE) as pool:
        under_way: deque[Future[NDArray[np.float32]]] = deque()
        for corner in corners:
            if len(under_way) == CROPS_AT_ONCE:
                yield under_way.popleft().result()
            under_way.append(pool.submit(read, corner))
        while under_way:
            yield under_way.popleft().result()


def _cube(corner: Sequence[int] | NDArray[np.int64], patch_vox: int) -> Box:
    z, y, x = (slice(int(low), int(low) + patch_vox) for low in corner)
    return z, y, x
