"""What is in simulated tomograms and how they are seen: the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tomoray.config import ConfigError
from tomoray.tomogram import CZII_PARTICLES, Contrast, Particle

CZII_PER_UM3 = {
    "apo-ferritin": 630.0,
    "beta-amylase": 140.0,
    "beta-galactosidase": 180.0,
    "ribosome": 640.0,
    "thyroglobulin": 425.0,
    "virus-like-particle": 136.0,
}
"""Particles per cubic micrometre of tomogram, the mean of three CZII training tomograms (of 0.0733 cubic micrometres each)."""

DEFAULT_NOISE = 0.3


@dataclass(frozen=True)
class Scene:
    """What is in the tomograms and how they are seen.

    Attributes
    ----------
    shape_zyx
        Voxels along each axis, even.
    voxel_angstrom
        Edge of a voxel.
    particles
        The classes.
    per_um3
        Expected number of each class per cubic micrometre of tomogram; the real number is Poisson distributed.
    crowding
        Factor on `per_um3`.
    packing
        Two particles are at least `packing` times the sum of their radii apart; 1 for no overlap.
    ice
        The middle part of the depth that is ice; particles lie in it with their whole radius.
    membranes_per_um3, gold_per_um3
        Distractors: vesicles (cut off where the ice ends, which leaves patches) and gold beads, which particles avoid.
    noise
        Standard deviation of the noise over the density of a particle (averaged over the particle's mass, before wedge, CTF and envelope).
        It is a fixed reference: the noise of a tomogram does not depend on what is in it. 0 for none.
    tilt_deg
        The wedge is missing beyond tilts of +- this about the y axis, the beam being along z; 90 for no missing wedge.
    ctf
        Whether there is a CTF (300 kV, 2.7 mm, defocus 2.5 to 4.5 micrometres, another in every tomogram) and its deconvolution.
    resolution_angstrom
        Signal and noise fall to 1/e at this spacing, as denoising leaves them; 0 for no limit.
    domain_shift
        0 to 1: redder noise, a wider wedge, more defocus, more blur, another scale and offset of values. The shifted tomograms are also
        harder in themselves: what a picker loses to the shift is told by one that was trained on shifted tomograms, not by the unshifted score.
    contrast
        Whether particles are "dark" (negative, as CZII's) or "bright".
    maps
        MRC maps (protein bright) by class, drawn in place of the built-in shapes.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    shape_zyx: tuple[int, int, int] = (64, 256, 256)
    voxel_angstrom: float = 10.012
    particles: tuple[Particle, ...] = CZII_PARTICLES
    per_um3: Mapping[str, float] = field(default_factory=lambda: dict(CZII_PER_UM3))
    crowding: float = 1.0
    packing: float = 1.0
    ice: float = 0.9
    membranes_per_um3: float = 80.0
    gold_per_um3: float = 60.0
    noise: float = DEFAULT_NOISE
    tilt_deg: float = 60.0
    ctf: bool = True
    resolution_angstrom: float = 30.0
    domain_shift: float = 0.0
    contrast: Contrast = "dark"
    maps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.shape_zyx) != 3 or any(n < 16 or n % 2 for n in self.shape_zyx):
            raise ConfigError(f"shape_zyx = {self.shape_zyx}: each of the three sizes must be even and at least 16; round them up to even numbers")
        bounds = {
            "voxel_angstrom": (self.voxel_angstrom, 1.0, 100.0),
            "crowding": (self.crowding, 0.0, 100.0),
            "packing": (self.packing, 0.1, 10.0),
            "ice": (self.ice, 0.01, 1.0),
            "membranes_per_um3": (self.membranes_per_um3, 0.0, 1e6),
            "gold_per_um3": (self.gold_per_um3, 0.0, 1e6),
            "noise": (self.noise, 0.0, 1e3),
            "tilt_deg": (self.tilt_deg, 1.0, 90.0),
            "resolution_angstrom": (self.resolution_angstrom, 0.0, 1e3),
            "domain_shift": (self.domain_shift, 0.0, 1.0),
            **{f"per_um3[{name!r}]": (number, 0.0, 1e6) for name, number in self.per_um3.items()},
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value}: it must lie between {low:g} and {high:g}; correct it in the scene")
        if self.contrast not in ("dark", "bright"):
            raise ConfigError(f"contrast = {self.contrast!r}: it must be 'dark' or 'bright'; CZII's particles are dark")
        names = [p.name for p in self.particles]
        if lacking := [name for name in names if name not in self.per_um3]:
            raise ConfigError(f"per_um3: no number for {', '.join(lacking)}; every class needs one: give 0 for a class that shall be absent")
        if len(set(names)) < len(names):
            raise ConfigError(f"particles: {', '.join(names)} are not all different; a class may stand there once: rename or remove the second")
        if unknown := sorted(set(self.maps) - set(names)):
            raise ConfigError(f"maps: {', '.join(unknown)} is no class of this scene; the classes are {', '.join(names)}: correct the name")
        slab, extent = self.ice * self.extent_angstrom[0], self.extent_angstrom[1:].min()
        for p in self.particles:
            if self.per_um3[p.name] * self.crowding > 0 and 2 * p.radius_angstrom > min(slab, extent):
                raise ConfigError(
                    f"shape_zyx = {self.shape_zyx}: {slab:.0f} angstrom of ice and {extent:.0f} angstrom in plane, but {p.name} has a diameter of "
                    f"{2 * p.radius_angstrom:g}; it must fit: make the volume larger, or set per_um3 of this class to 0"
                )

    @property
    def extent_angstrom(self) -> NDArray[np.float64]:
        """Edge lengths of the volume along z, y, x."""
        return np.multiply(self.shape_zyx, self.voxel_angstrom)
