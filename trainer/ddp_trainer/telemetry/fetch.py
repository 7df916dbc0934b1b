"""Asking another node for its progress, with every bound a reader of a hostile server needs."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from urllib.parse import urlsplit

from ddp_trainer.errors import DataError, PeerLostError
from ddp_trainer.telemetry.document import MAX_BYTES, Progress, parse

HTTP_OK = 200
ENDPOINTS_FILE = "endpoints.json"
"""In the run directory of `ddp local`, which writes it for `ddp top`: `{"nodes": ["http://127.0.0.1:9400", ...]}`, node 0 first."""


def fetch(url: str, timeout: float = 2.0) -> Progress:
    """GET `<url>/progress` (or `url` itself if it ends so) and parse it; never longer than about twice `timeout` seconds.

    No redirects, no proxies, no more than `MAX_BYTES` of a body, and a server that drips bytes is cut off.

    Raises:
        DataError: if `url` is not an http address, or the answer is not a progress document.
        PeerLostError: if nobody answers within the bound, or the node has no progress yet.
    """
    host, port, path = _address(url)
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    cut: threading.Timer | None = None
    try:
        connection.connect()
        # A timeout on a socket bounds each wait, not the sum of them: this bounds the sum.
        cut = threading.Timer(timeout, _cut_off, (connection.sock,))
        cut.daemon = True
        cut.start()
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        status, body = answer.status, answer.read(MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or (str(error) if isinstance(error, OSError) else "") or type(error).__name__
        raise PeerLostError(f"{url} did not answer within {timeout:g} s: {reason}; is the run's agent alive there?") from None
    finally:
        if cut:
            cut.cancel()
        connection.close()
    if status != HTTP_OK:
        wait = "its node has no progress yet" if status == http.client.SERVICE_UNAVAILABLE else "is this the address of a ddp run?"
        raise PeerLostError(f"{url} answered with status {status}; {wait}")
    try:
        return parse(body)
    except DataError as error:
        raise DataError(f"{url}: {error}") from None


def _address(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or http.client.HTTP_PORT
    except ValueError:
        host = None
    if not host or parts.scheme != "http":
        raise DataError(f"{url} is not the address of a node; give one like http://127.0.0.1:9400")
    return host, port, parts.path if parts.path.endswith("/progress") else parts.path.rstrip("/") + "/progress"


def _cut_off(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
