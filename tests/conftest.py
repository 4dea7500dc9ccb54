"""What all tests share: where the reference data lie, and quiet, fair use of the cores."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other on shared cores

import pytest

from services.ceph import S3Server
from services.fixtures import ceph, ceph_bucket, mlflow_on_postgres, new_bucket, postgres, use_s3

__all__ = ["ceph", "ceph_bucket", "mlflow_on_postgres", "postgres"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of reference vectors; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TOMORAY_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder}; set TOMORAY_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3-compatible server on a free port of this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket` of a fresh bucket, with the environment such that every S3 client finds the server."""
    use_s3(S3Server(s3_server, "test", "test"), monkeypatch)
    return new_bucket()
