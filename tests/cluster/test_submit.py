"""Jobs sent to a job server: found where they run, followed through connections that break. The server is a stand-in; no Ray is started."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from tomoray.cluster import submit as module
from tomoray.cluster.submit import follow, submit
from tomoray.config import ConfigError, read_settings_text
from tomoray.jobs import PickJob
from tomoray.submission import fingerprint

JOB = PickJob(output="/d", catalogue="/c", checkpoint="/p")
ADDRESS = "http://someone:password@head:8265"


class Server:
    """A job server whose job ends after some looks at it, and whose connections break now and then."""

    def __init__(self, jobs: list[Any] | None = None, breaks: tuple[int, ...] = (), ends_after: int = 3) -> None:
        self.jobs, self.breaks, self.ends_after = jobs or [], breaks, ends_after
        self.sent: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.looks = self.tails = 0

    def get_address(self) -> str:
        return ADDRESS

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, **told: Any) -> str:
        folder = Path(told["runtime_env"]["working_dir"])
        self.files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        self.sent = told
        return "raysubmit_1"

    def get_job_info(self, submission_id: str) -> Any:
        self.looks += 1
        if self.looks in self.breaks:
            raise ConnectionError("gone")
        over = self.looks >= self.ends_after
        return SimpleNamespace(status=JobStatus.FAILED if over else JobStatus.RUNNING, driver_exit_code=3 if over else None)

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        self.tails += 1
        log = [f"line {number}\n" for number in range(10)]
        for number, line in enumerate(log if self.looks else log[:6]):
            if self.tails in self.breaks and number == 4:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield line


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a server in the place of all others."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")

    def put(server: Any) -> Any:
        monkeypatch.setattr(module, "JobSubmissionClient", lambda address: server)
        return server

    return put


def test_a_job_is_sent_with_its_file_and_nothing_of_ours(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: our environment in the runtime environment; the address of the environment instead of the one that is given."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-your-eyes")
    server = connect(Server())
    sent = submit("pick", "pick_x.toml", JOB, address=ADDRESS)
    assert (sent.submission_id, sent.found) == ("raysubmit_1", False)
    assert sent.address == "http://***@head:8265"
    assert module.os.environ["RAY_API_SERVER_ADDRESS"] == ADDRESS
    assert server.sent["entrypoint"] == "python -m tomoray pick jobs/pick_x.toml"
    assert set(server.sent["runtime_env"]) == {"working_dir"}
    assert "tomoray/cluster/pick.py" in server.files
    assert not any("not-for-your-eyes" in text for text in (*server.files.values(), str(server.sent)))
    assert read_settings_text(PickJob, server.files["jobs/pick_x.toml"], "sent") == JOB


def test_the_same_job_is_not_started_twice(connect: Any) -> None:
    """Planted: jobs that are over taken for running ones, so that nothing could be done again."""
    ours = {"tomoray": fingerprint("pick", JOB)}
    over = SimpleNamespace(status=JobStatus.FAILED, metadata=ours, submission_id="old")
    other = SimpleNamespace(status=JobStatus.RUNNING, metadata={"tomoray": "other"}, submission_id="other")
    driver = SimpleNamespace(status=JobStatus.RUNNING, metadata=None, submission_id=None)
    running = SimpleNamespace(status=JobStatus.PENDING, metadata={**ours, "job_name": "x"}, submission_id="mine")
    connect(Server([driver, other, over]))
    assert not submit("pick", "pick.toml", JOB, address=ADDRESS).found
    connect(Server([driver, other, over, running]))
    found = submit("pick", "pick.toml", JOB, address=ADDRESS)
    assert (found.submission_id, found.found) == ("mine", True)


@pytest.mark.parametrize("breaks", [(), (1,), (2,), (1, 2, 3), (3,)])
def test_a_log_is_shown_once_whatever_breaks(connect: Any, breaks: tuple[int, ...]) -> None:
    """Planted: a log shown from its start after each break; its end lost where the job ended meanwhile."""
    server = connect(Server(breaks=breaks))
    written: list[str] = []
    details = follow(submit("pick", "pick.toml", JOB, address=ADDRESS), written.append)
    assert (details.status, details.driver_exit_code) == (JobStatus.FAILED, 3)
    assert "".join(written) == "".join(f"line {number}\n" for number in range(10))
    assert server.tails >= 3


def test_a_server_that_is_gone_is_told(connect: Any) -> None:
    connect(Server(breaks=tuple(range(100))))
    with pytest.raises(ConnectionError, match=r"http://\*\*\*@head:8265: no news of raysubmit_1 .* give the same command again"):
        follow(submit("pick", "pick.toml", JOB, address=ADDRESS), lambda text: None)


@pytest.mark.parametrize(
    ("raised", "error", "told"),
    [
        (AuthenticationError("who are you"), ConfigError, "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        (ConnectionError(f"Failed to connect to Ray at address: {ADDRESS}."), ConnectionError, "check the address"),
        (RuntimeError("Request failed with status code 500"), ConfigError, "see the log of its head"),
    ],
)
def test_refusals_are_told_in_words(monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], told: str) -> None:
    def refuse(address: str) -> None:
        raise raised

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setattr(module, "JobSubmissionClient", refuse)
    with pytest.raises(error, match=told) as caught:
        submit("pick", "pick.toml", JOB, address=ADDRESS)
    assert "password" not in str(caught.value)


def test_a_cluster_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: whatever Ray runs on this machine is taken."""
    for name in module.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no cluster; it must be named: give --address"):
        submit("pick", "pick.toml", JOB)
