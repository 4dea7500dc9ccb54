"""Job classes: every default is allowed and documented, everything survives writing and reading, and they agree with what they set."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from tomoray.cli import leaves
from tomoray.config import ConfigError, Settings, dump_settings, read_settings_text
from tomoray.jobs import JOBS, DemoJob, PickJob, SimulateJob, TrainJob
from tomoray.methods import METHODS
from tomoray.networks import NETWORKS, build_network
from tomoray.picking import FLOOR
from tomoray.tiles import Window
from tomoray.tomogram import CZII_PARTICLES

FULL: dict[str, dict[str, Any]] = {
    "simulate": {
        "noise": 0.25,
        "shape_zyx": [32, 64, 48],
        "per_um3": {"ribosome": 0},
        "maps": {"ribosome": "a.mrc", "b 2.0": "c.mrc"},
        "formats": ["mrc", "zarr"],
    },
    "index": {"validation": ["TS_1", "TS_2"], "test": 0.5, "kinds": ["denoised", "10.012-*"], "voxel_angstrom": 7.84, "contrast": "bright"},
    "ingest": {"patch_vox": 64, "shard_vox": 128, "dtype": "float32"},
    "train": {
        "particles": [{"name": 'a "b"', "radius_angstrom": 1e-05}, {"name": "ü\\n", "radius_angstrom": 60, "metric_weight": 0}],
        "method": {"reduce": "per_class"},
        "network": {"width": 8, "blocks": [1, 2]},
        "crops": {"patch_vox": 64},
        "workers": {"gpu": True, "count": 3},
        "optimizer": {"learning_rate": 3e-4},
        "clicks": 100,
        "validation": {"expected_particles": {"ü\\n": 250.5}},
    },
    "pick": {"thresholds": {"ribosome": 0.5, "virus-like-particle": 0, "a.b": 1}, "views": 8, "splits": ["test"], "checkpoint": "s3://bucket/runs/x"},
    "threshold": {"thresholds": {"a.b": 1}, "numbers": {"c": 2500}, "checkpoint": ["runs/a", "runs/b"], "copick": False},
    "score": {"particles": [{"name": "x", "radius_angstrom": 3.5}], "splits": ["test", "validation"], "distance_angstrom": 134.8},
    "study": {
        "seeds": [3],
        "train": {"network": {"width": 8}, "particles": [{"name": "x", "radius_angstrom": 3}]},
        "arms": [{"name": "a"}, {"name": "b", "start_from": "a", "changes": {"method.name": "semietpicker", "crops": {"patch_vox": 64}}}],
    },
    "tune": {
        "space": {"base": "jobs/train_x.toml", "space": {"a.b": {"low": 1, "high": 2.5, "log": True}, "c": {"choices": ["x", 1, False]}}},
        "train": {"network": {"width": 8}},
        "threshold": {"regularise": "bootstrap"},
    },
    "demo": {"simulate": {"maps": {"a": "b"}}, "train": {"particles": [{"name": "x", "radius_angstrom": 3}]}, "pick": {"thresholds": {"x": 0.1}}},
}


def settings_of(annotation: Any) -> list[type[Settings]]:
    """The settings classes in a type, be it one or a union of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation] if issubclass(annotation, Settings) else []
    return [found for part in get_args(annotation) for found in settings_of(part)]


@pytest.mark.parametrize("verb", JOBS)
@pytest.mark.parametrize("full", [False, True])
def test_every_job_survives_writing_and_reading(verb: str, full: bool) -> None:
    """Planted: a table of rows written as a list; a key with a dot written bare."""
    given = FULL.get(verb, {}) if full else {}
    job = JOBS[verb].model_validate(given)
    text = dump_settings(job)
    assert read_settings_text(JOBS[verb], text, "again") == job
    if full:
        assert job != JOBS[verb](), "this verb has no example in FULL"


def keys_of(model: type[Settings]) -> Iterator[tuple[str, str | None]]:
    """Every key of a table and of the tables within, with its description."""
    for key, field in model.model_fields.items():
        inner = settings_of(field.annotation)
        if not inner:
            yield f"{model.__name__}.{key}", field.description
        for table in inner:
            yield from keys_of(table)


@pytest.mark.parametrize("verb", JOBS)
def test_every_key_is_explained(verb: str) -> None:
    keys = dict(keys_of(JOBS[verb]))
    assert [key for key, description in keys.items() if not description] == []
    assert len(keys) > 3
    assert all(meaning and default for _, meaning, default in leaves(JOBS[verb]))
    assert all(model.__doc__ for model in (JOBS[verb], *settings_of(JOBS[verb])))


@pytest.mark.parametrize("verb", JOBS)
def test_every_default_is_a_value_that_a_job_file_may_hold(verb: str) -> None:
    """pydantic does not check defaults by itself."""
    text = dump_settings(JOBS[verb]())
    assert read_settings_text(JOBS[verb], text, "defaults") == JOBS[verb]()


@pytest.mark.parametrize(
    ("verb", "text", "message"),
    [
        ("train", "epochs = 1.5", "epochs = 1.5: Input should be a valid integer"),
        ("train", "epochs = 0", "epochs = 0: Input should be greater than 0"),
        ("train", "name = 'a/b'", 'name = "a/b": String should match pattern'),
        ("train", "particles = []", "particles = []: Tuple should have at least 1 item"),
        ("train", "[crops]\npatch_vox = 33", "crops.patch_vox = 33: Input should be a multiple of 2"),
        ("train", "[crops]\npatch_vox = 8", "crops.patch_vox = 8: Input should be greater than or equal to 16"),
        ("train", "[crops]\ncentred_fraction = 1.5", "crops.centred_fraction = 1.5: Input should be less than or equal to 1"),
        ("train", "[network]\nwidth = 7", "network.width = 7: Input should be a multiple of 2"),
        ("train", "[network]\nblocks = []", "network.blocks = []: Tuple should have at least 1 item"),
        ("train", "[optimizer]\nlearning_rate = nan", "optimizer.learning_rate = NaN: Input should be "),
        ("train", "[[particles]]\nname = 'x'\nradius = 3", "particles.0.radius_angstrom = "),
        ("train", "precision = 'float16'", "precision = \"float16\": Input should be 'auto', 'bf16' or 'float32'"),
        ("pick", "tile_vox = 8", "tile_vox is 8; it must be 0 (decided by the voxels there is room for) or at least 16"),
        ("pick", "tile_vox = 97", "tile_vox = 97: Input should be a multiple of 2"),
        ("pick", "overlap = 1", "overlap = 1: Input should be less than 1"),
        ("pick", "views = 2", "views = 2: Input should be 1, 4 or 8"),
        ("pick", "floor = 2", "floor = 2: Input should be less than or equal to 1"),
        ("pick", "thresholds = {ribosome = 'x'}", 'thresholds.ribosome = "x": Input should be a valid number'),
        ("simulate", "shape_zyx = [64, 64]", "shape_zyx.2 = "),
        ("simulate", "contrast = 'grey'", "contrast = \"grey\": Input should be 'dark' or 'bright'"),
        ("index", "validation = 'TS_1'", "validation"),
        ("demo", "[train.crops]\npatch = 3", "unknown key 'train.crops.patch'; did you mean 'patch_vox'?"),
        ("score", "picks = ['a']", 'picks = ["a"]: Input should be a valid string'),
    ],
)
def test_what_would_fail_later_is_refused_now(verb: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings_text(JOBS[verb], text, "job.toml")
    assert message in str(error.value)


def test_the_classes_of_a_job_are_those_of_czii_by_default() -> None:
    assert TrainJob().particle_list() == CZII_PARTICLES
    one = TrainJob.model_validate({"particles": [{"name": "x", "radius_angstrom": 3, "metric_weight": 2}]})
    assert [(p.name, p.radius_angstrom, p.metric_weight) for p in one.particle_list()] == [("x", 3, 2)]


def name_of(model: type[Settings]) -> str:
    return str(model.model_fields["name"].default)


METHOD_SETTINGS = {name_of(model): model for model in settings_of(TrainJob.model_fields["method"].annotation)}


def test_every_method_can_be_asked_for() -> None:
    assert set(METHOD_SETTINGS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_method_are_its_arguments_with_the_same_defaults(name: str) -> None:
    """Planted: a default changed on one side only."""
    options = METHOD_SETTINGS[name]().model_dump(exclude={"name", "supervised"})  # `supervised` is a method of its own
    arguments = {p.name: p.default for p in inspect.signature(METHODS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for known in ("peak_thresholds", "tomogram_vox", "labelled_particles"):  # from the card of the burn-in, and from the catalogue
        arguments.pop(known, None)
    assert options == arguments


NETWORK_SETTINGS = {name_of(model): model for model in settings_of(TrainJob.model_fields["network"].annotation)}


def test_every_network_can_be_asked_for() -> None:
    assert set(NETWORK_SETTINGS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_of_a_network_are_its_arguments_with_the_same_defaults(name: str) -> None:
    options = NETWORK_SETTINGS[name]().model_dump(exclude={"name"})
    arguments = {p.name: p.default for p in inspect.signature(NETWORKS[name]).parameters.values() if p.default is not p.empty}
    assert options == arguments
    with torch.device("meta"):
        assert list(build_network(name, classes=2, **options).parameters())


def test_settings_of_picking_are_the_defaults_of_picking() -> None:
    job, window = PickJob(), Window()
    assert (job.floor, job.overlap, job.views) == (FLOOR, window.overlap, window.views)
    assert TrainJob().validation.floor == FLOOR


def test_the_demo_is_made_of_the_other_jobs() -> None:
    assert {name: field.annotation for name, field in DemoJob.model_fields.items() if name != "output"} == {
        verb: JOBS[verb] for verb in ("simulate", "index", "train", "pick")
    }
    assert SimulateJob().output == JOBS["index"]().source  # type: ignore[attr-defined]
