"""Servers as fixtures, one of each per run of the tests; a test that needs one is skipped where it cannot be had."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import pytest

from services.ceph import S3Server, ceph_gateway
from services.mlflow_server import MlflowServer, mlflow_server
from services.postgres import Database, postgres_server
from services.programs import UnavailableError

Started = TypeVar("Started")

NO_LONGER_SET = ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REQUEST_CHECKSUM_CALCULATION", "TOMORAY_S3_ANONYMOUS")


def use_s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment such that every S3 client finds the server."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for name in NO_LONGER_SET:
        monkeypatch.delenv(name, raising=False)


def new_bucket() -> str:
    """Return `s3://bucket` of a fresh bucket on the server that the environment names."""
    from boto3.session import Session

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = Session().client("s3")  # a session of its own: the module's would keep the keys of whoever asked first
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"


def _or_skip(server: AbstractContextManager[Started]) -> Iterator[Started]:
    with ExitStack() as stack:
        try:
            there = stack.enter_context(server)
        except UnavailableError as reason:
            pytest.skip(str(reason))
        yield there


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """A real S3 server, Ceph's gateway."""
    yield from _or_skip(ceph_gateway())


@pytest.fixture
def ceph_bucket(ceph: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket` of a fresh bucket on Ceph's gateway, with the environment such that every S3 client finds it and asks nothing new of it."""
    use_s3(ceph, monkeypatch)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("TOMORAY_CONNECT_TIMEOUT_S", "60")  # where many processes share few cores, either end may have to wait for its turn
    return new_bucket()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Database]:
    """A PostgreSQL server with an empty database."""
    yield from _or_skip(postgres_server())


@pytest.fixture(scope="session")
def mlflow_on_postgres(postgres: Database, ceph: S3Server) -> Iterator[MlflowServer]:
    """An MLflow server with records in PostgreSQL and artefacts in a bucket on Ceph's gateway."""
    with pytest.MonkeyPatch.context() as environment:
        use_s3(ceph, environment)
        bucket = new_bucket()
    yield from _or_skip(mlflow_server(postgres, ceph, f"{bucket}/mlflow"))
