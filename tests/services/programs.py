"""Programs of other projects, started by tests and ended with them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 900  # until a server answers: MLflow makes tables for fifteen seconds, and machines are busy with other things


class UnavailableError(RuntimeError):
    """A server that cannot be had here; the message says why."""


def find_programs(*names: str, folders: str | None = None) -> list[str]:
    """Return where programs are, in PATH or other folders.

    Raises
    ------
    UnavailableError
        If one is missing.
    """
    found = {name: shutil.which(name, path=folders) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise UnavailableError(f"{', '.join(missing)} not found; `make services` installs them where it can")
    return [str(path) for path in found.values()]


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def scratch_folder(owner: str | None = None) -> Iterator[Path]:
    """Yield a new folder that only its owner may enter; pytest's own lie below one that only the caller may."""
    with tempfile.TemporaryDirectory(prefix="tomoray-", ignore_cleanup_errors=True) as name:
        if owner:
            shutil.chown(name, owner)
        yield Path(name)


def run(command: Sequence[str], **options: Any) -> str:
    """Return what a program prints.

    Raises
    ------
    UnavailableError
        If it fails.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False, **options)
    if done.returncode:
        raise UnavailableError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


class Server:
    """A program in the background, and where it writes what it has to say."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process, self.name, self.log = process, name, log

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Return once it answers.

        Raises
        ------
        UnavailableError
            If it ends before, or takes too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not answers():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = f"ended with {ended}" if ended is not None else f"did not answer for {PATIENCE_S} s"
                raise UnavailableError(f"{self.name} {what}: {self.log.read_text(errors='replace').strip()[-500:]}")
            time.sleep(0.05)


@contextmanager
def started(command: Sequence[str], folder: Path, *, stop: signal.Signals = signal.SIGKILL, **options: Any) -> Iterator[Server]:
    """Run a program for the length of a `with` block; what it has started in turn ends with it."""
    name = Path(command[0]).name
    log = folder / f"{name}.out"
    leash = [setpriv, "--pdeathsig", "KILL", "--"] if (setpriv := shutil.which("setpriv")) else []  # where we are killed, it ends too
    with log.open("wb") as output:
        quietly: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([*leash, *command], start_new_session=True, **quietly, **options)
    try:
        yield Server(process, name, log)
    finally:
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
