"""Tomograms rewritten for training: OME-Zarr 0.5 in shards of chunks that fit the crops, in float16 where that loses nothing, verified.

Values of 32 or 64 bits are kept as z-scores, since float16 has its numbers around 1 and files theirs anywhere (CZII's lie near 1e-5, where
float16 has three digits left). Training z-scores what it reads and hands crops on as float16 anyway, so that it sees the same. Values of
8 or 16 bits stay as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, read_row_picks, write_catalogue
from tomoray.crops import catalogued_scale
from tomoray.formats import open_tomogram
from tomoray.formats.czii import write_czii_csv
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.index import Intensities
from tomoray.preprocessing import Moments, Preparation
from tomoray.tomogram import Box, FormatError, Tomogram

ROUNDING_SD = 1e-3  # that float16 may be off, root mean square, in deviations of the values within BULK_SD; noise gives 2e-4
BULK_SD = 3.0
STALE_SD = 0.05  # by which the catalogue's mean and deviation may differ from what was read
AT_A_TIME = 8  # of small files


@dataclass(frozen=True)
class ChunkLayout:
    """How values are laid out: edges of chunks and of the files (shards) that hold them, in voxels, and whether float16 is tried."""

    chunk_vox: int = 48
    shard_vox: int = 240
    half: bool = True

    @classmethod
    def for_crops(cls, patch_vox: int, *, shard_vox: int = 256, half: bool = True) -> ChunkLayout:
        """Return chunks of half a crop's edge, in shards of about `shard_vox`.

        A crop then touches 27 chunks on average, which hold 3.3 times its voxels. With chunks as large as the crop those that it touches
        would hold 7.9 times as many; with chunks of a third 2.3 times, but in 62 pieces.
        """
        chunk_vox = -(-patch_vox // 2)
        return cls(chunk_vox, chunk_vox * max(1, round(shard_vox / chunk_vox)), half)


def ingest_tomogram(row: CatalogueRow, output: str, layout: ChunkLayout, *, permissive: bool = False) -> tuple[CatalogueRow, str]:
    """Rewrite one tomogram and its picks, verify them, mark them as done, and return their row and what is worth saying.

    Verified means: what was written is opened anew from where it lies, its chunks pass their checksums, and its values are those that
    were written, bit by bit. The mark, a catalogue of this row alone, comes last: what has none is done again.

    Raises
    ------
    FormatError
        If the tomogram cannot be read, is not the one that was indexed, or reads back otherwise than it was written.
    """
    tomogram = open_tomogram(row.uri, name=row.run, voxel_angstrom=row.voxel_angstrom, permissive=permissive)
    kept, note = _write(tomogram, row, _target(row, output), layout)
    _verify(_target(row, output), row, kept, layout)
    seen = kept.seen
    new = replace(
        row,
        uri=_target(row, output),
        dtype=kept.dtype.name,
        mean=seen.mean,
        std=seen.std,
        minimum=seen.minimum,
        maximum=seen.maximum,
        picks_uri=_carry_picks(row, output),
    )
    write_catalogue(_mark(row, output, layout), [new])
    return new, note


def finished_rows(rows: Sequence[CatalogueRow], output: str, layout: ChunkLayout) -> dict[str, CatalogueRow]:
    """Return the new rows of tomograms that were ingested before with this layout, by id; their splits are those of `rows`."""
    folder = storage.join(output, "rows")
    names = set(storage.list_names(folder)) if storage.exists(folder) else set()
    done = [row for row in rows if _mark(row, output, layout).rpartition("/")[2] in names]

    def read(row: CatalogueRow) -> CatalogueRow:
        (new,) = read_catalogue(_mark(row, output, layout))
        return replace(new, split=row.split, contrast=row.contrast, contrast_guessed=row.contrast_guessed)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return {row.tomogram_id: row for row in pool.map(read, done)}


def _target(row: CatalogueRow, output: str) -> str:
    return storage.join(output, "tomograms", f"{row.tomogram_id}.zarr")


def _mark(row: CatalogueRow, output: str, layout: ChunkLayout) -> str:
    """Return where the mark of a tomogram lies; it is another for another file or layout."""
    made_of = (row.uri, row.shape_zyx, row.dtype, row.mean, row.std, row.picks_uri, dict(row.particles), layout)
    return storage.join(output, "rows", f"{row.tomogram_id}.{hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]}.parquet")


def _write(tomogram: Tomogram, row: CatalogueRow, target: str, layout: ChunkLayout) -> tuple[_Kept, str]:
    """Write the values in the smallest type that keeps them, and return what was seen of them."""
    scale = catalogued_scale(row, tomogram, Preparation(row.contrast, tomogram.voxel_size_angstrom))
    if scale is None:
        raise FormatError(f"{row.uri}: not the file that was indexed (its shape, type or deviation differ): make the catalogue again")
    source_type = tomogram.voxels.dtype.newbyteorder("=")
    if source_type.itemsize <= 2:
        return _write_as(source_type, None, tomogram, target, layout), ""
    note = ""
    if layout.half:
        kept = _write_as(np.dtype("f2"), scale.values, tomogram, target, layout)
        if kept.loses_nothing:
            return kept, ""
        note = f"{row.uri}: float16 would be off by {kept.rounding_sd:.2g} deviations of its values; kept in float32"
    return _write_as(np.dtype("f4"), scale.values, tomogram, target, layout), note


def _write_as(dtype: np.dtype[Any], scale: Moments | None, tomogram: Tomogram, target: str, layout: ChunkLayout) -> _Kept:
    kept = _Kept(tomogram, dtype, scale)
    about = {"source": tomogram.uri} | ({} if scale is None else {"source_mean": scale[0], "source_std": scale[1]})
    written = replace(tomogram, voxels=kept)
    write_ome_zarr(target, written, zarr_format=3, chunk_vox=layout.chunk_vox, shard_vox=layout.shard_vox, about=about)
    kept.check(tomogram.uri)
    return kept


def _verify(uri: str, row: CatalogueRow, kept: _Kept, layout: ChunkLayout) -> None:
    digest, tomogram = hashlib.sha256(), open_tomogram(uri, name=row.run)
    for z in range(0, kept.shape[0], layout.shard_vox):  # whole shards, which take one request each
        digest.update(np.ascontiguousarray(tomogram.read((slice(z, z + layout.shard_vox), slice(None), slice(None)))).data)
    if digest.hexdigest() != kept.digest.hexdigest():
        raise FormatError(f"{uri}: reads back otherwise than it was written; disk, memory or network must be at fault: ingest it again")


def _carry_picks(row: CatalogueRow, output: str) -> str:
    """Copy the picks of a row and return where they are; a table without picks would not name its run, so none is made of none."""
    picks = read_row_picks(row) if row.is_labelled else None
    if picks is None or len(picks) == 0:
        return row.picks_uri
    uri = storage.join(output, "picks", f"{row.tomogram_id}.csv")
    write_czii_csv(uri, [picks])
    return uri


@dataclass
class _Kept:
    """Values of a tomogram as they are kept, made as they are read: once, from the first layer to the last; and what was seen of them."""

    source: Tomogram
    dtype: np.dtype[Any]
    scale: Moments | None
    seen: Intensities = field(default_factory=Intensities)
    bulk: Intensities = field(default_factory=Intensities)
    squared_error: float = 0.0
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def rounding_sd(self) -> float:
        """How far the kept values are off, root mean square, in deviations of all but the outliers."""
        if self.seen.not_finite or not self.bulk.std > 0:
            return math.inf
        return math.sqrt(self.squared_error / self.bulk.count) / self.bulk.std

    @property
    def loses_nothing(self) -> bool:
        """Whether no value is beyond what the type can hold, and rounding is lost in the noise."""
        return self.rounding_sd <= ROUNDING_SD

    def __getitem__(self, box: Box, /) -> NDArray[Any]:
        planes = [self._keep(plane) for plane in self.source.read(box)]  # a plane at a time: the sums are in float64
        return np.stack(planes)

    def _keep(self, plane: NDArray[Any]) -> NDArray[Any]:
        values = plane if self.scale is None else (plane - np.float64(self.scale[0])) / self.scale[1]
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is counted
            kept = np.ascontiguousarray(values.astype(self.dtype))
        self.seen.add(kept)
        self.digest.update(kept)
        if self.scale is not None:
            self.bulk.add(np.clip(values, -BULK_SD, BULK_SD))
            with np.errstate(over="ignore", invalid="ignore"):
                self.squared_error += float(np.square(kept - values).sum())
        return kept

    def check(self, where: str) -> None:
        """Stop where the source is not what the catalogue says; what float16 alone cannot hold is no reason.

        Raises
        ------
        FormatError
            If a value is not finite, or mean and deviation differ from the catalogue's.
        """
        if self.scale is None or (self.dtype == np.float16 and self.seen.not_finite):
            return
        if self.seen.not_finite:
            raise FormatError(f"{where}: {self.seen.not_finite} values are NaN or infinite; all must be finite: reconstruct it again, or fill gaps")
        if abs(self.seen.mean) > STALE_SD or abs(self.seen.std - 1) > STALE_SD:
            raise FormatError(f"{where}: its mean and deviation are not those that the catalogue states; make the catalogue again")
