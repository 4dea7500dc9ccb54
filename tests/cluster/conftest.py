"""One local Ray for all journeys, a small data set, and a picker that finds what is in it."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported, which reads it then
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Iterator

import pytest
from ray_nodes import ray_cluster
from small_jobs import PARTICLES, small_train_job

from tomoray.catalogue import assign_splits, write_catalogue
from tomoray.index import index
from tomoray.simulate import Scene, write_dataset


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of Ray and MLflow are theirs; they are errors in tests/core only."""
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of an MLflow database of these tests' own."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return uri


@pytest.fixture(scope="session")
def local_ray(tracking: str) -> Iterator[None]:
    """The Ray that a person gets on a laptop, shared by the tests."""
    from tomoray.cluster.session import session

    with session():
        yield


@pytest.fixture(scope="module")
def head(tracking: str) -> Iterator[str]:
    """Address of the dashboard of a Ray head with eight logical CPUs, of a module's own."""
    with ray_cluster(head_cpus=8) as cluster:
        yield cluster.dashboard


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Two large classes, clear enough that a small network learns them in a minute."""
    crowded = {"ribosome": 6000.0, "virus-like-particle": 4000.0}
    return Scene(shape_zyx=(48, 96, 96), particles=PARTICLES, per_um3=crowded, noise=0.05, membranes_per_um3=0.0, gold_per_um3=0.0)


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> str:
    """Eight tomograms: four to train on, two to validate on, two to test on."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "simulated", scene, runs=8, seed=1)
    rows, problems = index(folder / "simulated", contrast="dark")
    assert not problems
    uri = str(folder / "catalogue.parquet")
    write_catalogue(uri, assign_splits(rows, validation=["TS_0005", "TS_0006"], test=["TS_0007", "TS_0008"]))
    return uri


@pytest.fixture(scope="session")
def checkpoint(local_ray: None, catalogue: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picker trained by two workers."""
    from tomoray.cluster.train import train

    return train(small_train_job(catalogue, tmp_path_factory.mktemp("runs"), epochs=12)).checkpoint
