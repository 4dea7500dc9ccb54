"""MLflow's server as a cluster runs it: records in PostgreSQL, artefacts in a bucket through the server."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.ceph import S3Server
from services.postgres import Database
from services.programs import free_port, scratch_folder, started


@dataclass(frozen=True)
class MlflowServer:
    """Where a server is, and where it keeps artefacts."""

    address: str
    artefacts: str


@contextmanager
def mlflow_server(database: Database, s3: S3Server, artefacts: str) -> Iterator[MlflowServer]:
    """Yield a running server.

    Raises
    ------
    UnavailableError
        If it does not start.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    where = ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    stores = [f"--backend-store-uri={database.address}", f"--artifacts-destination={artefacts}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    environment |= {**s3.environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "PGPASSWORD": database.password}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # jobs of its own, which nobody here gives it
    with scratch_folder() as folder:
        command = [sys.executable, "-m", "mlflow", "server", *where, *stores]
        with started(command, folder, env=environment, cwd=folder) as server:
            server.wait_until(lambda: _is_healthy(address))
            yield MlflowServer(address, artefacts)


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
