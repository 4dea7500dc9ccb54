"""Tomograms, picks and particles: the data that everything else passes around.

Conventions, kept everywhere outside ``formats/``:

- arrays are (z, y, x);
- a position is in angstrom from the outer corner of the first voxel, so that voxel ``i`` covers
  ``[i, i + 1) * voxel_angstrom`` and its centre lies at ``(i + 0.5) * voxel_angstrom``;
- a coordinate array says its order in its name (``positions_zyx``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Contrast = Literal["dark", "bright"]
Box = tuple[slice, slice, slice]
Triple = tuple[float, float, float]

EVERYTHING: Box = (slice(None), slice(None), slice(None))

ANISOTROPY_TOLERANCE = 1e-3  # the CZII files differ between axes in the 7th digit; an angstrom of error in a micrometre


class FormatError(ValueError):
    """A file or a volume is not what it must be. The message says what it was, what it must be and what to do."""


class Voxels(Protocol):
    """What a tomogram needs of its values: a shape, a type, and boxes of them on demand (numpy, memmap, zarr do)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, box: Box, /) -> Any: ...


@runtime_checkable
class Stored(Protocol):
    """What readers of files know beyond `Voxels`: what a box costs, and what was asked for so far."""

    @property
    def bytes_read(self) -> int: ...

    def bytes_of(self, box: Box, /) -> int: ...


@dataclass(frozen=True)
class Tomogram:
    """A volume and the physical facts without which it cannot be used.

    Attributes
    ----------
    name
        What people call it; for files the run or the file stem.
    voxels
        Anything with `(d, h, w)` values: a numpy array, a memory map, or a lazy reader of a file.
    voxel_angstrom
        Edge of a voxel along z, y, x.
    origin_angstrom
        Position of the volume's corner along z, y, x as the file states it. Kept, not applied: picks count from the corner.
    uri
        Where it came from; empty for volumes made in memory.
    """

    name: str
    voxels: Voxels
    voxel_angstrom: Triple
    origin_angstrom: Triple = (0.0, 0.0, 0.0)
    uri: str = ""

    def __post_init__(self) -> None:
        if len(self.voxels.shape) != 3 or min(self.voxels.shape) < 2:
            raise FormatError(
                f"{self.uri or self.name}: a volume of shape {tuple(self.voxels.shape)}; a tomogram has three axes (z, y, x), "
                "each of at least two voxels: give one volume per file"
            )
        if not all(math.isfinite(v) and v > 0 for v in self.voxel_angstrom):
            raise FormatError(
                f"{self.uri or self.name}: voxel size {self.voxel_angstrom} angstrom; it must be positive along every axis: "
                "write it into the header, or give voxel_angstrom"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along z, y, x."""
        d, h, w = self.voxels.shape
        return int(d), int(h), int(w)

    @property
    def voxel_size_angstrom(self) -> float:
        """The one edge length of a cubic voxel.

        Raises
        ------
        FormatError
            If the voxel is not a cube to one part in a thousand.
        """
        low, high = min(self.voxel_angstrom), max(self.voxel_angstrom)
        if high - low > ANISOTROPY_TOLERANCE * high:
            raise FormatError(
                f"{self.uri or self.name}: voxels of {self.voxel_angstrom} angstrom (z, y, x) are not cubes; "
                "pickers need cubic voxels: resample the tomogram, or correct the header if it is wrong"
            )
        return float(np.mean(self.voxel_angstrom))

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """Return the values, all of them or those in `box`, as an array `(d, h, w)` in this machine's byte order.

        Raises
        ------
        FormatError
            If the file holds less than it promised, or something that cannot be decoded.
        """
        values = np.asarray(self.voxels[box if box is not None else EVERYTHING])
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def bytes_of(self, box: Box) -> int:
        """Return how many bytes reading a box asks for, before compression: of whole chunks and rows where files have those."""
        if isinstance(self.voxels, Stored):
            return self.voxels.bytes_of(box)
        lengths = [len(range(*part.indices(length))) for part, length in zip(box, self.shape, strict=True)]
        return math.prod(lengths) * self.voxels.dtype.itemsize

    @property
    def bytes_read(self) -> int:
        """How many bytes of its file were read since it was opened, as they are stored; 0 for values in memory."""
        return self.voxels.bytes_read if isinstance(self.voxels, Stored) else 0


@dataclass(frozen=True)
class Particle:
    """A kind of particle: its name, its radius, and its weight in the CZII metric."""

    name: str
    radius_angstrom: float
    metric_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not self.radius_angstrom > 0:
            raise ValueError(f"particle {self.name!r} with radius {self.radius_angstrom}: give a name and a positive radius in angstrom")


CZII_PARTICLES = (
    Particle("apo-ferritin", 60.0, 1.0),
    Particle("beta-amylase", 65.0, 0.0),
    Particle("beta-galactosidase", 90.0, 2.0),
    Particle("ribosome", 150.0, 1.0),
    Particle("thyroglobulin", 130.0, 2.0),
    Particle("virus-like-particle", 135.0, 1.0),
)
"""The six classes of the CZII challenge, in its order, with its radii and weights (Peck et al. 2025)."""


@dataclass(frozen=True)
class Picks:
    """Positions in one tomogram, each with a class and a score, as columns of equal length.

    Attributes
    ----------
    run
        Name of the run (tomogram) that the positions belong to.
    positions_zyx
        `(n, 3)` float64, angstrom from the volume's corner.
    names
        `(n,)` class name of each.
    scores
        `(n,)` float64; 1 for curated positions.
    """

    run: str
    positions_zyx: NDArray[np.float64]
    names: NDArray[np.str_]
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions_zyx, dtype=np.float64).reshape(-1, 3)
        names = np.asarray(self.names, dtype=np.str_).reshape(-1)
        scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        if len(scores) == 0:
            scores = np.ones(len(positions))
        if not len(positions) == len(names) == len(scores):
            raise ValueError(f"picks of {self.run}: {len(positions)} positions, {len(names)} names and {len(scores)} scores must be equally many")
        if not np.isfinite(positions).all():
            raise FormatError(f"picks of {self.run}: a position is not a finite number; correct or remove it")
        object.__setattr__(self, "positions_zyx", positions)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return len(self.positions_zyx)

    def __getitem__(self, keep: Any) -> Picks:
        """Return the picks that an index array, a mask or a slice keeps."""
        return replace(self, positions_zyx=self.positions_zyx[keep], names=self.names[keep], scores=self.scores[keep])

    def of(self, name: str) -> Picks:
        """Return the picks of one class."""
        return self[self.names == name]

    def highest(self, numbers: Mapping[str, int]) -> Picks:
        """Return of each class named the so many picks that score highest, of equals the first, and all of the others, in their order."""
        keep = np.ones(len(self), dtype=np.bool_)
        for name, number in numbers.items():
            members = np.flatnonzero(self.names == name)
            keep[members[np.argsort(-self.scores[members], kind="stable")[number:]]] = False
        return self[keep]

    @staticmethod
    def concatenate(run: str, parts: Sequence[Picks]) -> Picks:
        """Return all picks of `parts` as picks of `run`, in order."""
        if not parts:
            return Picks(run, np.empty((0, 3)), np.empty(0, dtype=np.str_))
        return Picks(
            run,
            np.concatenate([p.positions_zyx for p in parts]),
            np.concatenate([p.names for p in parts]),
            np.concatenate([p.scores for p in parts]),
        )


def check_picks_fit(picks: Picks, tomogram: Tomogram) -> None:
    """Stop where picks cannot belong to a tomogram.

    Raises
    ------
    FormatError
        If the run names differ, or a position lies outside the volume by more than a voxel: the sign of swapped axes, of
        voxels given as angstrom, of another voxel size or of another tomogram.
    """
    where = tomogram.uri or tomogram.name
    if picks.run and tomogram.name and picks.run != tomogram.name:
        raise FormatError(f"{where}: these are picks of {picks.run!r}, the tomogram is {tomogram.name!r}; give the picks file of this tomogram")
    if len(picks) == 0:
        return
    extent = np.multiply(tomogram.shape, tomogram.voxel_angstrom)
    outside = ((picks.positions_zyx < -np.asarray(tomogram.voxel_angstrom)) | (picks.positions_zyx > extent + tomogram.voxel_angstrom)).any(axis=1)
    if outside.any():
        first = picks.positions_zyx[outside][0]
        raise FormatError(
            f"{where}: {int(outside.sum())} of {len(picks)} picks lie outside the volume, the first at z, y, x = "
            f"{first[0]:.1f}, {first[1]:.1f}, {first[2]:.1f} angstrom where the volume ends at "
            f"{extent[0]:.1f}, {extent[1]:.1f}, {extent[2]:.1f}; check the axis order, the unit (angstrom), the voxel size and that "
            "the picks belong to this tomogram"
        )
