"""What an agent's process does with what nobody foresaw: its last words, and a code by which it is started again."""

from __future__ import annotations

import errno
import json
import logging
import signal
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import DataError, PeerLostError
from ddp_trainer.resilience import entrypoint
from ddp_trainer.resilience.agent import GangAgent
from ddp_trainer.resilience.entrypoint import Node


@pytest.fixture
def bare(monkeypatch):
    """This process stays as it is: no fork, no signal handler, no port."""
    monkeypatch.setattr(entrypoint, "PRELOAD", ())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(entrypoint, "Zygote", SimpleNamespace(fork=lambda _: SimpleNamespace(close=lambda: None)))
    server = SimpleNamespace(answered_by_a_child=nullcontext, start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(entrypoint, "StatusServer", lambda *_: server)


def test_an_agent_that_fails_in_its_own_code_says_so_and_is_retried(bare, monkeypatch, tmp_path, caplog):
    def fails(*_):
        raise TypeError("an odd value")

    monkeypatch.setattr(entrypoint, "_supervise", fails)
    node = Node(node=1, nodes=2, host="127.0.0.1", port=1, ranks_on_machine=1, ending=str(tmp_path / "words"))
    code = entrypoint.run(RunConfig().model_dump(mode="json"), asdict(node), {})
    words = json.loads((tmp_path / "words").read_text())
    assert (code, words["exit"], words["cause"], words["node"]) == (160, 160, "crash", 1)
    assert "TypeError: an odd value" in words["message"]
    assert "Traceback" in caplog.text, "it is a mistake of this program"


def test_shared_memory_that_cannot_be_written_is_a_sentence(monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(DataError, match=r"ddp-.*-node-0.* cannot be made: Read-only file system; make .* writable"),
        entrypoint._scratch(RunConfig(), 0),
    ):
        pass


def test_a_node_that_has_told_of_a_fault_does_not_wait_for_ever_for_node_0(monkeypatch):
    config = RunConfig.model_validate({"distributed": {"peer_timeout_seconds": 30}})
    agent = SimpleNamespace(_config=config, _barrier=SimpleNamespace(node=1))
    monkeypatch.setattr("ddp_trainer.resilience.agent.time.monotonic", lambda: 131.0)
    for reported_since in (None, 101.0):
        GangAgent._assert_judged(agent, reported_since)
    with pytest.raises(PeerLostError, match=r"node 0 has not said for 31 s .* look at its log, and at the volume"):
        GangAgent._assert_judged(agent, 100.0)
    agent._barrier.node = 0
    GangAgent._assert_judged(agent, 100.0)
