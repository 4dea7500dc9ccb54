"""MLflow: runs with explicit ids, which the driver makes and rank 0 fills, so that a restarted worker goes on in the same run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from tomoray.config import Settings, flatten

EXPERIMENT = "tomoray"
FOLDER = "tomoray.folder"  # tag: where what the run makes lies
MOST_CHILDREN = 10_000
FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"
CHAMPION = "champion"
CHECKPOINT = "checkpoint"  # folder of a training run's artefacts


@dataclass(frozen=True)
class Run:
    """One MLflow run, by server and id: small enough to send to a worker."""

    tracking_uri: str
    run_id: str

    def _client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step."""
        now = get_current_time_millis()
        self._client().log_batch(self.run_id, metrics=[Metric(_safe(k), float(v), now, step) for k, v in metrics.items()])

    def add_files(self, folder: str | Path, under: str) -> None:
        """Store the files of a local folder as artefacts."""
        self._client().log_artifacts(self.run_id, str(folder), under)

    def add_text(self, text: str, name: str) -> None:
        """Store a text as an artefact."""
        self._client().log_text(self.run_id, text, name)

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._client().set_tag(self.run_id, key, value)

    def end(self, status: str = FINISHED) -> None:
        """Close the run."""
        self._client().set_terminated(self.run_id, status)

    def end_children(self) -> dict[str, str]:
        """Return folder -> id of the runs under this one, after closing those as killed that nobody will close."""
        client = self._client()
        experiment = client.get_run(self.run_id).info.experiment_id
        found: dict[str, str] = {}
        for child in client.search_runs([experiment], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'", max_results=MOST_CHILDREN):
            found[child.data.tags.get(FOLDER, "")] = child.info.run_id
            if child.info.status == RUNNING:
                client.set_terminated(child.info.run_id, KILLED)
        return found

    def register(self, name: str) -> str:
        """Make this run's checkpoint a version of a registered model and its champion, once only; return `models:/name@champion`."""
        client = self._client()
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = [version for version in client.search_model_versions(f"name = '{name}'") if version.run_id == self.run_id]
        version = versions[0] if versions else client.create_model_version(name, f"runs:/{self.run_id}/{CHECKPOINT}", self.run_id)
        client.set_registered_model_alias(name, CHAMPION, version.version)
        return f"models:/{name}@{CHAMPION}"

    def __str__(self) -> str:
        return f"run {self.run_id} at {self.tracking_uri}"


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or a database in the working directory, as an absolute address that workers can use."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def start_run(verb: str, name: str, job: Settings, *, tags: Mapping[str, str] | None = None, parent: Run | None = None) -> Run:
    """Return the MLflow run of a job: the one with the same tags, if there is one, so that a resumed job goes on in it.

    With a `parent` it is made where that is, and shown under it.
    """
    uri = parent.tracking_uri if parent else tracking_uri()
    client = MlflowClient(uri)
    wanted = {"verb": verb, **(tags or {})}
    experiment = _experiment(client, uri)
    if tags:
        condition = " and ".join(f"tags.{key} = '{value}'" for key, value in wanted.items())
        for old in client.search_runs([experiment], condition, max_results=1):
            return Run(uri, old.info.run_id)
    under = {MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {}
    run_id = client.create_run(experiment, run_name=name, tags=wanted | under).info.run_id
    params = [Param(_safe(key), str(value)[:500]) for key, value in flatten(job.model_dump(mode="json")).items()]
    client.log_batch(run_id, params=params[:100], tags=[RunTag("tomoray.output", str(getattr(job, "output", "")))])
    return Run(uri, run_id)


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    database = uri.removeprefix("sqlite:///")
    beside = (Path(database).parent / "mlruns").as_uri() if database != uri else None  # artefacts lie beside a local database
    return str(client.create_experiment(EXPERIMENT, artifact_location=beside))


def _safe(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)
