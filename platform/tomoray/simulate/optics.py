"""How a density is seen: missing wedge, CTF and its deconvolution, limit of resolution, coloured noise.

All of it is one product in Fourier space, taken plane by plane so that a full tomogram needs little more than its own memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from tomoray.simulate.scene import DEFAULT_NOISE, Scene
from tomoray.simulate.shapes import Array, Points

BACKGROUND_SD = 4.5e-6  # of CZII's denoised tomograms
UNIT = BACKGROUND_SD / DEFAULT_NOISE  # grey value of protein before imaging: the noise of a default scene has CZII's s.d.

WAVELENGTH_ANGSTROM = 0.01969  # 300 kV
SPHERICAL_ABERRATION_ANGSTROM = 2.7e7
AMPLITUDE_CONTRAST = 0.07
WIENER = 0.015  # of the CTF deconvolution: what the CTF keeps less of than its root is not restored
TABLE = 1 << 17  # steps in k^2 of the radial filters


@dataclass(frozen=True)
class Optics:
    """How one tomogram is seen; every tomogram draws its own."""

    tilt_deg: float
    defocus_angstrom: float
    resolution_angstrom: float
    red_angstrom: float
    red_power: float
    noise: float
    scale: float
    offset: float

    @staticmethod
    def sample(scene: Scene, rng: np.random.Generator) -> Optics:
        """Return the optics of one tomogram: noise power is white below the spacing `red_angstrom` and rises as `k^-red_power` above it."""
        shift = scene.domain_shift
        return Optics(
            tilt_deg=scene.tilt_deg if scene.tilt_deg == 90 else scene.tilt_deg * (1 - 0.2 * shift),
            defocus_angstrom=rng.uniform(25_000, 45_000) + 25_000 * shift,
            resolution_angstrom=scene.resolution_angstrom * rng.uniform(0.9, 1.1) * (1 + 0.25 * shift),
            red_angstrom=rng.uniform(60, 120) * (1 - 0.3 * shift),
            red_power=rng.uniform(1.0, 2.0) + 0.4 * shift,
            noise=scene.noise,
            scale=(1 + shift) * (-UNIT if scene.contrast == "dark" else UNIT),
            offset=2 * BACKGROUND_SD * shift,
        )

    def filters(self, k2: Points, ctf: bool) -> tuple[Array, Array]:
        """Return the factors on signal and noise at squared spatial frequencies `k2`, in inverse square angstrom.

        What the camera sees is `ctf * signal + noise`; deconvolution divides both by the CTF as far as `WIENER` allows. So the zeros of
        the CTF stay weak in the signal, and the noise is strongest where the CTF restores most: at low frequencies.
        """
        limit = np.exp(-k2 * self.resolution_angstrom**2)
        red = np.sqrt(1 + (k2 * self.red_angstrom**2 + 0.03) ** (-self.red_power / 2))
        if not ctf:
            return limit.astype(np.float32), (red * limit).astype(np.float32)
        phase = np.pi * WAVELENGTH_ANGSTROM * k2 * (self.defocus_angstrom - 0.5 * SPHERICAL_ABERRATION_ANGSTROM * WAVELENGTH_ANGSTROM**2 * k2)
        seen = np.abs(np.sin(phase + np.arcsin(AMPLITUDE_CONTRAST)))
        restored = limit * seen / (seen**2 + WIENER) * (1 + WIENER)
        return (restored * seen).astype(np.float32), (restored * red).astype(np.float32)


def image(density: Array, scene: Scene, optics: Optics, rng: np.random.Generator) -> Array:
    """Return the tomogram `(d, h, w)` of a density: imaged, with noise, in the sign and scale of CZII's values.

    The noise has exactly the standard deviation `optics.noise` (times `UNIT`) in expectation, whatever its colour and the wedge.
    """
    spectrum = scipy.fft.rfftn(density, workers=1)
    h, w = density.shape[1:]
    kz, ky, kx = scipy.fft.fftfreq(len(density)), scipy.fft.fftfreq(h)[:, None], scipy.fft.rfftfreq(w)
    to_row = (TABLE - 1) / 0.75  # k^2 is at most 3/4 of an inverse square voxel
    signal, colour = optics.filters(np.arange(TABLE) / to_row / scene.voxel_angstrom**2, scene.ctf)

    def plane(k: float) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        return ((k**2 + ky**2 + kx**2) * to_row).astype(np.int32), measured(k, kx, optics.tilt_deg)

    twice = np.full(len(kx), 2.0)  # a real field's spectrum is kept by half; these two planes are their own mirror
    twice[[0, -1]] = 1.0
    power = sum(float((np.square(colour[row]) * (kept * twice)).sum()) for row, kept in map(plane, kz))
    level = optics.noise * density.size / np.sqrt(2 * power)
    spread = np.sqrt(2 / twice, dtype=np.float32) * np.float32(level)  # the inverse transform drops half the noise of those two planes
    for k, values in zip(kz, spectrum, strict=True):
        row, kept = plane(k)
        values *= signal[row]
        if level > 0:
            deviates = rng.standard_normal((h, len(kx), 2), dtype=np.float32)
            values += deviates.view(np.complex64)[..., 0] * colour[row] * spread
        values *= kept
    voxels: Array = scipy.fft.irfftn(spectrum, s=density.shape, overwrite_x=True, workers=1)
    voxels *= np.float32(optics.scale)
    voxels += np.float32(optics.offset)
    return voxels


def measured(kz: float, kx: Points, tilt_deg: float) -> NDArray[np.bool_]:
    """Return at which frequencies some tilt about y has seen the specimen: a projection along the tilted beam fills the plane across it."""
    if tilt_deg == 90:
        return np.ones(len(kx), dtype=np.bool_)
    seen: NDArray[np.bool_] = np.abs(kz) <= np.abs(kx) * np.tan(np.deg2rad(tilt_deg))
    return seen
