"""`ddp launch`, the container's entry point, as a real process that starts from nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from runs import PATIENCE_SECONDS, REPOSITORY

from ddp_trainer.checkpoint.lock import RunLock
from ddp_trainer.launchers.local import free_port


@pytest.fixture
def launched(tmp_path, cache_dir):
    """A node that waits for a second one; gives the process and its address."""
    port = free_port()
    settings = (f"telemetry.port={port}", "fault_tolerance.lock_wait_seconds=100", f"data.cache_dir={cache_dir}")
    command = [str(Path(sys.executable).parent / "ddp"), "launch", "--config", str(REPOSITORY / "configs" / "smoke.json")]
    command += ["--run-dir", str(tmp_path / "run"), *(word for setting in settings for word in ("--set", setting))]
    place = {"PET_NODE_RANK": "0", "PET_NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(command, env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def run_dir_in_use(tmp_path):
    lock = RunLock.acquire(tmp_path / "run", wait_seconds=0)
    yield
    lock.release()


def answer(url):
    try:
        with urlopen(url, timeout=5) as response:
            return response.status
    except OSError:  # not there yet, or closed while the agent takes over from the child that answers first
        return None


def wait_for(fact, process):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def has_torch(process):
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


def is_told_to_stop(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_SECONDS) == 143
    return process.stdout.read()


def test_health_is_answered_before_torch_is_imported_and_on_until_a_node_that_waits_for_its_peer_leaves_at_once_with_143(launched):
    process, address = launched
    wait_for(lambda: answer(address + "/healthz") == 200, process)
    assert not has_torch(process)
    wait_for(lambda: has_torch(process), process)
    wait_for(lambda: answer(address + "/progress") == 200, process)  # only the agent itself has a document
    assert "asked to stop by SIGTERM" in is_told_to_stop(process)


def test_a_node_that_is_told_to_stop_while_it_imports_torch_leaves_at_once_with_143(launched):
    process, address = launched
    wait_for(lambda: answer(address + "/healthz") == 200, process)
    assert "asked to stop by SIGTERM" in is_told_to_stop(process)


@pytest.mark.usefixtures("run_dir_in_use")  # before the node starts
def test_a_node_that_waits_for_the_run_directory_can_be_told_to_stop(launched):
    process, _ = launched
    line = process.stdout.readline()
    while "in use" not in line:
        assert line, "ended without a word"
        line = process.stdout.readline()
    is_told_to_stop(process)
