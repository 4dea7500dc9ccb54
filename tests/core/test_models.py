"""Registered models: their addresses, and jobs in which folders take their place."""

import pytest

from tomoray.config import ConfigError
from tomoray.jobs import DemoJob, IndexJob, PickJob, ThresholdJob, TrainJob, TuneJob
from tomoray.models import Model, is_model, parse_model, with_checkpoints


@pytest.mark.parametrize("model", [Model("picker", alias="champion"), Model("my picker.v2", version="13")])
def test_addresses_round_trip(model: Model) -> None:
    assert parse_model(str(model)) == model
    assert is_model(str(model))


@pytest.mark.parametrize("rest", ["", "picker", "picker/", "picker/latest", "a@b@c", "a/3/x", "a@b/3"])
def test_other_addresses_are_refused(rest: str) -> None:
    """A name alone does not say which; stages are MLflow's past."""
    with pytest.raises(ConfigError, match=r"must read models:/NAME@ALIAS or models:/NAME/3"):
        parse_model(f"models:/{rest}")


def test_folders_take_the_place_of_models_wherever_a_job_names_them() -> None:
    """In lists, in jobs within a job, and nowhere else. Planted: only the outermost key."""
    asked: list[str] = []

    def find(address: str) -> str:
        asked.append(address)
        return f"/models/{address[-1]}"

    a, b = "models:/m@a", "models:/m@b"
    assert with_checkpoints(PickJob(checkpoint=a), find) == PickJob(checkpoint="/models/a")
    assert with_checkpoints(PickJob(checkpoint=("/x", b)), find) == PickJob(checkpoint=("/x", "/models/b"))
    assert with_checkpoints(ThresholdJob(checkpoint=a), find).checkpoint == "/models/a"
    assert with_checkpoints(TrainJob(start_from=b), find).start_from == "/models/b"
    sweep = TuneJob(train=TrainJob(start_from=a), pick=PickJob(checkpoint=b))
    assert with_checkpoints(sweep, find) == TuneJob(train=TrainJob(start_from="/models/a"), pick=PickJob(checkpoint="/models/b"))
    asked.clear()
    for job in (IndexJob(source=a), PickJob(checkpoint="s3://b/picker"), DemoJob(), TuneJob(register_as="m")):
        assert with_checkpoints(job, find) is job
    assert not asked


def test_a_champion_must_have_a_name() -> None:
    with pytest.raises(ValueError, match="register_as must name it"):
        TrainJob(champion=True)
    assert TrainJob(champion=True, register_as="m").champion
