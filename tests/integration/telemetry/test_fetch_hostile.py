"""Fetching progress from servers that do not behave."""

import socket
import threading

import pytest

from ddp_trainer.errors import DataError, PeerLostError
from ddp_trainer.telemetry.document import MAX_BYTES, Progress
from ddp_trainer.telemetry.fetch import fetch

GOOD = Progress(run="demo", attempt=1, phase="training", updated_at=10.0, world_size=2).to_bytes()


@pytest.fixture
def serve():
    """Starts servers that send chunks, with an endless last one on demand; returns their URLs."""
    listeners, threads, over = [], [], threading.Event()

    def start(*chunks, forever=b""):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                try:
                    for chunk in chunks:
                        connection.sendall(chunk)
                    while forever and not over.is_set():
                        connection.sendall(forever)
                        over.wait(0.01)
                except OSError:
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join()


def ok(body, length=None):
    return b"HTTP/1.0 200 OK\r\n" + (b"" if length is None else b"Content-Length: %d\r\n" % length) + b"\r\n" + body


def test_a_good_answer_is_parsed(serve):
    assert fetch(serve(ok(GOOD, len(GOOD)))).run == "demo"
    assert fetch(serve(ok(GOOD)) + "/progress").run == "demo"


def test_an_answer_without_end_is_cut_at_the_cap(serve):
    with pytest.raises(DataError, match="larger than"):
        fetch(serve(ok(b"x"), forever=b"x" * MAX_BYTES))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n{"])
def test_a_server_that_drips_is_cut_off(serve, start):
    with pytest.raises((PeerLostError, DataError)):
        fetch(serve(start, forever=b" "), timeout=0.2)


def test_a_redirect_is_not_followed(serve):
    target = serve(ok(GOOD))
    answer = f"HTTP/1.0 302 Found\r\nLocation: {target}/progress\r\n\r\n".encode()
    with pytest.raises(PeerLostError, match="status 302"):
        fetch(serve(answer))
    assert fetch(target).run == "demo"  # nobody had asked there before


def test_no_progress_yet_is_told_as_such(serve):
    with pytest.raises(PeerLostError, match="no progress yet"):
        fetch(serve(b"HTTP/1.0 503 Service Unavailable\r\n\r\n"))


def test_what_is_not_http_is_refused(serve):
    with pytest.raises(PeerLostError, match="did not answer"):
        fetch(serve(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))


def test_nobody_there_is_told_with_the_address(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(PeerLostError, match=f"{url} did not answer.*refused"):
        fetch(url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "https://x", "http://", "http://x:notaport", "", "http://[", "ftp://x/"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(DataError, match="not the address of a node"):
        fetch(url)
