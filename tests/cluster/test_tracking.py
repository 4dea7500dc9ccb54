"""MLflow: what a run says of its data and code, models that jobs name, and that no secret gets there. No Ray is started."""

import getpass
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

import tomoray
from tomoray import commands
from tomoray.catalogue import CatalogueRow, catalogue_version, write_catalogue
from tomoray.checkpoint import Card, load_picker, save_checkpoint
from tomoray.cluster.tracking import CHECKPOINT, FAILED, FINISHED, Run, fetch_model, start_run
from tomoray.config import ConfigError
from tomoray.jobs import PickJob, TrainJob
from tomoray.provenance import commit
from tomoray.tomogram import Particle

ROW = CatalogueRow("TS_1", "TS_1", "/d/TS_1.mrc", (8, 8, 8), "float32", 10.0, 0.0, 1.0, -1.0, 1.0, "dark", split="test", picks_uri="/d/p")
CARD_OF = Card((Particle("x", 60.0),), 10.0, "dark", network={"name": "asymmetric_unet", "width": 2, "blocks": [1]})
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-key-of-ours",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password-of-ours",
    "RAY_AUTH_TOKEN": "ray-token-of-ours",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an MLflow database of this test's own."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def job(tmp_path: Path) -> PickJob:
    """A job whose catalogue is there."""
    write_catalogue(tmp_path / "c.parquet", [ROW, replace(ROW, tomogram_id="TS_2", run="TS_2", picks_uri="", split="unlabelled")])
    return PickJob(catalogue=str(tmp_path / "c.parquet"), output=str(tmp_path / "picks"))


def test_a_run_says_which_data_and_which_code(server: str, job: PickJob) -> None:
    """And says it anew when it goes on with more tomograms. Planted: the path of the catalogue hashed, not what it says."""
    run = start_run("pick", "p", job, tags={"tomoray.folder": "x"})
    found = MlflowClient(server).get_run(run.run_id)
    rows = [ROW, replace(ROW, tomogram_id="TS_2", run="TS_2", picks_uri="", split="unlabelled")]
    assert found.data.tags["tomoray.data"] == catalogue_version(rows)
    assert found.data.tags["tomoray.version"] == tomoray.__version__
    assert found.data.tags["mlflow.source.git.commit"] == commit()
    assert (found.data.tags["mlflow.source.name"], found.data.tags["mlflow.user"]) == ("tomoray pick", getpass.getuser())
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.source_type) == ("c.parquet", catalogue_version(rows), "local")
    assert json.loads(given.dataset.source) == {"uri": job.catalogue}
    assert json.loads(given.dataset.profile) == {"tomograms": 2, "labelled": 1}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "pick")]

    run.end(FAILED)
    write_catalogue(job.catalogue, rows[:1])
    again = start_run("pick", "p", job, tags={"tomoray.folder": "x"})
    found = MlflowClient(server).get_run(run.run_id)
    assert again.run_id == run.run_id
    assert found.info.status == "RUNNING"
    assert found.data.tags["tomoray.data"] == catalogue_version(rows[:1])
    assert {one.dataset.digest for one in found.inputs.dataset_inputs} == {catalogue_version(rows), catalogue_version(rows[:1])}


def test_every_setting_is_recorded(server: str, job: PickJob) -> None:
    """Planted: only as many as MLflow takes in one request."""
    many = {f"class-{number}": number / 200 for number in range(150)}
    run = start_run("pick", "many", job.model_copy(update={"thresholds": many}))
    params = MlflowClient(server).get_run(run.run_id).data.params
    assert {name: params[f"thresholds.{name}"] for name in many} == {name: str(value) for name, value in many.items()}


@pytest.mark.parametrize("left_by", [ConfigError("no picks"), KeyboardInterrupt()])
def test_a_run_that_is_left_by_an_error_has_failed(server: str, job: PickJob, left_by: BaseException) -> None:
    """Planted: only Exception is caught, and MLflow shows a run stopped by hand going on for ever."""
    run = start_run("pick", "p", job)
    with run.failed_if_left():
        pass
    assert status(run) == "RUNNING", "whoever opened it ends it"
    with pytest.raises(type(left_by)), run.failed_if_left():
        raise left_by
    assert status(run) == "FAILED"


def status(run: Run) -> str:
    return str(MlflowClient(run.tracking_uri).get_run(run.run_id).info.status)


def test_versions_have_aliases_only_where_they_are_asked_for(server: str, job: PickJob, tmp_path: Path) -> None:
    """Planted: each training makes itself the champion."""
    runs = [trained(tmp_path / name, job) for name in "ab"]
    assert runs[0].register("picker", champion=True) == "models:/picker@champion"
    assert runs[1].register("picker", champion=False) == "models:/picker/2"
    assert runs[1].register("picker", champion=False) == "models:/picker/2", "once only"
    client = MlflowClient(server)
    assert client.get_model_version_by_alias("picker", "champion").run_id == runs[0].run_id

    for address, folder in (("models:/picker@champion", "a"), ("models:/picker/2", "b")):
        found = fetch_model(address, str(tmp_path / "models"))
        ours, theirs = load_picker(found)[0].state_dict(), load_picker(tmp_path / folder)[0].state_dict()
        assert all(ours[key].equal(theirs[key]) for key in theirs)
        assert fetch_model(address, str(tmp_path / "models")) == found
    assert len(list((tmp_path / "models").iterdir())) == 2


def trained(folder: Path, job: PickJob) -> Run:
    folder.mkdir()
    save_checkpoint(folder, CARD_OF, CARD_OF.build())
    run = start_run("train", "t", TrainJob(catalogue=job.catalogue))
    run.add_files(folder, CHECKPOINT)
    run.end(FINISHED)
    return run


def test_a_job_runs_with_the_models_that_it_names(server: str, job: PickJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run fetches it too, and leaves nothing. Planted: a folder that is gone when the job starts."""
    trained(tmp_path / "a", job).register("picker", champion=True)
    seen: list[Any] = []
    monkeypatch.setattr(commands, "pick", lambda job, dry_run: seen.append(load_picker(job.checkpoint)) or 0)
    named = job.model_copy(update={"checkpoint": "models:/picker@champion"})
    assert commands.run("pick", named, dry_run=True) == 0
    assert not Path(job.output).exists()
    assert commands.run("pick", named) == 0
    assert [path.name.rpartition("-")[0] for path in (Path(job.output) / "models").iterdir()] == ["picker-1"]
    assert len(seen) == 2


@pytest.mark.parametrize("address", ["models:/none@champion", "models:/picker@best", "models:/picker/9"])
def test_models_that_are_not_there_are_told(server: str, job: PickJob, tmp_path: Path, address: str) -> None:
    trained(tmp_path / "a", job).register("picker", champion=True)
    with pytest.raises(ConfigError, match=r"not found in the model registry of sqlite:.*it must be a registered model .*give a checkpoint folder"):
        fetch_model(address, str(tmp_path / "models"))


def test_a_model_that_is_no_checkpoint_is_told(server: str, job: PickJob, tmp_path: Path) -> None:
    run = start_run("train", "t", TrainJob(catalogue=job.catalogue))
    run.add_text("no weights", f"{CHECKPOINT}/readme.txt")
    run.register("other", champion=True)
    with pytest.raises(ConfigError, match=r"models:/other@champion: version 1 is no checkpoint of tomoray, it has no card.json; register one"):
        fetch_model("models:/other@champion", str(tmp_path / "models"))


def test_no_secret_is_recorded(server: str, job: PickJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a parameter nor as a tag, an input or an artefact, wherever it came from. Planted: texts stored as they are."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    run = start_run("pick", "p", job, tags={"tomoray.folder": "x"})
    told = " ".join(SECRETS.values()) + " https://user:address-password-of-ours@host/x"
    run.add_text(told, "report.md")
    run.tag("tomoray.note", told)
    run.end()
    found = MlflowClient(server).get_run(run.run_id)
    folder = download_artifacts(run_id=run.run_id, tracking_uri=server, dst_path=str(tmp_path / "artefacts"))
    texts = [str(found.to_dictionary()), *(path.read_text() for path in Path(folder).rglob("*") if path.is_file())]
    assert any("***" in text for text in texts)
    for secret in (*SECRETS.values(), "address-password-of-ours"):
        assert not any(secret in text for text in texts)


def test_the_address_of_a_server_is_shown_without_its_password(job: PickJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is printed, in what Ray's dashboard shows of a worker's settings, and where the server is not there."""
    run = Run("postgresql://mlflow:hunter-of-two@db/mlflow", "1")
    assert "hunter" not in f"{run} {run!r} {[run]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter-of-two@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"http://\*\*\*@127.0.0.1:9: MLflow refused, or does not answer .*check MLFLOW_TRACKING_URI") as error:
        start_run("pick", "p", job)
    assert "hunter" not in str(error.value)


def test_what_machines_do_is_recorded_where_it_is_asked_for(server: str, job: PickJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its absence stops nothing."""
    import ray  # noqa: F401  it brings psutil

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    quiet = start_run("pick", "quiet", job)
    with quiet.system_metrics("driver"):
        pass
    assert not MlflowClient(server).get_run(quiet.run_id).data.metrics
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    run = start_run("pick", "watched", job)
    with run.system_metrics("driver"):
        for _ in range(600):
            if metrics := MlflowClient(server).get_run(run.run_id).data.metrics:
                break
    assert "system/driver/cpu_utilization_percentage" in metrics

    monkeypatch.setitem(__import__("sys").modules, "mlflow.system_metrics.system_metrics_monitor", None)
    done = []
    with run.system_metrics("driver"):
        done.append(1)
    assert done
