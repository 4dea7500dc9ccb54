"""Jobs on a cluster elsewhere: sent through Ray's job server, followed to their end, and never started twice at a time.

A job goes on without whoever sent it. The same command finds it while it runs, by a hash of its settings, and follows it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tomoray.config import ConfigError, Settings
from tomoray.credentials import redacted
from tomoray.submission import command, fingerprint, pack

log = logging.getLogger(__name__)

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # of the environment, in Ray's order
OURS = "tomoray"  # metadata: the job's fingerprint
PATIENCE, PAUSE_S = 30, 2.0  # times that a server may fail to answer in a row, and the seconds between


@dataclass(frozen=True)
class Sent:
    """A job on a cluster: its id there, and whether it was there before."""

    client: JobSubmissionClient
    submission_id: str
    found: bool

    @property
    def address(self) -> str:
        """Where its server is, as it may be shown."""
        return redacted(str(self.client.get_address()))


def submit(verb: str, name: str, job: Settings, *, address: str = "", package: bool = True, verbose: bool = False) -> Sent:
    """Send a job, or find the very job where it waits or runs.

    Raises
    ------
    ConfigError
        If no cluster is named, or it refuses the job or us.
    ConnectionError
        If it does not answer.
    """
    client = _connect(address)
    told = {OURS: fingerprint(verb, job)}
    with _plain_errors(str(client.get_address())):
        for old in client.list_jobs():
            if not old.status.is_terminal() and (old.metadata or {}).items() >= told.items() and old.submission_id:
                return Sent(client, old.submission_id, True)
        with tempfile.TemporaryDirectory() as temporary:
            pack(Path(temporary), name, job, package=package)
            env = {"working_dir": temporary}  # and nothing else: what runtime environments hold is shown to all who may see the dashboard
            entrypoint = command(verb, name, verbose=verbose)
            return Sent(client, client.submit_job(entrypoint=entrypoint, runtime_env=env, metadata=told), False)


def follow(sent: Sent, write: Callable[[str], None]) -> JobDetails:
    """Write a job's log as it grows, and return its details once it is over; connections that break are made again.

    Raises
    ------
    ConnectionError
        If the server does not answer any more.
    """
    said, failures = _Log(sent, write), 0
    while failures < PATIENCE:
        whole = said.follow()
        try:
            details = sent.client.get_job_info(sent.submission_id)
        except (RuntimeError, OSError) as error:
            log.debug("no news of the job: %s", redacted(str(error)))
            failures += 1
        else:
            failures = 0
            if details.status.is_terminal():
                if not whole:  # it ended while we could not listen
                    said.follow()
                return details
        time.sleep(PAUSE_S)
    raise ConnectionError(
        f"{sent.address}: no news of {sent.submission_id} for a minute, though it may well go on; the server must be reachable: "
        "give the same command again, which follows it from here on"
    )


class _Log:
    """What of a job's log was written; the server sends all of it each time it is asked."""

    def __init__(self, sent: Sent, write: Callable[[str], None]) -> None:
        self.sent, self.write, self.written = sent, write, 0

    def follow(self) -> bool:
        """Write what is new until the log ends; return whether it did, or the connection broke."""
        try:
            asyncio.run(self._follow())
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            log.debug("the log broke off: %s", redacted(str(error)))
            return False
        return True

    async def _follow(self) -> None:
        read = 0
        async for text in self.sent.client.tail_job_logs(self.sent.submission_id):
            new = text[max(0, self.written - read) :]
            read += len(text)
            self.written = max(self.written, read)
            self.write(new)


def _connect(address: str) -> JobSubmissionClient:
    address = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), "")
    if not address:
        raise ConfigError(f"no cluster; it must be named: give --address http://HEAD:8265, or set {ADDRESSES[0]}")
    os.environ[ADDRESSES[0]] = address  # which Ray heeds more than the address it is given
    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("ray").setLevel(logging.ERROR)  # else it tells of each package that it sends
    with _plain_errors(address):
        return JobSubmissionClient(address)


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into errors that a person can act upon."""
    where = redacted(address)
    try:
        yield
    except AuthenticationError:
        raise ConfigError(
            f"{where}: the cluster does not know us; it wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, as k8s/README.md shows"
        ) from None
    except OSError as error:  # those of requests among them
        raise ConnectionError(
            f"{where}: no job server of Ray answers ({redacted(str(error)).splitlines()[0]}); it is on the head's dashboard port, 8265 as a rule: "
            "check the address, or whether the port is forwarded"
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: the job server refused ({redacted(str(error)).splitlines()[0]}); the cluster must run Ray 2.60 or later and take jobs: "
            "see the log of its head"
        ) from None
