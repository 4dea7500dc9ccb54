"""MLflow: runs with explicit ids, which the driver makes and rank 0 fills, so that a restarted worker goes on in the same run."""

from __future__ import annotations

import getpass
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_USER
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

import tomoray
from tomoray import storage
from tomoray.catalogue import catalogue_version, read_catalogue
from tomoray.checkpoint import CARD, fingerprint
from tomoray.config import ConfigError, Settings, flatten
from tomoray.credentials import redacted
from tomoray.models import Model, parse_model
from tomoray.provenance import commit

log = logging.getLogger(__name__)

EXPERIMENT = "tomoray"
FOLDER = "tomoray.folder"  # tag: where what the run makes lies
DATA, VERSION = "tomoray.data", "tomoray.version"  # tags: hash of the catalogue, version of the package
MOST_CHILDREN, MOST_PARAMS = 10_000, 100  # that MLflow takes in one request
FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"
CHAMPION = "champion"
CHECKPOINT = "checkpoint"  # folder of a training run's artefacts


@dataclass(frozen=True, repr=False)
class Run:
    """One MLflow run, by server and id: small enough to send to a worker. `watched`: what machines do is recorded too."""

    tracking_uri: str
    run_id: str
    watched: bool = False

    def _client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step."""
        now = get_current_time_millis()
        self._client().log_batch(self.run_id, metrics=[Metric(_safe(k), float(v), now, step) for k, v in metrics.items()])

    def add_files(self, folder: str | Path, under: str) -> None:
        """Store the files of a local folder as artefacts."""
        self._client().log_artifacts(self.run_id, str(folder), under)

    def add_file(self, uri: storage.Uri) -> None:
        """Store a file as an artefact."""
        with storage.local_copy(uri) as path:
            self._client().log_artifact(self.run_id, str(path))

    def add_text(self, text: str, name: str) -> None:
        """Store a text as an artefact."""
        self._client().log_text(self.run_id, redacted(text), name)

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._client().set_tag(self.run_id, key, redacted(value))

    def end(self, status: str = FINISHED) -> None:
        """Close the run."""
        self._client().set_terminated(self.run_id, status)

    @contextmanager
    def failed_if_left(self) -> Iterator[None]:
        """Close the run as failed if any error, or Ctrl-C, leaves a `with` block, and raise it again: MLflow would show the run going on for ever."""
        try:
            yield
        except BaseException:
            self.end(FAILED)
            raise

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

    @contextmanager
    def system_metrics(self, node: str) -> Iterator[None]:
        """Record what cores, memory, disk, network and GPUs of this machine do for the length of a `with` block, if the run is watched."""
        monitor = _monitor(self, node) if self.watched else None
        try:
            yield
        finally:
            if monitor:
                monitor.finish()

    def register(self, name: str, *, champion: bool) -> str:
        """Make this run's checkpoint a version of a registered model, once only, and its champion if it is to be; return its address."""
        client = self._client()
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = [version for version in client.search_model_versions(f"name = '{name}'") if version.run_id == self.run_id]
        version = versions[0] if versions else client.create_model_version(name, f"runs:/{self.run_id}/{CHECKPOINT}", self.run_id)
        if not champion:
            return str(Model(name, version=str(version.version)))
        client.set_registered_model_alias(name, CHAMPION, version.version)
        return str(Model(name, alias=CHAMPION))

    def __repr__(self) -> str:  # which Ray's dashboard and logs show
        return f"run {self.run_id} at {redacted(self.tracking_uri)}"


def _monitor(run: Run, node: str) -> Any:
    """Return what watches this machine, started; nothing where that cannot be, for no run is worth less without it."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, tracking_uri=run.tracking_uri, resume_logging=True, node_id=node)
    except (ImportError, OSError, MlflowException) as error:
        log.warning("no system metrics (%s); install psutil, and nvidia-ml-py for those of GPUs", error)
        return None
    monitor.start()
    return monitor


def fetch_model(address: str, folder: str) -> str:
    """Return the folder of a registered model's checkpoint, copied from the registry into `folder` under its name, version and weights.

    Raises
    ------
    ConfigError
        If the registry has no such model, or it is no checkpoint.
    """
    model, uri = parse_model(address), tracking_uri()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            client = MlflowClient(uri)
            version = model.version or str(client.get_model_version_by_alias(model.name, model.alias).version)
            copy = Path(download_artifacts(artifact_uri=str(Model(model.name, version=version)), dst_path=temporary, tracking_uri=uri))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise ConfigError(
                f"{address}: not found in the model registry of {redacted(uri)} ({_first_line(error)}); it must be a registered model with "
                "that alias or version: look at its page, set MLFLOW_TRACKING_URI, or give a checkpoint folder"
            ) from None
        if not (copy / CARD).is_file():
            raise ConfigError(f"{address}: version {version} is no checkpoint of tomoray, it has no {CARD}; register one with register_as")
        target = storage.join(folder, f"{model.name}-{version}-{fingerprint(copy)}")
        if not storage.exists(storage.join(target, CARD)):
            with storage.new_folder(target) as new:
                for path in copy.iterdir():
                    (new / path.name).write_bytes(path.read_bytes())
    return target


def _first_line(error: Exception) -> str:
    return redacted((str(error).splitlines() or [type(error).__name__])[0])


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or a database in the working directory, as an absolute address that workers can use."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def start_run(verb: str, name: str, job: Settings, *, tags: Mapping[str, str] | None = None, parent: Run | None = None) -> Run:
    """Return the MLflow run of a job: the one with the same tags, if there is one, so that a resumed job goes on in it.

    With a `parent` it is made where that is, and shown under it.
    """
    uri = parent.tracking_uri if parent else tracking_uri()
    try:
        client = MlflowClient(uri)
        run_id = _run_of(client, _experiment(client, uri), name, job, {"verb": verb, **(tags or {})}, parent, resumes=bool(tags))
        told = {VERSION: tomoray.__version__, MLFLOW_SOURCE_NAME: f"tomoray {verb}", MLFLOW_GIT_COMMIT: commit(), MLFLOW_USER: _user()}
        for key, value in told.items():
            client.set_tag(run_id, key, value)
        if catalogue := getattr(job, "catalogue", ""):
            _note_data(client, run_id, verb, catalogue)
    except (MlflowException, SQLAlchemyError) as error:
        raise ConfigError(
            f"{redacted(uri)}: MLflow refused, or does not answer ({_first_line(error)}); it must be a server that can be reached, or a database "
            "of this version of MLflow: check MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the server's log"
        ) from None
    return Run(uri, run_id, parent.watched if parent else MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get())


def _run_of(client: MlflowClient, experiment: str, name: str, job: Settings, tags: Mapping[str, str], parent: Run | None, *, resumes: bool) -> str:
    """Return the id of the run with these tags, opened again, or of a new one."""
    if resumes:
        condition = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
        for old in client.search_runs([experiment], condition, max_results=1):
            client.update_run(old.info.run_id, status=RUNNING)
            return str(old.info.run_id)
    under = {MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {}
    run_id = str(client.create_run(experiment, run_name=name, tags={**tags, **under}).info.run_id)
    params = [Param(_safe(key), redacted(str(value))[:500]) for key, value in flatten(job.model_dump(mode="json")).items()]
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[first : first + MOST_PARAMS])
    client.set_tag(run_id, "tomoray.output", redacted(str(getattr(job, "output", ""))))
    return run_id


def _note_data(client: MlflowClient, run_id: str, verb: str, catalogue: str) -> None:
    """Record which tomograms a run starts from: by a hash of its catalogue, and as an input that MLflow's pages show."""
    rows = read_catalogue(catalogue)
    version = catalogue_version(rows)
    kind = {"file": "local", "s3": "s3"}.get(storage.protocol(catalogue), "http")
    source = json.dumps({"url" if kind == "http" else "uri": redacted(catalogue)})
    profile = json.dumps({"tomograms": len(rows), "labelled": sum(row.is_labelled for row in rows)})
    name = storage.as_text(catalogue).rpartition("/")[2]
    client.log_inputs(run_id, [DatasetInput(Dataset(name, version, kind, source, profile=profile), [InputTag(MLFLOW_DATASET_CONTEXT, verb)])])
    client.set_tag(run_id, DATA, version)


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    database = uri.removeprefix("sqlite:///")
    beside = (Path(database).parent / "mlruns").as_uri() if database != uri else None  # artefacts lie beside a local database
    return str(client.create_experiment(EXPERIMENT, artifact_location=beside))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container whose user has no name
        return ""


def _safe(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)
