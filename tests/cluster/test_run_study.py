"""A study under Ray: trials in tasks of their own, one from the weights of another, one that fails, and none of them twice."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from small_jobs import small_train_job

from tomoray import commands
from tomoray.catalogue import read_catalogue
from tomoray.checkpoint import load_picker
from tomoray.cluster.study import plan, run_study, side_by_side
from tomoray.cluster.train import JOB
from tomoray.config import ConfigError, dump_settings, parse_assignments
from tomoray.jobs import StudyJob, WorkerSettings
from tomoray.study import Result


def small_study(catalogue: str, output: Path) -> StudyJob:
    """A burn-in, a co-training whose teacher never moves from where it started, and an arm to be stopped."""
    train = small_train_job(catalogue, output, epochs=1, steps_per_epoch=3, workers__count=1, workers__threads=1, clicks=2)
    shared = train.model_dump(exclude={"catalogue", "output"}, mode="json")
    frozen = {"method.name": "semietpicker", "method.ema_rate": 0.0}
    arms = [
        {"name": "burn_in"},
        {"name": "co_train", "start_from": "burn_in", "changes": frozen},
        {"name": "stopped", "changes": {"optimizer.learning_rate": 0.1}},
        {"name": "behind", "start_from": "stopped", "changes": frozen},
    ]
    return StudyJob.model_validate(
        {"catalogue": catalogue, "output": str(output), "name": "tiny", "seeds": [0], "labelled_runs": [2], "train": shared, "arms": arms}
    )


def floats(checkpoint: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_picker(checkpoint)[0].state_dict().items() if value.is_floating_point()}


def test_a_study_trains_what_is_missing_and_compares_all(local_ray: None, catalogue: str, tmp_path: Path, tracking: str) -> None:
    """Planted: a co-training that starts from fresh weights."""
    job = small_study(catalogue, tmp_path)
    trials = {trial.arm: trial for trial in plan(job)[0]}
    blocked = Path(trials["stopped"].job.output) / trials["stopped"].job.name / JOB
    blocked.parent.mkdir(parents=True)
    blocked.write_text(dump_settings(trials["stopped"].job.model_copy(update={"seed": 7})))

    study = run_study(job)
    assert study.trained == ("burn_in-l2-s0", "co_train-l2-s0")
    assert set(study.failures) == {"stopped-l2-s0", "behind-l2-s0"}
    assert "a run of this name has another seed" in study.failures["stopped-l2-s0"]
    assert study.failures["behind-l2-s0"] == "stopped-l2-s0, which it starts from, failed"

    folder = tmp_path / "tiny"
    assert sorted(path.name for path in (folder / "trials").iterdir()) == ["burn_in-l2-s0.json", "co_train-l2-s0.json"]
    burn_in, co_train = (Result.from_json((folder / "trials" / f"{arm}-l2-s0.json").read_text()) for arm in ("burn_in", "co_train"))
    assert (burn_in.steps, co_train.steps) == (3, 6)
    assert burn_in.labelled_runs == ("TS_0001", "TS_0002")
    assert burn_in.scores["F1@0.5r"]["runs"] == ["TS_0007", "TS_0008"], "scored on the test tomograms"
    known = {row.run: row.particles for row in read_catalogue(catalogue)}
    at_n = {c["name"]: c["tp"] + c["fp"] for c in burn_in.scores["precision@N"]["classes"]}
    assert at_n == {name: known["TS_0007"][name] + known["TS_0008"][name] for name in at_n}, "all that are there count, however few were clicked"
    before, after = floats(burn_in.checkpoint), floats(co_train.checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before), "with ema_rate 0 the teacher stays where it started: at the burn-in"

    assert study.text == (folder / "study.md").read_text()
    assert "2 of 4 trials" in study.text
    assert "Of each class 2 particles show" in study.text
    assert "precision@N" in study.text
    assert "a run of this name has another seed" in study.text
    assert len((folder / "study.csv").read_text().splitlines()) == 1 + 2 * 3
    children = MlflowClient(tracking).search_runs(["1"], f"tags.`mlflow.parentRunId` = '{study.run.run_id}'")
    assert {run.info.run_id for run in children} == {burn_in.run, co_train.run}
    assert "test F1_0.5r" in children[0].data.metrics
    parent = MlflowClient(tracking).get_run(study.run.run_id)
    assert "F1_0.5r/co_train-l2" in parent.data.metrics
    assert {"study.md", "study.csv", "job.toml"} <= {f.path for f in MlflowClient(tracking).list_artifacts(study.run.run_id)}

    again = run_study(job)
    assert again.trained == ()
    assert set(again.failures) == set(study.failures), "what failed is tried again, and what is done is not"
    assert again.run == study.run
    assert MlflowClient(tracking).get_run(burn_in.run).info.end_time < parent.info.end_time

    changed = job.model_copy(update={"arms": (job.arms[0].model_copy(update={"changes": parse_assignments(["epochs=2"])}),)})
    with pytest.raises(ConfigError, match=r"burn_in-l2-s0.json: a result of other settings or tomograms than the job's; give the study another name"):
        run_study(changed)


def test_a_study_that_cannot_be_trained_stops_before_it_starts(catalogue: str, tmp_path: Path) -> None:
    job = small_study(catalogue, tmp_path)
    with pytest.raises(ConfigError, match=r"labelled_runs: 5 runs are to show their labels; .* has 4 labelled ones to train on"):
        plan(job.model_copy(update={"labelled_runs": (5,), "arms": job.arms[:1]}))
    with pytest.raises(ConfigError, match=r"arm 'co_train': .* no unlabelled tomogram, which semietpicker needs"):
        plan(job.model_copy(update={"labelled_runs": (4,)}))


def test_a_dry_run_lists_trials_and_steps(catalogue: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.study(small_study(catalogue, tmp_path), dry_run=True) == 0
    said = capsys.readouterr().out
    assert "burn_in-l2-s0: 3 steps\nco_train-l2-s0: 3 steps from burn_in-l2-s0\n" in said
    assert "would train 4 of 4 trials, 12 steps, and score each on 2 tomograms of split test" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parallel", "workers", "trials"),
    [
        (0, {"threads": 1}, 2),
        (0, {}, 1),
        (0, {"threads": 1, "count": 2}, 1),
        (3, {"threads": 1}, 3),
        (50, {"threads": 1}, 5),
        (50, {"gpu": True}, 3),
        (0, {"gpu": True, "count": 4}, 1),
    ],
)
def test_as_many_trials_run_as_there_is_room_for(parallel: int, workers: dict[str, int], trials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, counted by Ray as eight, and three GPUs. Planted: so many workers that no CPU is left to read tomograms with."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 3.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    assert side_by_side(StudyJob(parallel=parallel), [WorkerSettings.model_validate(workers)]) == trials
