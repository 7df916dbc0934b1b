"""Nodes as real processes that are killed: the others wait for the successor and meet it, also when the store went with its host."""

from __future__ import annotations

import json
import signal
import socket

import pytest
from processes import PATIENCE_SECONDS

from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience.rendezvous import GenerationBarrier

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
    judge._connected(float("inf"))
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
