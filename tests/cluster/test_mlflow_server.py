"""MLflow as a cluster has it, with records in PostgreSQL and artefacts in a bucket behind its server: what jobs leave there, and take from it."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from small_jobs import small_train_job

from services.mlflow_server import MlflowServer
from tomoray import commands, storage
from tomoray.catalogue import catalogue_version, read_catalogue
from tomoray.jobs import PickJob, TuneJob


@pytest.mark.timeout(1800)  # three servers, one training
def test_what_training_picking_and_a_sweep_leave_is_there(
    local_ray: None,
    catalogue: str,
    ceph_bucket: str,
    mlflow_on_postgres: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs know the server's address and none of the keys to the bucket: what they store goes through it.

    Planted: artefacts that clients put into the bucket themselves; the alias left out; a run that nobody closes.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_postgres.address)
    one_worker = {"workers__count": 1, "workers__threads": 1, "validation__every_epochs": 1}
    train = small_train_job(catalogue, tmp_path, name="tiny", epochs=2, steps_per_epoch=15, register_as="served-picker", champion=True, **one_worker)
    picks, champion = tmp_path / "picks", "models:/served-picker@champion"
    pick = PickJob(catalogue=catalogue, output=str(picks), checkpoint=champion, splits=("validation",), floor=0.01, tile_vox=48)
    with monkeypatch.context() as without_keys:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            without_keys.delenv(name)
        assert commands.run("train", train) == 0
        assert commands.run("pick", pick) == 0
        assert commands.run("tune", threshold_sweep(catalogue, tmp_path, picks / "candidates")) == 0

    client = MlflowClient(mlflow_on_postgres.address)
    experiment = client.get_experiment_by_name("tomoray")
    runs = client.search_runs([experiment.experiment_id], f"tags.`tomoray.data` = '{catalogue_version(read_catalogue(catalogue))}'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 5, "a training, a pick, a sweep and its two trials"
    trained, picked, tuned = (one_of(runs, verb) for verb in ("train", "pick", "tune"))
    assert trained.data.params["network.width"] == "8"
    assert [metric.step for metric in client.get_metric_history(trained.info.run_id, "loss")] == [15, 30]
    assert {"val_f1", "val_f1/ribosome"} <= set(trained.data.metrics)
    assert (picked.data.metrics["picked"], picked.data.metrics["failed"]) == (2, 0)
    assert tuned.data.metrics["finished"] == 2
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == tuned.info.run_id]
    assert sorted(run.data.params["regularise"] for run in trials) == ["leave_one_out", "none"]
    assert all("val_f1" in run.data.metrics for run in trials)

    version = client.get_model_version_by_alias("served-picker", "champion")
    assert (version.version, version.run_id) == ("1", trained.info.run_id)
    assert {"picks.csv", "failures.parquet", "job.toml"} <= artefacts(client, picked)
    assert {"sweep.md", "sweep.html", "sweep.csv", "job.toml"} <= artefacts(client, tuned)
    served = Path(download_artifacts(champion, tracking_uri=mlflow_on_postgres.address, dst_path=str(tmp_path / "served")))
    (fetched,) = (picks / "models").iterdir()
    in_bucket = f"{mlflow_on_postgres.artefacts}/{experiment.experiment_id}/{trained.info.run_id}/artifacts/checkpoint"
    for name in storage.list_names(in_bucket):
        content = (tmp_path / "tiny" / "picker" / name).read_bytes()
        assert content == storage.read_bytes(f"{in_bucket}/{name}") == (served / name).read_bytes() == (fetched / name).read_bytes()


def threshold_sweep(catalogue: str, folder: Path, candidates: Path) -> TuneJob:
    """Two ways to choose thresholds for what has been picked: no network runs."""
    space = {"base": "jobs/threshold_x.toml", "space": {"regularise": {"choices": ["none", "leave_one_out"]}}}
    (tables,) = candidates.iterdir()
    best, threshold = str(folder / "threshold_best.toml"), {"candidates": str(tables)}
    settings = {"catalogue": catalogue, "output": str(folder), "name": "tiny-sweep", "space": space, "search": "grid", "winner": best}
    return TuneJob.model_validate({**settings, "threshold": threshold})


def one_of(runs: list[Run], verb: str) -> Run:
    (run,) = (run for run in runs if run.data.tags.get("verb") == verb and "mlflow.parentRunId" not in run.data.tags)
    return run


def artefacts(client: MlflowClient, run: Any) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id)}
