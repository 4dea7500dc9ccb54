"""What we ask of MLflow, asked of a server with records in PostgreSQL and artefacts in a bucket; jobs that do so are in tests/cluster."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from services.mlflow_server import MlflowServer
from tomoray import storage
from tomoray.catalogue import CatalogueRow, catalogue_version, write_catalogue
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.cluster.tracking import CHECKPOINT, FINISHED, KILLED, fetch_model, start_run
from tomoray.config import ConfigError
from tomoray.jobs import TrainJob
from tomoray.tomogram import Particle

pytestmark = pytest.mark.filterwarnings("default")  # those of MLflow are theirs

ROW = CatalogueRow("TS_1", "TS_1", "/d/TS_1.mrc", (8, 8, 8), "float32", 10.0, 0.0, 1.0, -1.0, 1.0, "dark", split="train", picks_uri="/d/p")
CARD = Card((Particle("x", 60.0),), 10.0, "dark", network={"name": "asymmetric_unet", "width": 2, "blocks": [1]})


def test_runs_files_and_models_go_through_the_server(
    mlflow_on_postgres: MlflowServer, ceph_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client knows the server's address and none of the keys to the bucket."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_postgres.address)
    write_catalogue(tmp_path / "c.parquet", [ROW])
    job, tags = TrainJob(catalogue=str(tmp_path / "c.parquet")), {"tomoray.folder": "runs/one"}
    (tmp_path / "picker").mkdir()
    save_checkpoint(tmp_path / "picker", CARD, CARD.build())
    with monkeypatch.context() as without_keys:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            without_keys.delenv(name)
        run = start_run("train", "one", job, tags=tags)
        run.log({"loss": 2.0, "val_f1/x": 0.5}, step=5)
        again = start_run("train", "one", job, tags=tags)
        assert again == run, "the same job goes on in its run"
        again.log({"loss": 1.0}, step=10)
        run.add_files(tmp_path / "picker", CHECKPOINT)
        child = start_run("pick", "of it", job, parent=run)
        run.end()
        assert run.end_children() == {"": child.run_id}
        assert [run.register("picker-of-tests", champion=True) for _ in range(2)] == ["models:/picker-of-tests@champion"] * 2
        fetched = fetch_model("models:/picker-of-tests@champion", str(tmp_path / "models"))
        with pytest.raises(ConfigError, match=r"models:/picker-of-tests@best: not found in the model registry of http://127\.0\.0\.1"):
            fetch_model("models:/picker-of-tests@best", str(tmp_path / "models"))

    client = MlflowClient(mlflow_on_postgres.address)
    found = client.get_run(run.run_id)
    assert (found.info.status, client.get_run(child.run_id).info.status) == (FINISHED, KILLED)
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.run_id, "loss")] == [(5, 2.0), (10, 1.0)]
    assert found.data.params["method.name"] == "supervised"
    assert found.data.tags["tomoray.data"] == catalogue_version([ROW])
    assert [one.dataset.digest for one in found.inputs.dataset_inputs] == [catalogue_version([ROW])]
    (version,) = client.search_model_versions("name = 'picker-of-tests'")  # registered twice, but the same
    assert client.get_model_version_by_alias("picker-of-tests", "champion").version == version.version
    assert version.run_id == run.run_id
    in_bucket = f"{mlflow_on_postgres.artefacts}/{found.info.experiment_id}/{run.run_id}/artifacts/{CHECKPOINT}"
    for name in ("card.json", "picker.pt"):
        content = (tmp_path / "picker" / name).read_bytes()
        assert content == storage.read_bytes(f"{in_bucket}/{name}") == Path(fetched, name).read_bytes()
