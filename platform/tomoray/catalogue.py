"""The catalogue: a Parquet table with one row per tomogram, which training, picking and scoring start from."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tomoray import storage
from tomoray.config import ConfigError
from tomoray.credentials import has_credentials, redacted
from tomoray.formats.checks import check_table_fits_memory
from tomoray.formats.layouts import read_picks
from tomoray.tomogram import Contrast, FormatError, Picks, Tomogram, check_picks_fit

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test", "unlabelled", "")
NO_FACTS = ("uri", "picks_uri", "clicks", "click_seed")  # of a row: where files lie, and what a job wishes


@dataclass(frozen=True)
class CatalogueRow:
    """What is known of a tomogram without opening it.

    Attributes
    ----------
    tomogram_id
        Its name in this catalogue, of which there is only one.
    run
        Name under which picks know it; several tomograms may be reconstructions of one run.
    uri
        Its file or folder.
    shape_zyx
        Number of voxels along z, y, x.
    dtype
        Type of its values as numpy names it.
    voxel_angstrom
        Edge of its cubic voxel.
    mean, std, minimum, maximum
        Of its values.
    contrast
        Whether particles are darker or brighter than what surrounds them.
    contrast_guessed
        Whether that was guessed from the values, not stated by a person.
    split
        `train`, `validation` or `test` for labelled ones, `unlabelled`, or empty for those to be left out.
    picks_uri
        What `read_row_picks` reads; empty where there are no picks.
    particles
        Number of picks per class.
    clicks, click_seed
        As if only so many picks of each class had been clicked, drawn by the seed; 0: all are known. A wish of a job, which no file keeps.
    """

    tomogram_id: str
    run: str
    uri: str
    shape_zyx: tuple[int, int, int]
    dtype: str
    voxel_angstrom: float
    mean: float
    std: float
    minimum: float
    maximum: float
    contrast: Contrast
    contrast_guessed: bool = False
    split: str = ""
    picks_uri: str = ""
    particles: Mapping[str, int] = field(default_factory=dict)
    clicks: int = 0
    click_seed: int = 0

    def __post_init__(self) -> None:
        for what, uri in (("uri", self.uri), ("picks_uri", self.picks_uri)):
            if has_credentials(uri):
                raise FormatError(
                    f"{self.tomogram_id}: {what} {redacted(uri)!r} holds credentials; catalogues are shared, so these must come from the environment "
                    "(AWS_ACCESS_KEY_ID, ...): take them out of the address"
                )
        for what, value, allowed in (("split", self.split, SPLITS), ("contrast", self.contrast, get_args(Contrast))):
            if value not in allowed:
                raise FormatError(f"{self.tomogram_id}: {what} {value!r}; it must be one of {', '.join(map(repr, allowed))}: correct the row")

    @property
    def is_labelled(self) -> bool:
        """Whether picks are known for it."""
        return bool(self.picks_uri)

    @property
    def voxels(self) -> int:
        """How many voxels it has."""
        return int(np.prod(self.shape_zyx, dtype=np.int64))


def read_catalogue(uri: storage.Uri) -> list[CatalogueRow]:
    """Return the rows of a catalogue.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is no Parquet file, misses columns (all are named), has values of other types or missing ones, ids that repeat, or no row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = storage.read_bytes(uri)
    try:
        check_table_fits_memory(str(uri), content)
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise FormatError(f"{uri}: not a Parquet file ({error}); make a catalogue with `tomoray index`") from None
    schema = _schema()
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise FormatError(f"{uri}: no column {', '.join(missing)}; a catalogue has {', '.join(schema.names)}: make it with `tomoray index`")
    table = table.select(schema.names)
    empty = [name for name in schema.names if table[name].null_count]
    if empty:
        raise FormatError(f"{uri}: missing values in {', '.join(empty)}; every row must be complete: make it again with `tomoray index`")
    try:
        table = table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FormatError(f"{uri}: a column of another type ({error}); make the catalogue with `tomoray index`") from None
    rows = [CatalogueRow(**{**row, "shape_zyx": tuple(row["shape_zyx"]), "particles": dict(row["particles"])}) for row in table.to_pylist()]
    _check(rows, str(uri))
    return rows


def write_catalogue(uri: storage.Uri, rows: Sequence[CatalogueRow]) -> None:
    """Write rows as a catalogue, whole or not at all.

    Raises
    ------
    FormatError
        If there is no row, or ids repeat.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check(rows, str(uri))
    schema = _schema()
    assert not any(row.clicks for row in rows), "its picks would be counted wrongly"
    columns: list[dict[str, Any]] = [{**vars(row), "particles": list(row.particles.items())} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(columns, schema=schema), sink)
    storage.write_bytes(uri, sink.getvalue())


def catalogue_version(rows: Iterable[CatalogueRow], length: int = 16) -> str:
    """Return a short hash of what a catalogue says of its tomograms, in any order, and wherever their files lie.

    Values count by their mean, spread and range, picks by their number: other positions of as many particles are not seen.
    """
    facts = [{key: fact for key, fact in vars(row).items() if key not in NO_FACTS} for row in rows]
    told = sorted(repr(sorted({**of_row, "particles": sorted(of_row["particles"].items())}.items())) for of_row in facts)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:length]


def read_row_picks(row: CatalogueRow) -> Picks:
    """Return the picks of a row's tomogram, of each class as many as were clicked, checked against its run, shape and voxel size.

    Raises
    ------
    FormatError
        If the row is unlabelled, its picks cannot be read, or they do not fit into its volume.
    """
    if not row.is_labelled:
        raise FormatError(f"{row.tomogram_id}: no picks are known for it; picks can be read of labelled rows only: index it again with picks")
    picks = read_picks(row.picks_uri, row.run, shape_zyx=row.shape_zyx, voxel_angstrom=row.voxel_angstrom)
    no_values = np.broadcast_to(np.zeros((), dtype=np.int8), row.shape_zyx)  # a shape that takes no memory
    check_picks_fit(picks, Tomogram(row.run, no_values, (row.voxel_angstrom,) * 3, uri=row.uri))
    return draw_clicks(picks, row.clicks, row.click_seed) if row.clicks else picks


def with_clicks(row: CatalogueRow, clicks: int, seed: int) -> CatalogueRow:
    """Return a labelled row of which `read_row_picks` shows no more than so many picks of each class; 0: all."""
    if not clicks:
        return row
    return replace(row, clicks=clicks, click_seed=seed, particles={name: min(number, clicks) for name, number in row.particles.items()})


def draw_clicks(picks: Picks, number: int, seed: int) -> Picks:
    """Return `number` picks of each class, or all where there are fewer, in their order.

    Which these are depends on the seed, the run and the class only, and fewer clicks are some of the more.
    """
    keep = np.zeros(len(picks), dtype=np.bool_)
    for name in np.unique(picks.names).tolist():
        digest = hashlib.sha256(f"{seed}:{picks.run}:{name}".encode()).digest()
        members = np.flatnonzero(picks.names == name)
        keep[np.random.default_rng(list(digest)).permutation(members)[:number]] = True
    return picks[keep]


def assign_splits(
    rows: Iterable[CatalogueRow], *, validation: float | Sequence[str] = 0.0, test: float | Sequence[str] = 0.0, seed: int = 0
) -> list[CatalogueRow]:
    """Return the rows with their splits, decided per run so that no run is in two of them.

    `validation` and `test` are fractions of the labelled runs or names of runs; what they leave is `train`, and tomograms without picks are
    `unlabelled`. A tomogram without picks whose run is held out is left out (""): training on it would be training on the answer.
    Which runs a fraction takes is decided by a hash of seed and name, so adding runs moves few of the others; a fraction takes at least
    one run, but never the last.

    Raises
    ------
    ConfigError
        If a named run is not there or has no picks, is named twice, or nothing is left to train on.
    """
    rows = list(rows)
    labelled = {row.run for row in rows if row.is_labelled}
    _check_names(labelled, validation, test)
    named = {run for part in (validation, test) if not isinstance(part, float | int) for run in part}
    free = sorted(labelled - named, key=lambda run: hashlib.sha256(f"{seed}:{run}".encode()).hexdigest())
    split_of = dict.fromkeys(labelled, "train")
    for name, part in (("test", test), ("validation", validation)):
        if isinstance(part, float | int):
            count = min(max(1, round(part * len(labelled))), len(free) - 1) if part > 0 and free else 0
            part, free = free[:count], free[count:]
        split_of.update(dict.fromkeys(part, name))
    if labelled and "train" not in split_of.values():
        raise ConfigError(f"{len(labelled)} labelled runs, all of them in validation or test; at least one must be left to train on: hold out fewer")
    unlabelled = {run: "" if split in ("validation", "test") else "unlabelled" for run, split in split_of.items()}
    return [replace(row, split=split_of[row.run] if row.is_labelled else unlabelled.get(row.run, "unlabelled")) for row in rows]


def _check_names(labelled: set[str], validation: float | Sequence[str], test: float | Sequence[str]) -> None:
    for what, part in (("validation", validation), ("test", test)):
        if isinstance(part, str):
            raise ConfigError(f"{what} = {part!r}: it must be a fraction or a list of runs; write [{part!r}]")
        if isinstance(part, float | int):
            if not 0 <= part < 1:
                raise ConfigError(f"{what} = {part}: it must be a fraction from 0 to below 1, or a list of runs; correct it")
        elif unknown := sorted(set(part) - labelled):
            raise ConfigError(f"{what}: no picks of run {', '.join(unknown)}; known are {', '.join(sorted(labelled)) or 'none'}: correct the names")
    if not isinstance(validation, float | int) and not isinstance(test, float | int) and (both := set(validation) & set(test)):
        raise ConfigError(f"run {', '.join(sorted(both))} both in validation and in test; it must be in one: remove it from the other")


def _check(rows: Sequence[CatalogueRow], where: str) -> None:
    if not rows:
        raise FormatError(f"{where}: a catalogue without rows; it must list at least one tomogram: index a folder that holds some")
    repeated = sorted(name for name, count in Counter(row.tomogram_id for row in rows).items() if count > 1)
    if repeated:
        raise FormatError(f"{where}: tomogram_id {', '.join(repeated)} more than once; each must be the only one: rename the tomograms")


def _schema() -> pa.Schema:
    import pyarrow as pa

    columns = {
        "tomogram_id": pa.string(),
        "run": pa.string(),
        "uri": pa.string(),
        "shape_zyx": pa.list_(pa.int32(), 3),
        "dtype": pa.string(),
        "voxel_angstrom": pa.float64(),
        "mean": pa.float64(),
        "std": pa.float64(),
        "minimum": pa.float64(),
        "maximum": pa.float64(),
        "contrast": pa.string(),
        "contrast_guessed": pa.bool_(),
        "split": pa.string(),
        "picks_uri": pa.string(),
        "particles": pa.map_(pa.string(), pa.int32()),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])
