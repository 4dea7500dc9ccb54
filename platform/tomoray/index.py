"""From a folder of tomograms to catalogue rows, with everything that is wrong named at once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tomoray import storage
from tomoray.catalogue import CatalogueRow
from tomoray.formats import open_tomogram
from tomoray.formats.clicks import Told
from tomoray.formats.layouts import Found, Problem, find_tomograms, read_picks
from tomoray.tomogram import Box, Contrast, FormatError, Picks, Tomogram, check_picks_fit

BLOCK_VOX = 256  # the portal's chunk: each is read once, and a block takes 64 MiB
READERS = 4  # tomograms read side by side
AROUND_PICK_VOX = 3  # a sphere that stays inside the smallest particle of the challenge, 6 voxels in radius
BAND_VOX = (1.0, 4.0)  # finer is noise, coarser is the ice and the unfilled edge


@dataclass
class Intensities:
    """Moments of values that come in parts (Chan, Golub & LeVeque 1983), so that offsets of 1e2 and spreads of 1e-6 both stay exact."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    not_finite: int = 0
    around_picks: list[float] = field(default_factory=list)

    @property
    def std(self) -> float:
        """Standard deviation of all values so far."""
        return float(np.sqrt(self.squares / max(self.count, 1)))

    def add(self, values: NDArray[np.generic]) -> None:
        """Take more values into account; those that are not finite are only counted."""
        finite = values[np.isfinite(values)]
        self.not_finite += values.size - finite.size
        if finite.size == 0:
            return
        mean, total = float(np.mean(finite, dtype=np.float64)), self.count + finite.size
        shift = mean - self.mean
        self.squares += float(np.var(finite, dtype=np.float64)) * finite.size + shift**2 * self.count * finite.size / total
        self.mean += shift * finite.size / total
        self.count = total
        self.minimum = min(self.minimum, float(finite.min()))
        self.maximum = max(self.maximum, float(finite.max()))


def index(
    source: storage.Uri,
    *,
    picks: str = "",
    kinds: Sequence[str] = (),
    told: Told = Told(),
    particles: Sequence[str] = (),
    contrast: Contrast | None = None,
    voxel_angstrom: float | None = None,
    permissive: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[CatalogueRow], list[Problem]]:
    """Return a row for each usable tomogram in `source`, and everything that is wrong with what lies there.

    Every tomogram is opened and read once in full. An error keeps its tomogram out of the rows, a warning does not. Rows with picks are
    of split `train`, the others `unlabelled`; `catalogue.assign_splits` holds some out.

    Parameters
    ----------
    source, picks, kinds, told
        As for `formats.layouts.find_tomograms`.
    particles
        Names that picks may have; any by default.
    contrast
        Whether particles are dark or bright; guessed for each tomogram by default, with a warning.
    voxel_angstrom
        Needed where files state none.
    permissive
        Read files that break their format's rules where they can be understood.
    progress
        Called with the number of tomograms done and of all.
    """
    found, problems = find_tomograms(source, picks=picks, kinds=kinds, told=told)
    look = partial(_examine, particles=frozenset(particles), contrast=contrast, voxel_angstrom=voxel_angstrom, permissive=permissive)
    rows = []
    # Warnings are global to the process: they are caught once around all threads, and go to the tomogram that they name.
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(READERS) as pool:
        warnings.simplefilter("always")
        for done, (row, wrong) in enumerate(pool.map(look, found), start=1):
            rows += [row] if row else []
            problems += wrong
            progress(done, len(found))
    return rows, problems + _from_warnings(caught, found)


def guess_contrast(tomogram: Tomogram) -> tuple[Contrast, float]:
    """Return which sign particles probably have, and the skewness that says so.

    Particles are few and dense, so they are the heavy tail of the values; it shows once noise and slow changes of the background are
    filtered away. Looks at the middle of the tomogram, up to 256 voxels along each axis.

    Raises
    ------
    FormatError
        If the values cannot be read.
    """
    z, y, x = (slice(max(0, (n - BLOCK_VOX) // 2), (n + BLOCK_VOX) // 2) for n in tomogram.shape)
    values = tomogram.read((z, y, x)).astype(np.float32)
    values -= values.mean(dtype=np.float64)
    fine, coarse = (gaussian_filter(values, sigma) for sigma in BAND_VOX)
    band = fine - coarse
    band -= band.mean(dtype=np.float64)
    band /= band.std(dtype=np.float64) or 1.0
    skewness = float(np.mean(band**3, dtype=np.float64))
    return ("bright" if skewness > 0 else "dark"), skewness


def _examine(
    found: Found, *, particles: frozenset[str], contrast: Contrast | None, voxel_angstrom: float | None, permissive: bool
) -> tuple[CatalogueRow | None, list[Problem]]:
    errors: list[str] = []
    tomogram, picks, seen, voxel, note = None, None, Intensities(), 0.0, ""
    with _noting(errors):
        tomogram = open_tomogram(found.uri, name=found.run, voxel_angstrom=voxel_angstrom, permissive=permissive)
    if tomogram is not None:
        with _noting(errors):
            voxel = tomogram.voxel_size_angstrom
        with _noting(errors):
            picks = _read_fitting_picks(found, tomogram, particles)
        with _noting(errors):
            seen = _measure(tomogram, picks)
            _check_values(found.uri, seen)
    if tomogram is None or errors:
        return None, [Problem(found.uri, "error", message) for message in errors]
    sign = contrast
    if sign is None:
        sign, note = _guess(tomogram, seen)
    row = CatalogueRow(
        tomogram_id=found.tomogram_id,
        run=found.run,
        uri=found.uri,
        shape_zyx=tomogram.shape,
        dtype=tomogram.voxels.dtype.name,
        voxel_angstrom=voxel,
        mean=seen.mean,
        std=seen.std,
        minimum=seen.minimum,
        maximum=seen.maximum,
        contrast=sign,
        contrast_guessed=contrast is None,
        split="unlabelled" if picks is None else "train",
        picks_uri=found.picks_uri,
        particles={} if picks is None else dict(sorted(Counter(picks.names.tolist()).items())),
    )
    return row, [Problem(found.uri, "warning", note)] if note else []


def _read_fitting_picks(found: Found, tomogram: Tomogram, particles: frozenset[str]) -> Picks | None:
    if not found.picks_uri:
        return None
    picks = read_picks(found.picks_uri, found.run, shape_zyx=tomogram.shape, voxel_angstrom=tomogram.voxel_size_angstrom)
    check_picks_fit(picks, tomogram)
    unknown = sorted(set(picks.names.tolist()) - particles) if particles else []
    if unknown:
        raise FormatError(
            f"{found.picks_uri}: picks named {', '.join(unknown)}; the particles asked for are {', '.join(sorted(particles))}: "
            "correct the names, or add the particles"
        )
    return picks


def _measure(tomogram: Tomogram, picks: Picks | None) -> Intensities:
    """Read the whole tomogram in blocks and return its intensities, those around picks apart."""
    seen = Intensities()
    around = _around(picks, tomogram) if picks is not None and len(picks) else np.empty((0, 3), dtype=np.int64)
    for corner in product(*(range(0, n, BLOCK_VOX) for n in tomogram.shape)):
        z, y, x = (slice(low, min(low + BLOCK_VOX, n)) for low, n in zip(corner, tomogram.shape, strict=True))
        box: Box = (z, y, x)
        block = tomogram.read(box)
        for plane in block:  # a plane at a time: the sums are in float64, which for a block would take much memory
            seen.add(plane)
        local = around - corner
        inside = local[((local >= 0) & (local < block.shape)).all(axis=1)]
        seen.around_picks += block[tuple(inside.T)].astype(np.float64).tolist()
    return seen


def _around(picks: Picks, tomogram: Tomogram) -> NDArray[np.int64]:
    """Return the indices `(n, 3)` of the voxels in a small sphere around each pick; some may lie outside."""
    centres = np.floor(picks.positions_zyx / tomogram.voxel_angstrom).astype(np.int64)
    r = AROUND_PICK_VOX
    offsets = np.argwhere(np.sum(np.square(np.indices((2 * r + 1,) * 3) - r), axis=0) <= r**2) - r
    return np.asarray(centres[:, None] + offsets).reshape(-1, 3)


def _check_values(uri: str, seen: Intensities) -> None:
    if seen.not_finite:
        total = seen.not_finite + seen.count
        raise FormatError(f"{uri}: {seen.not_finite} of {total} values are NaN or infinite; all must be finite: reconstruct it again, or fill gaps")
    if not seen.maximum > seen.minimum:
        raise FormatError(f"{uri}: all values are {seen.mean:g}; a tomogram must vary: check that the file was written completely")


def _guess(tomogram: Tomogram, seen: Intensities) -> tuple[Contrast, str]:
    sign: Contrast
    if seen.around_picks:
        difference = (float(np.mean(seen.around_picks)) - seen.mean) / seen.std
        sign, reason = ("bright" if difference > 0 else "dark"), f"values around the picks are {difference:+.2f} standard deviations from the mean"
    else:
        sign, skewness = guess_contrast(tomogram)
        reason = f"the skewness of its filtered values is {skewness:+.2f}"
    return sign, f"{tomogram.uri}: particles are taken to be {sign}, a guess ({reason}); look at a slice, and state the contrast to be sure"


def _from_warnings(caught: Sequence[warnings.WarningMessage], found: Sequence[Found]) -> list[Problem]:
    """Return the readers' warnings as problems of the tomograms that they name; pass on all others."""
    messages: dict[str, str] = {}
    for warning in caught:
        text = str(warning.message)
        uri = max((one.uri for one in found if one.uri in text), key=len, default="")
        if uri:
            messages[text] = uri
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return [Problem(uri, "warning", text) for uri, text in sorted((uri, text) for text, uri in messages.items())]


@contextmanager
def _noting(errors: list[str]) -> Iterator[None]:
    """Note what is wrong with a file and go on: one look must find everything."""
    try:
        yield
    except (FormatError, OSError) as error:
        errors.append(str(error))
