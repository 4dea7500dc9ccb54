"""What the core's tests share: one torch thread, two kinds of particles, crops that show them, and methods small enough for any machine."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tomoray.methods import Method, activation_of, build_method
from tomoray.networks import AsymmetricUNet
from tomoray.targets import pad_particles
from tomoray.tomogram import Particle

SMALL_AND_LARGE = (Particle("small", 60.0), Particle("large", 100.0))
IN_SHORT_RUNS = {
    "semietpicker": {"ema_rate": 0.3, "consistency_weight": 0.1},  # follow within tens of steps; be heeded little without burn-in
    "tomopicker": {"expected_particles": {"small": 3, "large": 3}, "labelled_particles": {"small": 2, "large": 2}, "tomogram_vox": 32**3},
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums in another order differ in the last bit, and some tests compare to the bit."""
    torch.set_num_threads(1)


@pytest.fixture
def particles() -> tuple[Particle, ...]:
    """Two classes, of 60 and 100 angstrom radius."""
    return SMALL_AND_LARGE


@pytest.fixture
def make_crops() -> Callable[..., dict[str, Tensor]]:
    """A function that returns crops of 10 angstrom voxels with dark balls in noise, `volume` `(b, 1, s, s, s)` and their `particles`."""

    def make(seed: int = 0, count: int = 2, size: int = 32) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed)
        axis = np.arange(size) + 0.5
        volume = 0.3 * rng.normal(size=(count, 1, size, size, size))
        lists = []
        for crop in volume[:, 0]:
            points = np.column_stack([rng.integers(0, 2, 4), rng.uniform(4, size - 4, (4, 3))])
            for label, z, y, x in points:
                distance = np.sqrt((axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2)
                crop -= 2.0 * (distance < SMALL_AND_LARGE[int(label)].radius_angstrom / 20)
            lists.append(torch.tensor(points, dtype=torch.float32))
        return {"volume": torch.tensor(volume, dtype=torch.float32), "particles": pad_particles(lists)}

    return make


@pytest.fixture
def make_method() -> Callable[..., Method]:
    """A function that returns a method of `METHODS` with a tiny network, the same weights for the same seed."""

    def make(name: str = "supervised", *, seed: int = 0, width: int = 4) -> Method:
        torch.manual_seed(seed)
        outputs = len(SMALL_AND_LARGE) + (activation_of(name=name) == "softmax")
        network = AsymmetricUNet(classes=outputs, width=width, blocks=(1, 1))
        return build_method(network, SMALL_AND_LARGE, 10.0, name=name, **IN_SHORT_RUNS.get(name, {}))

    return make
