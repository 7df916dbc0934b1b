"""The node's HTTP window: `/healthz` (the agent lives), `/metrics` (Prometheus) and `/progress` (JSON), and nothing else.

It is started before anything heavy is imported, so only the standard library is used; `progress` and `metrics` are assigned when there is
something to say. Each request is answered and closed; a slow or silent client costs one of a bounded number of threads for a bounded
time, and never the training.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ddp_trainer.errors import ConfigError
from ddp_trainer.parentage import die_with

logger = logging.getLogger(__name__)

CLIENT_TIMEOUT_SECONDS = 5.0
"""A client that neither sends nor reads for this long is dropped; kubelet and Prometheus answer in milliseconds."""
MAX_CLIENTS = 32
"""Requests answered at once: a scraper, a probe, the operator and some people; more are turned away at once."""
BIND_SECONDS = 2.0
"""How long a port may be in use: a killed predecessor's last process is on its way out."""
POLL_SECONDS = 0.1
"""How soon `stop` is noticed."""


def _nothing() -> bytes | None:
    return None


def _no_metrics() -> str:
    return ""


class StatusServer:
    """Serves on `host:port` from a daemon thread between `start` and `stop`; port 0 takes a free one."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.progress: Callable[[], bytes | None] = _nothing
        """The JSON document to serve, or None while there is none (answered with 503)."""
        self.metrics: Callable[[], str] = _no_metrics
        """The Prometheus text to serve."""
        self._wanted_port = port
        self._http: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port in use once started (the real one if 0 was asked for)."""
        return int(self._http.server_address[1]) if self._http else self._wanted_port

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (compared, not bound)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @contextlib.contextmanager
    def answered_by_a_child(self) -> Iterator[None]:
        """Serve from a forked process meanwhile, so that this one stays free of threads and may still fork; `start` comes after it.

        Raises:
            ConfigError: as `start`.
        """
        http, parent = self._bound(), os.getpid()
        child = os.fork()
        if child == 0:
            try:
                die_with(parent)
                for signum in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_DFL)
                http.serve_forever(poll_interval=POLL_SECONDS)
            finally:
                os._exit(0)
        http.server_close()  # whatever this process forks must not hold the port
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def start(self) -> None:
        """Bind and serve.

        Raises:
            ConfigError: if the address cannot be bound for `BIND_SECONDS`, with the reason and the setting to change.
        """
        self._http = self._bound()
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, name="status-server", daemon=True
        )
        self._thread.start()

    def _bound(self) -> _Server:
        deadline = time.monotonic() + BIND_SECONDS
        while True:
            try:
                return _Server(self, self.host, self._wanted_port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                    raise ConfigError(_why_not(self.host, self._wanted_port, error)) from None
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop serving and free the port; may be called twice, or without `start`. Takes up to `POLL_SECONDS`."""
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
            self._thread = None


_SOURCES: dict[str, Callable[[StatusServer], tuple[bytes | None, str]]] = {
    "/healthz": lambda _: (b"ok\n", "text/plain; charset=utf-8"),
    "/metrics": lambda owner: (owner.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8"),
    "/progress": lambda owner: (owner.progress(), "application/json"),
}


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another program (or another run); "
            f"choose a free one with --set telemetry.port=..., or 0 for any free port"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs rights that this user has not; choose one above 1023 with --set telemetry.port=..."
    return f"cannot listen on {host} port {port}: {error.strerror}; set telemetry.host to an address of this machine, such as 127.0.0.1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2 * MAX_CLIENTS  # a full queue would leave clients waiting for seconds instead of being turned away
    block_on_close = False  # a client in mid-request must not hold up the agent's exit

    def __init__(self, owner: StatusServer, host: str, port: int) -> None:
        self.owner = owner
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look up the host's full name here, which hangs for seconds where DNS is slow or absent.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002 (the signature is socketserver's)
        return self._room.acquire(blocking=False)

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 (the signature is socketserver's)
        logger.debug("a client of the status server went away: %s", sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_TIMEOUT_SECONDS
    server_version = "ddp-trainer"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request; a source that fails is a 500, and is logged."""
        source = _SOURCES.get(self.path.partition("?")[0])
        if source is None:
            self._answer(404, b"here are /healthz, /metrics and /progress\n")
            return
        try:
            body, content_type = source(self.server.owner)
        except Exception:  # a thread's edge: a probe that gets an answer can tell a bug from a dead node
            logger.exception("cannot make %s", self.path)
            self._answer(500, b"this failed; see the node's log\n")
            return
        if body is None:
            self._answer(503, b"no progress yet\n")
        else:
            self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the signature is http.server's)
        logger.debug(format, *args)
