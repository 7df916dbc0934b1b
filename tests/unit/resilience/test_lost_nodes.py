"""Nodes as real processes that are killed: the others wait for the successor and meet it, also when the store went with its host."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import pytest
from processes import PATIENCE_SECONDS

from ddp_trainer.errors import PeerLostError
from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience import agent_store, rendezvous
from ddp_trainer.resilience.rendezvous import GenerationBarrier, StoreLostError

NODES = 4


class Cluster:
    """Four node processes below the warm zygote, and the mailbox to which they report."""

    def __init__(self, parent, folder):
        self.parent, self.port = parent, free_port()
        self.mailbox_path = str(folder / "mailbox")
        self.mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.mailbox.bind(self.mailbox_path)
        self.mailbox.settimeout(PATIENCE_SECONDS)
        self.pids = {}
        self.log = folder / "log"

    def start(self, node):
        environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", "RES_OPTIONS": "timeout:1 attempts:2"}
        arguments = {"node": node, "nodes": NODES, "port": self.port, "mailbox": self.mailbox_path}
        self.pids[node] = self.parent.spawn("barrier_node:be", environment=environment, log=self.log, **arguments)

    def kill(self, node):
        """SIGKILL, and wait until it is gone."""
        self.parent.ask("kill", self.pids[node], int(signal.SIGKILL))
        assert self.parent.deaths(1) == {self.pids[node]: -signal.SIGKILL}

    def report(self):
        return json.loads(self.mailbox.recv(65536))

    def all_meet(self):
        """Wait until every living node has met exactly the living ones; gives the generation."""
        expected = [self.pids[node] for node in range(NODES)]
        met = {}
        while len(met) < NODES:
            report = self.report()
            if report["event"] == "formed" and report["met"] == expected:
                met[report["node"]] = report["generation"]
        (generation,) = set(met.values())
        return generation

    def await_event(self, event, count):
        found = set()
        while len(found) < count:
            report = self.report()
            if report["event"] == event:
                found.add(report["node"])


@pytest.fixture
def cluster(warm_parent, tmp_path):
    made = Cluster(warm_parent, tmp_path)
    for node in range(NODES):
        made.start(node)
    assert made.all_meet() == 0
    yield made
    for pid in made.pids.values():
        warm_parent.ask("kill", pid, int(signal.SIGKILL))
    warm_parent.deaths(len(made.pids))
    made.mailbox.close()


def test_a_killed_node_is_waited_for_and_its_successor_is_met(cluster):
    cluster.kill(2)
    cluster.start(2)
    assert cluster.all_meet() == 1
    cluster.kill(3)
    cluster.kill(1)
    cluster.start(1)
    cluster.start(3)
    assert cluster.all_meet() >= 2


def test_when_the_stores_host_is_killed_the_survivors_wait_and_meet_at_the_new_one(cluster):
    for _ in range(2):
        cluster.kill(0)
        cluster.await_event("store lost", NODES - 1)
        cluster.start(0)
        assert cluster.all_meet() >= 0


def test_host_and_another_node_killed_together_are_both_replaced(cluster):
    cluster.kill(0)
    cluster.kill(2)
    cluster.start(2)
    cluster.start(0)
    cluster.all_meet()


def test_the_end_reaches_every_process_with_the_same_words(cluster):
    # an outsider's connection closes the run, as node 0's judge would
    judge = GenerationBarrier(node=1, nodes=NODES, host="127.0.0.1", port=cluster.port, run_id="test", timeout_seconds=PATIENCE_SECONDS)
    judge._connect(float("inf"))
    judge.generation = 0
    judge.close(json.dumps({"cause": "diverged"}))
    endings = {}
    while len(endings) < NODES:
        report = cluster.report()
        if report["event"] == "closed":
            endings[report["node"]] = report["ending"]
    assert set(endings.values()) == {'{"cause": "diverged"}'}
    assert cluster.parent.deaths(NODES) == dict.fromkeys(cluster.pids.values(), 0)
    cluster.pids.clear()
    assert "Traceback" not in cluster.log.read_text()


# --- a host that is silent -----------------------------------------------------------------------------------------------------------

QUESTIONS = {
    "is_superseded": lambda barrier: barrier.is_superseded(),
    "ask_for_next": lambda barrier: barrier.ask_for_next(),
    "fault": lambda barrier: barrier.fault(),
    "post_fault": lambda barrier: barrier.post_fault("{}"),
    "post_finished": lambda barrier: barrier.post_finished(),
    "share": lambda barrier: (barrier.share("key", "x"), barrier.shared("key")),
    "close": lambda barrier: barrier.close("{}"),
}


class Host:
    """A process with the store, which can be frozen: to the others it is as silent as a network that swallows all packets."""

    def __init__(self, parent, folder):
        self.parent, self.port = parent, free_port()
        self.path = str(folder / "host-mailbox")
        self.mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.mailbox.bind(self.path)
        self.mailbox.settimeout(PATIENCE_SECONDS)
        self.start()

    def start(self):
        self.pid = self.parent.spawn("barrier_node:host", nodes=2, port=self.port, mailbox=self.path)
        self.mailbox.recv(100)

    def signal(self, number):
        self.parent.ask("kill", self.pid, int(number))

    def end(self):
        self.signal(signal.SIGKILL)
        assert self.parent.deaths(1) == {self.pid: -signal.SIGKILL}

    def node(self, timeout_seconds=PATIENCE_SECONDS):
        return GenerationBarrier(node=1, nodes=2, host="127.0.0.1", port=self.port, run_id="test", timeout_seconds=timeout_seconds)


@pytest.fixture
def host(warm_parent, tmp_path):
    made = Host(warm_parent, tmp_path)
    yield made
    made.end()
    made.mailbox.close()


def ask_until_lost(node, question):
    while True:  # a signal is on its way for a moment
        question(node)


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_question_to_a_silent_store_is_waited_for_without_a_bound(host, monkeypatch, question):
    node = host.node()
    node._connect(float("inf"))
    node.generation = 0
    assert not node.is_superseded()
    monkeypatch.setattr(agent_store, "OPERATION_SECONDS", 0.5)
    host.signal(signal.SIGSTOP)
    with pytest.raises(StoreLostError, match=rf"^the store of node 0 at 127\.0\.0\.1:{host.port} did not answer within 0\.5 s$"):
        ask_until_lost(node, QUESTIONS[question])
    with pytest.raises(StoreLostError, match=r"is gone$"):  # at once from here on: the bound is not paid for every question
        node.is_superseded()


def test_a_node_that_has_to_leave_soon_does_not_wait_as_long_for_a_silent_store(host, monkeypatch):
    node = host.node()
    node._connect(float("inf"))
    monkeypatch.setattr(agent_store, "OPERATION_SECONDS", PATIENCE_SECONDS * 10)
    monkeypatch.setattr(rendezvous, "FAREWELL_SECONDS", PATIENCE_SECONDS * 10)
    monkeypatch.setattr(rendezvous, "HURRY_SECONDS", 0.25)
    node.hurry(0.0)
    host.signal(signal.SIGSTOP)
    with pytest.raises(StoreLostError, match=r"did not answer within 0\.25 s$"):
        ask_until_lost(node, QUESTIONS["post_fault"])
    node.farewell()


def test_a_store_that_is_silent_when_one_connects_is_named_within_the_bound(host, monkeypatch):
    monkeypatch.setattr(agent_store, "OPERATION_SECONDS", 0.5)
    witness = host.node()
    witness._connect(float("inf"))
    host.signal(signal.SIGSTOP)  # its kernel still accepts connections
    with pytest.raises(StoreLostError):
        ask_until_lost(witness, QUESTIONS["is_superseded"])
    monkeypatch.undo()  # one attempt takes all the time there is
    looks = []
    node = host.node(timeout_seconds=1.0)
    node.while_waiting = lambda: looks.append(1)
    with pytest.raises(PeerLostError, match=rf"^node 0 does not answer at 127\.0\.0\.1:{host.port} after 1 s \(no answer\); see whether"):
        node.next_rendezvous()
    assert looks  # who waits can still be asked to stop


def test_a_host_that_was_silent_for_a_while_is_found_again(host, monkeypatch):
    node = host.node()
    node._connect(float("inf"))
    monkeypatch.setattr(agent_store, "OPERATION_SECONDS", 0.5)
    host.signal(signal.SIGSTOP)
    with pytest.raises(StoreLostError):
        ask_until_lost(node, QUESTIONS["is_superseded"])
    monkeypatch.undo()
    host.signal(signal.SIGCONT)
    node._connect(float("inf"))
    assert node._newest() == 0


def test_a_silent_host_that_is_replaced_is_left_for_the_new_one(host, monkeypatch):
    monkeypatch.setattr(agent_store, "OPERATION_SECONDS", 0.5)
    node = host.node()
    node._connect(float("inf"))
    node.generation = 0
    node.ask_for_next()
    node.generation = 1
    host.signal(signal.SIGSTOP)
    with pytest.raises(StoreLostError):
        ask_until_lost(node, QUESTIONS["is_superseded"])
    host.end()
    host.start()
    node._connect(float("inf"))
    assert (node._newest(), node.generation) == (0, -1)


PROGRAM = """
import sys, time
from ddp_trainer.resilience.rendezvous import GenerationBarrier
def stop():
    raise SystemExit(143)
node = GenerationBarrier(node=1, nodes=2, host="127.0.0.1", port=int(sys.argv[1]), run_id="test", timeout_seconds=60)
node.while_waiting = stop
node.next_rendezvous()
"""


def test_whoever_is_stopped_while_it_connects_leaves_with_its_own_exit_code():
    # a thread that is left inside torch, and returns while the interpreter ends, would abort the process
    assert subprocess.run([sys.executable, "-c", PROGRAM, str(free_port())], capture_output=True, check=False).returncode == 143
