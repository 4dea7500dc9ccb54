"""Densities of single particles: analytic ones built in for the six CZII classes, or those of MRC maps.

A built-in particle is a sum of isotropic Gaussian blobs. Such a blob stays a product of three one-dimensional Gaussians however the
particle is turned, so a particle at any orientation, position and voxel size is exact and costs one small matrix product. The shapes
imitate size, hollowness and symmetry of the real complexes; they are not structures.

Every particle is scaled to the same contrast: its density, averaged over its own mass, is `CONTRAST` of its class. Maps of unknown units
can so be mixed, and a map and the built-in shape of a class are equally visible. (Three maps in units of mass, of 200 to 2700 kDa at
10 angstrom, differ in this average by 20 % only: it is the density of protein.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoray.config import ConfigError

Array = NDArray[np.float32]
Points = NDArray[np.float64]

CONTRAST = {"ribosome": 1.5}  # nucleic acid scatters more than protein; 1 for all others
MAP_EDGE = 0.01  # of a map's maximum; what is less does not count towards its extent
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


class Shape(Protocol):
    """A density that can be drawn at any orientation."""

    @property
    def extent_angstrom(self) -> float:
        """Distance from the centre beyond which there is nothing."""
        ...

    def draw(self, rotation: Points, centre_zyx: Points, box_vox: int, voxel_angstrom: float) -> Array:
        """Return a cube of `box_vox` voxels with the particle, turned, centred at the voxel index `centre_zyx` (not an integer)."""
        ...


@dataclass(frozen=True)
class Blobs:
    """A sum of isotropic Gaussians about its centre of mass.

    Attributes
    ----------
    centres_zyx
        `(n, 3)` angstrom.
    sigma_angstrom
        Width of every blob.
    peak
        Density of one blob at its centre.
    """

    centres_zyx: Points
    sigma_angstrom: float
    peak: float = 1.0

    @property
    def extent_angstrom(self) -> float:
        return float(np.linalg.norm(self.centres_zyx, axis=1).max() + 3 * self.sigma_angstrom)

    def draw(self, rotation: Points, centre_zyx: Points, box_vox: int, voxel_angstrom: float) -> Array:
        centres = self.centres_zyx @ rotation.T / voxel_angstrom + centre_zyx
        sigma = self.sigma_angstrom / voxel_angstrom
        steps = (np.arange(box_vox) - centres[:, :, None]) / sigma  # (n, 3, box)
        z, y, x = np.exp(-0.5 * steps**2).astype(np.float32).transpose(1, 2, 0)  # (box, n) each
        plane = (z[:, None] * y[None]).reshape(-1, len(centres))
        cube: Array = self.peak * (plane @ x.T).reshape(box_vox, box_vox, box_vox)
        return cube.astype(np.float32, copy=False)

    def mean_density(self) -> float:
        """Return the density averaged over the mass, in closed form: two blobs at distance d overlap by `exp(-d^2 / 4 sigma^2) / 2^1.5`."""
        apart = np.linalg.norm(self.centres_zyx[:, None] - self.centres_zyx[None], axis=-1)
        return float(self.peak * np.exp(-0.25 * (apart / self.sigma_angstrom) ** 2).sum() / 2**1.5 / len(apart))


@dataclass(frozen=True)
class Map:
    """A map on a grid, prepared for cubic splines, about the centre of its box."""

    splines: Array
    voxel_angstrom: float
    extent_angstrom: float

    def draw(self, rotation: Points, centre_zyx: Points, box_vox: int, voxel_angstrom: float) -> Array:
        into_map = rotation.T * (voxel_angstrom / self.voxel_angstrom)
        shift = (np.array(self.splines.shape) - 1) / 2 - into_map @ centre_zyx
        box = (box_vox, box_vox, box_vox)
        cube: Array = ndimage.affine_transform(self.splines, into_map, shift, output_shape=box, order=3, prefilter=False, output=np.float32)
        return cube


def load_shapes(names: tuple[str, ...], maps: Mapping[str, str], voxel_angstrom: float) -> dict[str, Shape]:
    """Return the shape of every class: its map if one is given, else the built-in one.

    Raises
    ------
    ConfigError
        If a class has neither.
    """
    lacking = [name for name in names if name not in maps and name not in BUILT_IN]
    if lacking:
        raise ConfigError(
            f"maps: none for {', '.join(lacking)}; built-in shapes exist for {', '.join(BUILT_IN)} only: give an MRC map for the others"
        )
    return {name: load_map(maps[name], voxel_angstrom, _contrast(name)) if name in maps else built_in(name) for name in names}


def load_map(uri: str, voxel_angstrom: float, contrast: float = 1.0) -> Map:
    """Return the density of an MRC map (protein bright), ready to be drawn at `voxel_angstrom` without aliasing.

    Raises
    ------
    ConfigError
        If nothing in the map is positive.
    FormatError
        If it is no MRC map of cubic voxels.
    """
    from tomoray.formats import open_tomogram

    tomogram = open_tomogram(uri)
    density = tomogram.read().astype(np.float32)
    spacing = tomogram.voxel_size_angstrom
    mass = np.clip(density, 0, None)
    if not mass.max() > 0:
        raise ConfigError(f"{uri}: no positive value in this map; protein must be bright in a map that is drawn: change its sign")
    density *= contrast * float(mass.sum() / np.square(mass).sum())
    if voxel_angstrom > spacing:  # a coarser grid cannot hold the finest detail of the map
        density = ndimage.gaussian_filter(density, 0.5 * np.sqrt((voxel_angstrom / spacing) ** 2 - 1))
    centre = (np.array(density.shape) - 1) / 2
    extent = spacing * float(np.linalg.norm(np.argwhere(mass > MAP_EDGE * mass.max()) - centre, axis=1).max() + 1)
    return Map(ndimage.spline_filter(density, order=3, output=np.float32), spacing, extent)


def built_in(name: str) -> Blobs:
    """Return the built-in shape of a CZII class."""
    centres, sigma = BUILT_IN[name]()
    blobs = Blobs(centres - centres.mean(axis=0), sigma)
    return Blobs(blobs.centres_zyx, sigma, _contrast(name) / blobs.mean_density())


def gold_bead(radius_angstrom: float, contrast: float) -> Blobs:
    """Return a solid ball of uniform density."""
    spacing = radius_angstrom / 4
    return Blobs(_fill((radius_angstrom - spacing,) * 3, spacing), spacing, contrast / (2 * np.pi) ** 1.5)


def _contrast(name: str) -> float:
    return CONTRAST.get(name, 1.0)


def _apo_ferritin() -> tuple[Points, float]:
    return _sphere(24, 46.0), 11.0  # 24 subunits, hollow


def _beta_amylase() -> tuple[Points, float]:
    return _d2([(8.0, 24.0, 28.0), (-6.0, 14.0, 36.0)]), 12.0  # a small flat tetramer


def _beta_galactosidase() -> tuple[Points, float]:
    return _d2([(8.0, 22.0, 68.0), (18.0, 42.0, 50.0), (20.0, 14.0, 40.0), (10.0, 34.0, 22.0)]), 13.0  # a long tetramer with D2 symmetry


def _ribosome() -> tuple[Points, float]:
    large = _fill((100.0, 105.0, 85.0), 27.0)
    small = _fill((100.0, 60.0, 48.0), 27.0) + np.array([18.0, -20.0, 112.0])  # beside the large subunit, with a cleft between
    stalk = np.array([(-40.0, 118.0, 25.0), (-55.0, 128.0, 40.0), (70.0, 100.0, -35.0)])
    return np.concatenate([large, small, stalk]), 15.0


def _thyroglobulin() -> tuple[Points, float]:
    arm = np.array(
        [(0.0, 14.0, 12.0), (8.0, 24.0, 32.0), (16.0, 28.0, 50.0), (18.0, 20.0, 68.0), (12.0, 4.0, 84.0), (-6.0, -14.0, 98.0), (-16.0, 38.0, 52.0)]
    )
    return np.concatenate([arm, arm * (1.0, -1.0, -1.0)]), 17.0  # a bent body of two equal halves (C2 about z)


def _virus_like_particle() -> tuple[Points, float]:
    return _sphere(180, 118.0), 11.0  # 180 copies of the coat protein, hollow


BUILT_IN: Mapping[str, Callable[[], tuple[Points, float]]] = {
    "apo-ferritin": _apo_ferritin,
    "beta-amylase": _beta_amylase,
    "beta-galactosidase": _beta_galactosidase,
    "ribosome": _ribosome,
    "thyroglobulin": _thyroglobulin,
    "virus-like-particle": _virus_like_particle,
}


def _sphere(n: int, radius: float) -> Points:
    """Return `n` points spread evenly over a sphere (a Fibonacci spiral)."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = GOLDEN_ANGLE * np.arange(n)
    ring = np.sqrt(1 - z**2)
    return radius * np.stack([z, ring * np.sin(angle), ring * np.cos(angle)], axis=1)


def _fill(semi_axes: tuple[float, float, float], spacing: float) -> Points:
    """Return the points of a cubic grid that lie inside an ellipsoid."""
    half = int(max(semi_axes) / spacing) + 1
    grid = spacing * np.stack(np.meshgrid(*(np.arange(-half, half + 1),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    inside: Points = grid[np.square(grid / semi_axes).sum(axis=1) <= 1]
    return inside


def _d2(points: list[tuple[float, float, float]]) -> Points:
    """Return the points and their images under the three two-fold axes."""
    flips = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    return np.concatenate([np.array(points) * flip for flip in flips])
