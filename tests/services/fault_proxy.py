"""A server's bad days: what stands between a client and a real server, and spoils some of what passes."""

import contextlib
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REFUSALS = {"500": "InternalError", "503": "SlowDown"}
DROP, CUT, AWAY = "drop", "cut", "away"
PIECE = 2**18
CUT_FROM_BYTES = 512  # shorter bodies are passed whole


class FaultyProxy:
    """Passes requests on to a server, but for a share of them: `rates` says how often each of 500, 503 and `drop` befalls one.

    `drop` hangs up without a word. What has befallen requests is counted in `seen`. Answers come after `latency_s`, and each connection
    carries no more than `bytes_per_s`; `passed_bytes` counts those of all.
    """

    latency_s, bytes_per_s, passed_bytes = 0.0, math.inf, 0

    def __init__(self, target: str, rates: Mapping[str, float], seed: int = 0) -> None:
        self.target = urlsplit(target).netloc
        self.rates, self.seen = dict(rates), Counter[str]()
        self._random, self._lock, self._to_cut = random.Random(seed), threading.Lock(), 0
        self._server = self._listen(0)

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def cut_next(self, bodies: int = 1) -> None:
        """Let the next so many bodies end halfway."""
        with self._lock:
            self._to_cut = bodies

    def restart(self, away_s: float) -> None:
        """Hang up on everybody, and be away for some time."""
        port = self._server.server_port
        self.end()
        self.seen[AWAY] += 1
        time.sleep(away_s)
        self._server = self._listen(port)

    def end(self) -> None:
        """Hang up on everybody and listen no more."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def count(self, size: int) -> None:
        """Add to the bytes that went to clients."""
        with self._lock:
            self.passed_bytes += size

    def next_fault(self) -> str:
        """Return what befalls a request; nothing mostly."""
        with self._lock:
            drawn, fault = self._random.random(), ""
            for name, rate in self.rates.items():
                if 0 <= drawn < rate:
                    fault = name
                drawn -= rate
            self.seen[fault] += 1
            return fault

    def is_cut(self, body: bytes) -> bool:
        """Return whether a body is to end halfway."""
        with self._lock:
            cut = self._to_cut > 0 and len(body) >= CUT_FROM_BYTES
            self._to_cut -= cut
            self.seen[CUT] += cut
            return cut

    def _listen(self, port: int) -> "_Server":
        server = _Server(port, self)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # clients come by the dozen, and those that find no room ask again only after seconds

    def __init__(self, port: int, proxy: FaultyProxy) -> None:
        self.proxy, self.connections = proxy, set[socket.socket]()
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients hang up, too."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # which keeps connections, and answers Expect: 100-continue

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.next_fault()
        if fault == DROP:
            self.close_connection = True
        elif fault:
            code = REFUSALS[fault]
            self._send(int(fault), {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
        else:
            self._send(*self._pass_on(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Ask the server the same, by the name that the client has signed, and return what it says."""
        with contextlib.closing(HTTPConnection(self.server.proxy.target)) as server:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    server.putheader(name, value)
            server.endheaders(body)
            reply = server.getresponse()
            content, headers = reply.read(), dict(reply.getheaders())
        return reply.status, headers, content

    def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        proxy = self.server.proxy
        time.sleep(proxy.latency_s)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = headers.get("Content-Length", "0") if self.command == "HEAD" and status < 300 else str(len(content))
        self.send_header("Content-Length", told)
        self.end_headers()
        if self.command == "HEAD":
            return
        if proxy.is_cut(content):
            content, self.close_connection = content[: len(content) // 2], True
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            self.wfile.write(piece)
            proxy.count(len(piece))
            time.sleep(len(piece) / proxy.bytes_per_s)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty_proxy(target: str, rates: Mapping[str, float] | None = None, seed: int = 0) -> Iterator[FaultyProxy]:
    """Run a proxy for the length of a `with` block; without `rates` it passes all on."""
    proxy = FaultyProxy(target, rates or {}, seed)
    try:
        yield proxy
    finally:
        proxy.end()
