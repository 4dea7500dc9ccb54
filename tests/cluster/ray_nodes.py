"""A Ray cluster of a test's own, started as an administrator would, whose head and nodes can be lost like machines: all their processes at once."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from services.programs import free_port, listens

import psutil  # type: ignore[import-untyped]  # isort: skip  # Ray brings it

MARK = "TOMORAY_TEST_NODE"  # in the environment of all that a node starts
STORE_BYTES = 200_000_000
PATIENCE_S = 240  # on a machine that does other things too
SETTINGS = {
    "RAY_health_check_period_ms": "1000",  # a lost node is missed in 5 seconds, else in 15
    "RAY_prestart_worker_first_driver": "0",  # for which there is nothing to do
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(PATIENCE_S),
}


class Node:
    """One `ray start`, and all that comes of it."""

    def __init__(self, *options: str) -> None:
        self.mark = uuid.uuid4().hex
        ray_command = Path(sys.executable).with_name("ray")
        agent = f"--dashboard-agent-listen-port={free_port()}"
        command = [str(ray_command), "start", agent, f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *options]
        path = f"{ray_command.parent}:{os.environ['PATH']}"  # jobs run the `python` that is found there
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(command, env={**os.environ, **SETTINGS, "PATH": path, MARK: self.mark}, stdout=said, stderr=said, check=False)
            said.seek(0)
            if done.returncode:
                self.kill()
                raise AssertionError(said.read())

    def processes(self) -> list[psutil.Process]:
        """Return what runs of it."""
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found |= {process, *process.children(recursive=True)}  # Ray's workers write their titles over their environments
        return list(found)

    def workers(self, name: str) -> list[int]:
        """Return the process ids of its tasks and actors with that in their names."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                found += [process.pid] if name in "".join(process.cmdline()) else []
        return found

    def kill(self) -> None:
        """Lose it as a machine is lost: none of its processes says goodbye."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, timeout=20)


class Cluster:
    """A head, on ports that stay the same when it is started again, and nodes beside it."""

    def __init__(self, folder: str, head_cpus: int) -> None:
        self.folder, self.head_cpus = folder, head_cpus
        self.port, self.dashboard_port = free_port(), free_port()
        self.head: Node | None = None
        self.nodes: list[Node] = []

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must be for a driver of this cluster."""
        return f"{ray.util.get_node_ip_address()}:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are sent to."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self) -> None:
        """Start a head, and wait until it takes jobs."""
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}")
        self.head = Node("--head", f"--num-cpus={self.head_cpus}", *ports, f"--temp-dir={self.folder}")
        _wait_for_port(self.dashboard_port)

    def add_node(self, cpus: int) -> Node:
        """Return a node that has joined."""
        node = Node(f"--address={self.address}", f"--num-cpus={cpus}")
        self.nodes.append(node)
        return node

    def kill(self) -> None:
        """End all of it."""
        for node in (self.head, *self.nodes):
            if node:
                node.kill()


@contextmanager
def ray_cluster(head_cpus: int) -> Iterator[Cluster]:
    """Run a head for the length of a `with` block, and the nodes that are added to it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short: Ray's sockets lie in it
        cluster = Cluster(folder, head_cpus)
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.kill()


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while not listens(port):
        if time.monotonic() > until:
            raise AssertionError("the head's job server did not come up")
        time.sleep(0.25)
