"""The particles of the cluster tests, and a training job small enough for them."""

from pathlib import Path

from tomoray.config import read_settings
from tomoray.jobs import TrainJob
from tomoray.tomogram import Particle

PARTICLES = (Particle("ribosome", 150.0), Particle("virus-like-particle", 135.0))


def small_train_job(catalogue: str, output: Path | str, **changes: object) -> TrainJob:
    """Return a job that trains a tiny network on the small data set; `changes` have dotted keys written with `__`."""
    settings = {
        "catalogue": catalogue,
        "output": str(output),
        "particles": [{"name": p.name, "radius_angstrom": p.radius_angstrom} for p in PARTICLES],
        "epochs": 6,
        "steps_per_epoch": 25,
        "network.width": 8,
        "network.blocks": [1, 1, 1],
        "crops.patch_vox": 48,
        "crops.batch_size": 4,
        "crops.per_visit": 8,
        "crops.shuffle_crops": 16,
        "optimizer.learning_rate": 0.003,
        "workers.count": 2,
        "validation.every_epochs": 3,
        "validation.tile_vox": 48,
    }
    return read_settings(TrainJob, overrides=settings | {key.replace("__", "."): value for key, value in changes.items()})
