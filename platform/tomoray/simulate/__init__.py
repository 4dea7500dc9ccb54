"""Tomograms with known truth: particles in ice, seen through a missing wedge, a CTF and coloured noise.

What is imitated are the denoised tomograms of the CZII challenge: their classes, radii, numbers of particles, voxel size, sign and scale of
values. It is a model of the image, not of the instrument: the optics act on the whole volume in Fourier space, once, and no tilt series is
made. Whatever is learnt on these volumes must be shown again on real ones.

The steps are placing (where everything lies; cheap, no voxels), drawing the density, and imaging it. Placing, optics and noise have random
streams of their own, so that two scenes that differ only in noise or domain shift hold the same particles at the same places.
"""

from tomoray.simulate.dataset import simulate_tomogram, write_dataset
from tomoray.simulate.layout import place
from tomoray.simulate.scene import CZII_PER_UM3, Scene

__all__ = ["CZII_PER_UM3", "Scene", "place", "simulate_tomogram", "write_dataset"]
