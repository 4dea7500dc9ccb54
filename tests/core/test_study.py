"""Studies as jobs: which trials there are, what each trains, and what is refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from tomoray.config import ConfigError, dump_settings, read_settings, read_settings_text
from tomoray.jobs import StudyJob
from tomoray.study import Result, expand, settings_hash, steps_of

STUDIES = sorted((Path(__file__).parents[2] / "jobs").glob("study_*.toml"))

ARMS: list[dict[str, Any]] = [
    {"name": "burn_in", "changes": {"epochs": 4}},
    {"name": "co_train", "start_from": "burn_in", "changes": {"method.name": "semietpicker", "method.views": 1}},
    {"name": "twice", "start_from": "co_train", "changes": {"method": {"name": "semietpicker"}}},
    {"name": "full", "labels": "all"},
]


def study(**given: Any) -> StudyJob:
    return StudyJob.model_validate({"arms": ARMS, "train": {"epochs": 2, "steps_per_epoch": 10, "network": {"width": 8}}, **given})


def test_a_study_is_every_arm_with_every_seed_and_number_of_labels() -> None:
    """Planted: the arm of all labels trained once more for each number of labels."""
    trials = expand(study(seeds=[3, 4], labelled_runs=[2, 5]))
    assert len(trials) == 2 * 2 * 3 + 2
    assert len({trial.name for trial in trials}) == len(trials)
    assert [trial.name for trial in trials if trial.arm == "full"] == ["full-lall-s3", "full-lall-s4"]
    assert [trial.name for trial in trials[:4]] == ["burn_in-l2-s3", "co_train-l2-s3", "twice-l2-s3", "full-lall-s3"]
    for trial in trials:
        assert (trial.job.seed, trial.job.labelled_runs, trial.job.network.width) == (trial.seed, trial.labels, 8)
        assert trial.job.catalogue == study().catalogue


def test_an_arm_changes_what_it_names_and_starts_from_its_like() -> None:
    trials = {trial.name: trial for trial in expand(study(seeds=[0, 1]))}
    co_train = trials["co_train-l2-s1"]
    assert co_train.after == "burn_in-l2-s1"
    assert co_train.job.method.model_dump()["views"] == 1
    assert trials["twice-l2-s1"].job.method.model_dump()["views"] == 4
    assert trials["burn_in-l2-s1"].job.method.name == "supervised"
    assert trials["full-lall-s0"].after == ""


def test_steps_include_those_of_the_trials_before() -> None:
    """Planted: only the trial before counted, not those before that."""
    trials = {trial.arm: trial for trial in expand(study(seeds=[0]))}
    assert {arm: trial.own_steps for arm, trial in trials.items()} == {"burn_in": 40, "co_train": 20, "twice": 20, "full": 20}
    assert {arm: trial.steps for arm, trial in trials.items()} == {"burn_in": 40, "co_train": 60, "twice": 80, "full": 20}


def test_the_hash_of_a_trial_changes_with_all_that_its_result_depends_on() -> None:
    """Planted: the burn-in's settings left out of those of what starts from it."""

    def hashes(data: str = "", **given: Any) -> dict[str, str]:
        return {trial.name: trial.settings for trial in expand(study(seeds=[0], **given), data)}

    base = hashes()
    assert hashes(parallel=3, output="elsewhere", catalogue="moved.parquet") == base, "where and how fast it runs does not matter"
    threads = {"workers": {"threads": 1}, "epochs": 2, "steps_per_epoch": 10, "network": {"width": 8}}
    assert hashes(train=threads) == base
    assert not set(hashes("other tomograms").values()) & set(base.values())
    assert not set(hashes(splits=["validation"]).values()) & set(base.values())
    longer = hashes(arms=[{**ARMS[0], "changes": {"epochs": 5}}, *ARMS[1:]])
    assert [name for name in base if base[name] == longer[name]] == ["full-lall-s0"]
    assert settings_hash(expand(study())) == settings_hash(expand(study())) != settings_hash(expand(study(seeds=[1])))


def test_a_study_that_was_written_with_all_its_defaults_means_the_same() -> None:
    """Planted: an arm of another method refused because the shared one's defaults were spelt out."""
    again = read_settings_text(StudyJob, dump_settings(study()), "again")
    assert again == study()
    assert expand(again) == expand(study())


def test_bare_dotted_keys_change_one_value_and_not_the_table() -> None:
    text = '[train.network]\nblocks = [1, 1]\n[[arms]]\nname = "a"\n[arms.changes]\nnetwork.width = 16\n"optimizer.learning_rate" = 0.1\n'
    (trial,) = expand(read_settings_text(StudyJob, "seeds = [0]\n" + text, "job.toml"))
    assert (trial.job.network.width, trial.job.network.model_dump()["blocks"]) == (16, (1, 1))
    assert trial.job.optimizer.learning_rate == 0.1


def arms_with(name: str = "new", **given: Any) -> dict[str, Any]:
    return {"arms": [*ARMS, {"name": name, **given}]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arms_with(changes={"method.background_wieght": 2}), "arm 'new': unknown key 'method.background_wieght'; did you mean 'background_weight'?"),
        (arms_with(changes={"epohcs": 2}), "arm 'new': unknown key 'epohcs'; did you mean 'epochs'?"),
        (arms_with(changes={"epochs": 0}), "arm 'new': epochs = 0: Input should be greater than 0"),
        (arms_with(changes={"seed": 2}), "arm 'new': seed must be the same for all arms, or is filled in by the study; remove it from the changes"),
        (arms_with(changes={"start_from": "x"}), "arm 'new': start_from must be the same for all arms"),
        (arms_with(start_from="burnin"), "arm 'new': start_from = 'burnin' must be an arm listed before it; these are burn_in, co_train"),
        (arms_with(start_from="new"), "start_from = 'new' must be an arm listed before it"),
        (arms_with(start_from="full"), "arm 'new': it shows other labels than 'full', which it starts from; make their `labels` the same"),
        (arms_with(name="full"), "arm full is listed more than once"),
        ({"reference": "burn-in"}, "reference = 'burn-in' is no arm; it must be one of burn_in, co_train, twice, full"),
        ({"full": "all"}, "full = 'all' is no arm"),
        ({"train": {"seed": 3}}, "train.seed is filled in by the study; it must not be given: set the study's own key instead"),
    ],
)
def test_what_is_wrong_is_told_with_its_arm(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(study(**given))
    assert message in str(error.value)


def test_arms_that_start_from_each_other_are_refused() -> None:
    circle = [{"name": "a", "start_from": "b"}, {"name": "b", "start_from": "a"}]
    with pytest.raises(ConfigError, match=r"arm 'a': start_from = 'b' must be an arm listed before it; there is none: correct it, or move it"):
        expand(study(arms=circle))


def test_a_result_is_read_as_it_was_written() -> None:
    scores = {"F1@0.5r": {"value": 0.5, "classes": [{"name": "x", "tp": 1, "fp": 0, "fn": 2, "value": None}], "runs": ["TS_1"]}}
    result = Result("a", 2, 0, 100, "abc", "", 1.5, scores, ("TS_1",), {"cores": "2"}, "runs/a", "id")
    assert Result.from_json(result.to_json()) == result
    assert result.value("F1@0.5r") == 0.5
    assert result.value("F1@0.5r", "x") != result.value("F1@0.5r", "x"), "a class without truth has no value"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_shipped_study_is_one_whose_arms_can_be_compared(path: Path) -> None:
    """Every arm's settings are valid, and all but burn-ins, which are there to start from, have taken as many steps."""
    job = read_settings(StudyJob, path)
    trials = expand(job)
    started_from = {trial.after for trial in trials}
    assert len({trial.steps for trial in trials if trial.name not in started_from}) == 1
    assert job.reference not in {name.partition("-")[0] for name in started_from}
    assert all(trial.own_steps == steps_of(trial.job) > 0 for trial in trials)


def test_there_are_shipped_studies() -> None:
    semietpicker = [f"semietpicker_{which}" for which in ("longer_small", "one_small", "remedies_small", "small", "table1", "table3")]
    names = ["partly_marked_small", "regime", *semietpicker, "tomopicker_small"]
    assert [path.name for path in STUDIES] == [f"study_{name}.toml" for name in names]
