"""Spaces: what a range and choices mean, what is refused, and that every shipped one fits the job that it was written for."""

import re
from pathlib import Path
from typing import Any

import pytest

from tomoray.config import ConfigError, dump_settings, read_settings, read_settings_text
from tomoray.jobs import JOBS, TuneJob
from tomoray.search import COMPARABLE, FILLED_IN, grid, variants
from tomoray.spaces import TRIALS, ParameterSettings, SpaceSettings, read_space

REPOSITORY = Path(__file__).parents[2]
SPACES = sorted((REPOSITORY / "tune_spaces").glob("*.toml"))
SWEEPS = sorted((REPOSITORY / "jobs").glob("tune*.toml"))


def parameter(**given: Any) -> ParameterSettings:
    return ParameterSettings.model_validate(given)


def test_whole_numbers_stay_whole_and_others_do_not() -> None:
    """Planted: 1 read as 1.0, which `epochs` or `views` would refuse."""
    assert parameter(low=1, high=4).is_whole
    assert parameter(low=2, high=8, step=2).grid() == (2, 4, 6, 8)
    assert all(type(value) is int for value in parameter(low=2, high=8, step=2).grid())
    assert not parameter(low=1, high=4.0).is_whole
    assert not parameter(low=1, high=4, step=0.5).is_whole
    assert [type(value) for value in parameter(choices=[3, 2.0, "3", True]).choices] == [int, float, str, bool]


def test_a_grid_reaches_its_last_step_in_spite_of_rounding() -> None:
    """Planted: 0.6 / 0.2 steps, which are 2.9999999999999996, rounded down to two."""
    assert parameter(low=0.1, high=0.7, step=0.2).grid() == pytest.approx((0.1, 0.3, 0.5, 0.7))
    assert parameter(low=0.0, high=1.0, step=0.4).grid() == pytest.approx((0.0, 0.4, 0.8))
    assert parameter(low=0.0, high=1.0).grid() == ()
    assert parameter(low=1, high=100, log=True).grid() == ()
    assert parameter(choices=["a", "b"]).grid() == ("a", "b")


def test_a_range_says_what_it_is() -> None:
    assert str(parameter(low=0.1, high=10, log=True)) == "0.1 to 10 (log)"
    assert str(parameter(low=0, high=1, step=0.25)) == "0 to 1 in steps of 0.25"
    assert str(parameter(choices=["soft", 4])) == "one of soft, 4"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither choices nor both of low and high are given; give choices = [...], or low = ... and high = ..."),
        ({"low": 1}, "neither choices nor both of low and high are given"),
        ({"low": 2, "high": 2}, "low is 2 and high is 2; low must be less: exchange them"),
        ({"low": 0, "high": 2, "log": True}, "low must be above 0 and no step be given: correct it, or leave out log"),
        ({"low": 1, "high": 2, "log": True, "step": 0.5}, "low must be above 0 and no step be given"),
        ({"low": 1, "high": 2, "step": 3}, "step is 3; it must be above 0 and at most high - low: correct it"),
        ({"choices": [1]}, "choices are [1]; there must be two or more, all different"),
        ({"choices": [1, 2, 1]}, "there must be two or more, all different: add one, or remove the key"),
        ({"choices": [1, 2], "low": 1}, "choices and a range are given; it must be one of them: remove the other"),
    ],
)
def test_a_range_that_means_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter(**given)


def test_a_space_is_read_with_quoted_keys_and_with_bare_ones() -> None:
    quoted = 'base = "jobs/train_x.toml"\n[space]\n"method.views" = { choices = [1, 4] }\nepochs = { low = 1, high = 3 }\n'
    bare = 'base = "jobs/train_x.toml"\n[space]\nmethod.views = { choices = [1, 4] }\nepochs = { low = 1, high = 3 }\n'
    space = read_settings_text(SpaceSettings, quoted, "space")
    assert list(space.space) == ["method.views", "epochs"]
    assert read_settings_text(SpaceSettings, bare, "space") == space
    assert read_settings_text(SpaceSettings, dump_settings(space), "again") == space
    assert space.verb == "train"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "jobs/score.toml"\nspace = { a = { choices = [1, 2] } }', "its verb is 'score'; it must be a job that a trial can be, train_*.toml"),
        ('base = "jobs/pick.toml"\nspace = {}', "space = {}: Dictionary should have at least 1 item"),
        ('base = "jobs/pick.toml"\nspace = { views = { choises = [1, 2] } }', "unknown key 'space.views.choises'; did you mean 'choices'?"),
        ('base = "jobs/pick.toml"\nspace = { views = 4 }', "space.views = 4: "),
        ("space = { views = { choices = [1, 4] } }", "base"),
    ],
)
def test_a_space_that_is_none_is_told_with_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings_text(SpaceSettings, text, "space.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("space.toml: ")


def test_a_space_that_is_not_there_is_told_with_where_some_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: there is no such space; see the folder tune_spaces/ for examples, or give a table"):
        read_space(str(tmp_path / "none.toml"))


def test_there_are_shipped_spaces_and_sweeps_over_them() -> None:
    assert [path.stem for path in SPACES] == ["inference", "loss_weights", "thresholds", "tomopicker"]
    assert {Path(str(read_settings(TuneJob, path).space)).stem for path in SWEEPS} == {"inference", "loss_weights", "thresholds"}


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_space_is_one_of_its_base_job(path: Path) -> None:
    """Every choice, and both ends of every range, make a job. Planted: `method.ema_rat`; a view of 2."""
    assert path.read_text().startswith("# "), "a space says what it asks and how long that takes"
    assert "\n# " in path.read_text()
    space = read_space(str(path))
    base = REPOSITORY / space.base
    for key, parameter in space.space.items():
        for value in parameter.ends:
            job = read_settings(JOBS[space.verb], base, {key: value})
            found: Any = job
            for part in key.split("."):
                found = found[part] if isinstance(found, dict) else getattr(found, part)
            assert found == value
    assert not {key.partition(".")[0] for key in space.space} & {*FILLED_IN[space.verb], *COMPARABLE[space.verb]}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_can_run_all_that_its_space_allows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    job = read_settings(TuneJob, path)
    space = job.read_space()
    jobs = list(variants(job, space))
    assert len(jobs) == sum(len(parameter.ends) for parameter in space.space.values())
    assert all(isinstance(one, JOBS[space.verb]) for one in jobs)
    assert job.search != "grid" or len(grid(space)) <= job.trials


def test_what_a_trial_can_be_is_a_verb() -> None:
    assert set(TRIALS) == set(FILLED_IN) == set(COMPARABLE) <= set(JOBS)
