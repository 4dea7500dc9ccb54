"""Sweeps under Ray Tune: one that is killed goes on with nothing lost and nothing run twice; what does best is kept, written down and registered."""

import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from ray.exceptions import RayActorError, RayError, RayTaskError
from small_jobs import small_train_job

from tomoray import commands, storage
from tomoray.checkpoint import load_picker
from tomoray.cluster import tune_trial
from tomoray.cluster.tracking import Run
from tomoray.cluster.tune import _Judge, plan, run_sweep
from tomoray.cluster.tune_trial import REASON, Plan, run_trial
from tomoray.config import ConfigError, dump_settings, read_settings
from tomoray.jobs import PickJob, ThresholdJob, TrainJob, TuneJob
from tomoray.search import MADE_BY, Trial
from tomoray.sweep import Sweep

import psutil  # type: ignore[import-untyped]  # isort: skip  # Ray brings it

RATES = [1e-6, 1e-5, 1.0]  # from a trained picker: two that leave it as it is, and one that ruins it at once


def small_sweep(catalogue: str, checkpoint: str, folder: Path) -> TuneJob:
    """Three trainings of four steps, one after the other, of which the last is to be stopped after two."""
    train = small_train_job(
        catalogue, folder, start_from=checkpoint, epochs=2, steps_per_epoch=2, workers__count=1, workers__threads=1, validation__every_epochs=1
    )
    return TuneJob.model_validate(
        {
            "catalogue": catalogue,
            "output": str(folder),
            "name": "tiny",
            "space": {"base": "jobs/train_x.toml", "space": {"optimizer.learning_rate": {"choices": RATES}}},
            "search": "grid",
            "parallel": 1,
            "winner": str(folder / "train_best.toml"),
            "register_as": "tiny-picker",
            "train": train.model_dump(exclude={"catalogue", "output", "name"}, mode="json"),
        }
    )


def kept(folder: Path) -> list[Trial]:
    """The trials of a sweep as their files have them."""
    return [Trial.from_json(path.read_bytes()) for path in sorted((folder / "tiny" / "trials").glob("*.json"))]


def kill_driver(job: TuneJob, folder: Path) -> None:
    """Tune in a process with a Ray of its own, and kill that once a trial is finished; all it started must end by itself."""
    file = folder / "tune.toml"
    file.write_text(dump_settings(job))
    driver = subprocess.Popen([sys.executable, "-m", "tomoray", "tune", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not any(trial.state == "finished" for trial in kept(folder)):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.1)
    started = psutil.Process(driver.pid).children(recursive=True)
    agents = [process for process in started if "Agent" in process.name()]  # Ray's own, which look after their parent once a minute
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs(set(started) - set(agents), timeout=120)
    assert not alive, "what a killed driver leaves must not go on"
    for agent in psutil.wait_procs(agents, timeout=0)[1]:
        agent.kill()


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, "loss")]


def groups_left() -> list[dict[str, Any]]:
    """Reserved resources that nobody has given back, half a minute after."""
    for _ in range(60):
        left = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
        if not left:
            return []
        time.sleep(0.5)
    return left


def test_a_killed_sweep_goes_on_and_runs_nothing_twice(local_ray: None, catalogue: str, checkpoint: str, tmp_path: Path, tracking: str) -> None:
    """`kill -9` of the driver once a trial is finished.

    Planted: trials under way are dropped; a stopped trial's workers keep their resources where another Ray runs on the machine; the run of a
    stopped trial stays open; a second version registered of the same picker.
    """
    job = small_sweep(catalogue, checkpoint, tmp_path)
    kill_driver(job, tmp_path)
    before = kept(tmp_path)
    assert before[0].state == "finished"
    assert [trial.state for trial in before[1:]] in ([], ["running"]), "the sweep was over before the kill"
    picker = tmp_path / "tiny" / "runs" / "tiny-000" / "picker" / "picker.pt"
    written = picker.stat().st_mtime_ns

    swept = run_sweep(job)
    trials = kept(tmp_path)
    assert [trial.values["optimizer.learning_rate"] for trial in trials] == RATES
    assert [(trial.state, trial.epochs) for trial in trials] == [("finished", 2), ("finished", 2), ("pruned", 1)]
    assert trials[2].value < min(trials[0].value, trials[1].value)
    assert swept.trials == tuple(trials)
    assert swept.ran == 2
    assert picker.stat().st_mtime_ns == written, "what was finished is not run again"
    assert groups_left() == []

    client = MlflowClient(tracking)
    children = {run.info.run_id: run.info for run in client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{swept.run.run_id}'")}
    assert [children[trial.run].status for trial in trials] == ["FINISHED", "FINISHED", "KILLED"]
    assert len(children) == 3
    assert steps(client, trials[0].run) == [2, 4]
    assert steps(client, trials[1].run)[-1] == 4
    assert client.get_run(trials[2].run).data.params["optimizer.learning_rate"] == "1.0"

    assert swept.winner is not None
    assert swept.winner.state == "finished"
    best = read_settings(TrainJob, job.winner)
    assert best.optimizer.learning_rate == swept.winner.values["optimizer.learning_rate"]
    assert (best.start_from, best.epochs, best.catalogue) == (checkpoint, 2, catalogue)
    assert (tmp_path / "tiny" / "train_tiny.toml").read_text() == Path(job.winner).read_text()
    assert load_picker(tmp_path / "tiny" / "picker")[1].validation["f1"]["value"] == pytest.approx(swept.winner.value)
    assert swept.text == (tmp_path / "tiny" / "sweep.md").read_text()
    assert "<img" in (tmp_path / "tiny" / "sweep.html").read_text()
    assert {"sweep.md", "sweep.csv", "sweep.html", "job.toml"} <= {f.path for f in client.list_artifacts(swept.run.run_id)}

    again = run_sweep(job)
    assert (again.ran, again.trials, again.run) == (0, swept.trials, swept.run)
    (version,) = client.search_model_versions("name = 'tiny-picker'")
    assert version.run_id == swept.winner.run
    assert client.get_model_version_by_alias("tiny-picker", "champion").version == version.version

    other = job.model_copy(update={"train": job.train.model_copy(update={"epochs": 3})})
    with pytest.raises(ConfigError, match=r"000.json: a trial of other settings, space or tomograms than the job's; give the sweep another name"):
        run_sweep(other)


def without_training(catalogue: str, folder: Path, verb: str, keys: dict[str, Any], **given: Any) -> TuneJob:
    return TuneJob.model_validate(
        {
            "catalogue": catalogue,
            "output": str(folder),
            "name": verb,
            "space": {"base": f"jobs/{verb}_x.toml", "space": keys},
            "search": "grid",
            "winner": str(folder / f"{verb}_best.toml"),
            **given,
        }
    )


def test_picks_and_thresholds_are_compared_without_training(local_ray: None, catalogue: str, checkpoint: str, tmp_path: Path, capsys: Any) -> None:
    """Planted: a network that is run again for settings that it has been run with; thresholds left out of the winner."""
    picks = without_training(catalogue, tmp_path, "pick", {"tile_vox": {"choices": [48, 64]}}, pick={"checkpoint": checkpoint})
    swept = run_sweep(picks)
    assert [trial.state for trial in swept.trials] == ["finished"] * 2
    assert swept.trials[0].value > 0.5
    best = read_settings(PickJob, picks.winner)
    assert swept.winner is not None
    assert (best.tile_vox, best.thresholds) == (swept.winner.values["tile_vox"], swept.winner.thresholds)
    assert set(best.thresholds) == {"ribosome", "virus-like-particle"}
    tables = sorted((tmp_path / "pick" / "candidates").glob("*/*.parquet"))
    assert [path.stem[:7] for path in tables] == ["TS_0005", "TS_0006"] * 2, "the validation tomograms, for each of two settings"

    keys = {"regularise": {"choices": ["none", "leave_one_out"]}}
    chosen = without_training(catalogue, tmp_path, "threshold", keys, threshold={"candidates": str(tables[0].parent)})
    assert commands.tune(chosen) == 0
    assert "2 trials run now, 0 of 2 failed" in capsys.readouterr().out
    assert read_settings(ThresholdJob, chosen.winner).catalogue == catalogue


def test_what_a_trial_raises_is_its_end_and_what_kills_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number would be none again; a node that is lost says nothing about the trial."""
    job = small_sweep("catalogue.parquet", "", tmp_path)
    planned = Plan(job, job.read_space(), "settings", ())
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune_trial.tune, "report", told.append)

    def keep(trial: Trial) -> None:
        storage.write_bytes(planned.file_of(trial.number), trial.to_json().encode())

    sweep = Sweep(job, planned.space, planned.settings, (), keep)
    lost = RayActorError()
    for raised in (FloatingPointError("epoch 1:\nthe loss is nan"), lost, RayTaskError("_train", "", lost)):
        trial = sweep.next()
        assert trial is not None

        def run(*_: object, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr(tune_trial, "_run", run)
        with pytest.raises(RayError) if isinstance(raised, RayError) else nullcontext():
            run_trial({"number": trial.number}, planned=planned, parent=Run("", ""), at_a_time=1)
    assert told == [{REASON: "the loss is nan"}]

    judge = _Judge(sweep, "val_f1")
    judge.on_trial_complete(None, SimpleNamespace(config={"number": 0}), {**told[0], "done": True})
    dying = SimpleNamespace(config={"number": 1}, ERROR="ERROR", status="ERROR")
    judge.on_trial_error(None, dying)  # Tune calls it so before it starts a trial again
    assert [(trial.state, trial.reason) for trial in kept(tmp_path)] == [("failed", "the loss is nan"), ("running", ""), ("running", "")]
    judge.on_trial_error(None, SimpleNamespace(**{**vars(dying), "status": "RUNNING"}))
    assert kept(tmp_path)[1].state == "failed"


def test_a_sweep_that_cannot_be_run_stops_before_it_starts(catalogue: str, tmp_path: Path) -> None:
    job = small_sweep(catalogue, "", tmp_path)
    (tmp_path / "train_best.toml").write_text("# mine\nepochs = 3\n")
    with pytest.raises(ConfigError, match=r"train_best.toml: a job file that no sweep has written; the winner would replace it"):
        plan(job)
    (tmp_path / "train_best.toml").write_text(f"{MADE_BY}\nepochs = 3\n")
    planned = plan(job)
    assert planned.settings == plan(job).settings
    with pytest.raises(ConfigError, match=r"no unlabelled tomogram, which semietpicker needs"):
        plan(job.model_copy(update={"space": {"base": "jobs/train_x.toml", "space": {"method.name": {"choices": ["supervised", "semietpicker"]}}}}))
    none = without_training(catalogue, tmp_path, "threshold", {"objective": {"choices": ["f1", "czii"]}}, splits=["unlabelled"])
    with pytest.raises(ConfigError, match=r"no labelled tomogram of split unlabelled to compare trials on"):
        plan(none)


def test_a_dry_run_prints_what_would_be_searched(local_ray: None, catalogue: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.tune(small_sweep(catalogue, "", tmp_path), dry_run=True) == 0
    said = capsys.readouterr().out
    assert "optimizer.learning_rate: one of 1e-06, 1e-05, 1.0\n" in said
    assert "would run 3 of 3 trials (grid), 4 steps each at most, 1 at a time, and compare them by f1" in said
    assert list(tmp_path.iterdir()) == []
