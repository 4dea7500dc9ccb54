"""A PostgreSQL server of the tests' own, on loopback and gone afterwards."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.programs import UnavailableError, find_programs, free_port, run, scratch_folder, started

DEBIAN = Path("/usr/lib/postgresql")  # a folder for each version, none of them in PATH
SOME_USER = "postgres"  # whom Debian's packages make; the server refuses to run as root
PASSWORD = "password-of-tests"


@dataclass(frozen=True)
class Database:
    """Where a database is; its driver takes the password from PGPASSWORD."""

    address: str
    password: str


@contextmanager
def postgres_server() -> Iterator[Database]:
    """Yield a running server with an empty database.

    Raises
    ------
    UnavailableError
        If its programs are not here, or do not start.
    """
    folders = os.pathsep.join([os.environ.get("PATH", ""), *sorted(map(str, DEBIAN.glob("*/bin")), reverse=True)])
    initdb, postgres, createdb, is_ready = find_programs("initdb", "postgres", "createdb", "pg_isready", folders=folders)
    user: dict[str, Any] = {"user": SOME_USER, "group": SOME_USER, "extra_groups": []} if os.geteuid() == 0 else {}
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder(user.get("user")))
        except LookupError:
            raise UnavailableError(f"there is no user {SOME_USER} to run PostgreSQL as, which root must not") from None
        port, secret, options = free_port(), folder / "password", {**user, "cwd": folder}
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # within a folder that its owner alone may enter
        data = ["-D", str(folder / "data")]
        run(
            [initdb, *data, "--username=mlflow", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"],
            **options,
        )
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off", "dynamic_shared_memory_type=mmap"]
        command = [postgres, *data, *(word for setting in settings for word in ("-c", setting))]
        server = stack.enter_context(started(command, folder, stop=signal.SIGQUIT, **options))
        where = ["--host=127.0.0.1", f"--port={port}"]
        ready = [is_ready, "--quiet", *where]
        server.wait_until(lambda: _succeeds(ready))
        run([createdb, *where, "--username=mlflow", "mlflow"], **options, env={**os.environ, "PGPASSWORD": PASSWORD})
        yield Database(f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow", PASSWORD)


def _succeeds(command: list[str]) -> bool:
    try:
        run(command)
    except UnavailableError:
        return False
    return True
