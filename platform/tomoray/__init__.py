"""tomoray: training and batch particle picking for cryo-electron tomography, on Ray."""

__version__ = "0.1.0"
