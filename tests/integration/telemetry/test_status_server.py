"""The status server over real sockets."""

import http.client
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from ddp_trainer.errors import ConfigError
from ddp_trainer.telemetry import server as server_module
from ddp_trainer.telemetry.server import StatusServer


@pytest.fixture
def server():
    made = StatusServer("127.0.0.1", 0)
    made.start()
    yield made
    made.stop()


def get(server, path, method="GET"):
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, method=method), timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_health_is_answered_as_soon_as_it_is_started(server):
    assert get(server, "/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")


def test_progress_is_503_until_there_is_some(server):
    assert get(server, "/progress")[0] == 503
    server.progress = lambda: b'{"step": 1}'
    assert get(server, "/progress") == (200, "application/json", b'{"step": 1}')


def test_metrics_are_served_as_prometheus_text(server):
    server.metrics = lambda: "trainer_step 1\n"
    assert get(server, "/metrics?x=1") == (200, "text/plain; version=0.0.4; charset=utf-8", b"trainer_step 1\n")


@pytest.mark.parametrize("path", ["/", "/progress/", "/../etc/passwd", "/healthz/x"])
def test_nothing_else_is_there(server, path):
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_can_only_be_read(server, method):
    assert get(server, "/progress", method)[0] == 501


def test_a_failing_source_is_a_500_and_the_next_request_is_answered(server):
    def fail():
        raise RuntimeError("no")

    server.metrics = fail
    assert get(server, "/metrics")[0] == 500
    assert get(server, "/healthz")[0] == 200


def test_a_port_in_use_is_one_sentence_with_the_setting_to_change(server):
    second = StatusServer("127.0.0.1", server.port)
    with pytest.raises(ConfigError) as caught:
        second.start()
    assert str(caught.value) == (
        f"port {server.port} on 127.0.0.1 is in use by another program (or another run); "
        f"choose a free one with --set telemetry.port=..., or 0 for any free port"
    )
    second.stop()


def test_an_address_of_another_machine_is_refused_with_the_setting_to_change():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1 port 0.*telemetry\.host"):
        StatusServer("192.0.2.1", 0).start()


def test_a_host_name_that_does_not_exist_is_refused_likewise():
    with pytest.raises(ConfigError, match=r"telemetry\.host"):
        StatusServer("no-such-host.invalid", 0).start()


def test_a_stopped_server_frees_its_port_for_the_next_run(server):
    get(server, "/healthz")
    server.stop()
    server.stop()
    again = StatusServer("127.0.0.1", server.port)
    again.start()
    assert get(again, "/healthz")[0] == 200
    again.stop()


def test_silent_clients_do_not_keep_others_from_being_answered(server):
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    try:
        assert get(server, "/healthz")[0] == 200
    finally:
        for client in silent:
            client.close()


def test_more_clients_than_there_is_room_for_are_turned_away_and_room_comes_back(server):
    crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(server_module.MAX_CLIENTS)]
    try:
        for client in crowd:  # an answer to half a request is nothing, but it proves that its thread runs
            client.sendall(b"GET /healthz HTTP/1.0\r\n")
        late = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        late.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        try:
            assert late.recv(100) == b""
        except ConnectionResetError:
            pass
        finally:
            late.close()
        for client in crowd:
            client.sendall(b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 200")
    finally:
        for client in crowd:
            client.close()


def test_a_client_that_says_nothing_is_dropped(monkeypatch, server):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        assert client.recv(100) == b""


def test_a_request_without_end_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/" + "x" * 70_000)
    assert connection.getresponse().status == 414
    connection.close()


def test_the_server_needs_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pydantic', 'rich', 'psutil', 'prometheus_client', 'yaml'}"
    code = f"import sys, ddp_trainer.telemetry.server; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
