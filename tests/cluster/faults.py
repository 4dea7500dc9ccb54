"""Tomograms that go wrong on purpose: what picking by the hundred must live with, from outside, as the world would do it.

A small web server refuses now and then, and sends a signal to a process that asks for certain files, as if their codec had crashed it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import ray  # noqa: F401, brings psutil
import torch

from tomoray.catalogue import CatalogueRow, write_catalogue
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.config import dump_settings
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import PickJob
from tomoray.results import committed
from tomoray.tomogram import Particle, Tomogram

import psutil  # type: ignore[import-untyped]  # isort: skip

VOXEL_ANGSTROM = 10.0
PARTICLES = (Particle("ribosome", 150.0), Particle("virus-like-particle", 135.0))


class FaultyServer(ThreadingHTTPServer):
    """Serves one file under any name; `flaky` ones after a refusal, `deadly` ones never, `once-deadly` ones at the second try.

    How often each was asked for is in `asked`; a process that is crashing may ask again, so those that crashed are in `crashed`.
    """

    daemon_threads = True

    def __init__(self, content: bytes, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.delay_s = content, delay_s
        self.asked: Counter[str] = Counter()
        self.crashed: defaultdict[str, set[int]] = defaultdict(set)
        self.lock = threading.Lock()

    def uri(self, name: str) -> str:
        """Return the address of a file."""
        return f"http://127.0.0.1:{self.server_port}/{name}.mrc"


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_GET(self) -> None:
        name = Path(self.path).stem
        time.sleep(self.server.delay_s)
        with self.server.lock:
            self.server.asked[name] += 1
            first = self.server.asked[name] == 1
        if name.startswith("deadly") or (name.startswith("once-deadly") and first):
            self.server.crashed[name] |= crash_process_at(self.client_address[1])
            return
        refused = name.startswith("flaky") and first
        self.send_response(503 if refused else 200)
        content = b"slow down" if refused else self.server.content
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def crash_process_at(port: int) -> set[int]:
    """Let the process of this machine that holds the other end of a connection crash, if it has not done so already; return its id."""
    pids = {c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.pid}
    for pid in pids:
        os.kill(pid, signal.SIGSEGV)
    return pids


@contextmanager
def faulty_server(content: bytes, delay_s: float = 0.0) -> Iterator[FaultyServer]:
    """Run a server for the length of a `with` block; it may wait before it answers."""
    server = FaultyServer(content, delay_s)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def small_volume(seed: int = 0, size: int = 32) -> Tomogram:
    """Return a cube of noise."""
    values = np.random.default_rng(seed).normal(size=(size,) * 3).astype(np.float32)
    return Tomogram("volume", values, (VOXEL_ANGSTROM,) * 3)


def small_checkpoint(folder: Path, seed: int = 0, thresholds: Sequence[float] = (0.4, 0.4), width: int = 4) -> str:
    """Write a small untrained picker, which finds something in noise, and return where it is."""
    torch.manual_seed(seed)
    network = {"name": "asymmetric_unet", "width": width, "blocks": (1, 1)}
    names = (p.name for p in PARTICLES)
    card = Card(PARTICLES, VOXEL_ANGSTROM, "dark", network, tile_vox=16, thresholds=dict(zip(names, thresholds, strict=True)))
    return save_untrained(card, folder)


def save_untrained(card: Card, folder: Path) -> str:
    """Write a picker with fresh weights, which finds something in noise, and return where it is."""
    picker = card.build()
    *_, bias = (parameter for name, parameter in picker.named_parameters() if name.endswith("bias"))
    torch.nn.init.zeros_(bias)  # of the last layer, which starts where it sees nothing anywhere
    folder.mkdir(parents=True)
    save_checkpoint(folder, card, picker)
    return str(folder)


def row(name: str, uri: str, size: int = 32) -> CatalogueRow:
    """Return the catalogue row of a small volume."""
    return CatalogueRow(name, name, uri, (size,) * 3, "float32", VOXEL_ANGSTROM, 0.0, 1.0, -4.0, 4.0, "dark", split="unlabelled")


def faulty_catalogue(folder: Path, server: FaultyServer, good: int, flaky: int, corrupt: int) -> str:
    """Write a catalogue: as many good, flaky and corrupt rows, a deadly and a once-deadly one, well mixed; return where it is."""
    volume, cut = folder / "volume.mrc", folder / "cut.mrc"
    write_mrc(volume, small_volume())
    cut.write_bytes(server.content[:-1000])
    rows = [row(f"good-{i:04d}", str(volume)) for i in range(good)]
    rows += [row(f"flaky-{i:04d}", server.uri(f"flaky-{i:04d}")) for i in range(flaky)]
    rows += [row(f"corrupt-{i:04d}", str(cut)) for i in range(corrupt)]
    rows += [row(name, server.uri(name)) for name in ("deadly", "once-deadly")]
    order = np.random.default_rng(0).permutation(len(rows))
    catalogue = str(folder / "catalogue.parquet")
    write_catalogue(catalogue, [rows[i] for i in order])
    return catalogue


def kill_driver(job: PickJob, folder: str, file: Path, tables: int = 5) -> None:
    """Pick in a process with a Ray of its own, and kill that process once some tables are there; all it started must end by itself."""
    file.write_text(dump_settings(job))
    driver = subprocess.Popen([sys.executable, "-m", "tomoray", "pick", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(committed(folder)) < tables:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    started = psutil.Process(driver.pid).children(recursive=True)
    agents = [process for process in started if "Agent" in process.name()]  # Ray's own, which look after their parent once a minute
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs(set(started) - set(agents), timeout=120)
    assert not alive, "what a killed driver leaves must not go on"
    for agent in psutil.wait_procs(agents, timeout=0)[1]:
        agent.kill()


def kill_actors(folder: str, at: tuple[int, ...], killed: list[int]) -> None:
    """Kill a predicting actor each time that as many tables are there."""
    for count in at:
        while len(committed(folder)) < count:
            time.sleep(0.05)
        victim = next(pid for pid in actors("Predict") if pid not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


def actors(name: str) -> list[int]:
    """Return the process ids of this Ray's actors whose class has that name in its own; asked of the system, since a busy Ray answers late."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    alive = psutil.process_iter(["cmdline"])  # passes over those that end meanwhile
    return [process.pid for process in alive if process.pid in ours and name in "".join(process.info["cmdline"] or ())]
