"""How `ddp launch` leaves when others fail it: 160 where ranks crash more often than they may though the run makes progress, 162 where a
peer never comes. Each node's exit code, its last words in the kubelet's file, and its sentence say the same. One that dies is named.
"""

import json
import os
import signal

import pytest

from ddp_trainer.errors import DdpError
from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience.fault import MESSAGE_BYTES
from ddp_trainer.telemetry.fetch import fetch
from ddp_trainer.telemetry.incidents import incidents


class Started:
    """One node of two: its `Run`, the address of its progress, and the file that its kubelet would read."""

    def __init__(self, run, address, words):
        self.run, self.address, self._words = run, address, words

    @property
    def last_words(self):
        text = self._words.read_text()
        assert len(text.encode()) <= MESSAGE_BYTES
        (line,) = text.splitlines()
        return json.loads(line)

    def rank_of(self, attempt):
        """The pid of the node's rank once it trains in `attempt`."""

        def training():
            try:
                found = fetch(self.address)
            except DdpError:  # it has nothing to tell yet
                return None
            (rank,) = found.ranks or (None,)
            return found.attempt >= attempt and rank and rank.phase == "training" and rank.pid

        return self.run.until(training, f"training in attempt {attempt}")


@pytest.fixture
def node(ddp, small, tmp_path):
    """Start node `index` of two on one run directory. A mounted file is empty and is written in place."""
    store_port = str(free_port())

    def start(index, *settings):
        port, words = free_port(), tmp_path / f"termination-log-{index}"
        words.touch()
        place = {"PET_NODE_RANK": str(index), "PET_NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store_port}
        told = [part for setting in (*settings, f"telemetry.port={port}") for part in ("--set", setting)]
        run = ddp("launch", *small[1:], *told, run_dir=tmp_path / "run", env={**place, "TERMINATION_LOG": str(words)})
        return Started(run, f"http://127.0.0.1:{port}", words)

    return start


def last_line(node):
    return node.run.output.strip().splitlines()[-1]


ABSENT = {
    0: ["node 1 did not come to generation 0 within 1 s", "see why they do not start", "raise distributed.peer_timeout_seconds"],
    1: ["node 0 does not answer at 127.0.0.1:", "after 1 s", "see whether it runs", "raise distributed.peer_timeout_seconds"],
}


@pytest.mark.parametrize("present", [0, 1])
def test_a_peer_that_never_comes_is_named_and_the_node_leaves_with_162(node, present):
    alone = node(present, "distributed.peer_timeout_seconds=1")
    assert alone.run.wait() == 162, alone.run.output
    words = alone.last_words
    assert {name: words[name] for name in ("cause", "exit", "node", "rank")} == {
        "cause": "peer_loss",
        "exit": 162,
        "node": present,
        "rank": None,
    }
    for part in ABSENT[present]:
        assert part in words["message"]
    assert words["message"] in last_line(alone)
    assert "Traceback" not in alone.run.output


def test_ranks_that_crash_too_often_though_the_run_makes_progress_end_all_nodes_with_160_and_a_later_start_goes_on(node):
    settings = ("fault_tolerance.max_restarts=1", "checkpoint.every_steps=1", "optim.max_steps=1000")
    nodes = [node(0, *settings), node(1, *settings)]
    run, durable = nodes[0].run, 0
    for attempt in (1, 2):
        victim = nodes[1].rank_of(attempt)
        run.until(lambda before=durable: newest(run) > before, "newer checkpoint")
        durable = newest(run)
        os.kill(victim, signal.SIGKILL)
    assert [each.run.wait() for each in nodes] == [160, 160], run.output

    said = [each.last_words for each in nodes]
    keys = ("cause", "exit", "node", "rank", "message")
    assert [[words[key] for key in keys] for words in said] == [[said[0][key] for key in keys]] * 2  # one root cause, whoever is asked
    assert [said[0][key] for key in keys[:-1]] == ["crash", 160, 1, 1]
    assert "killed by SIGKILL" in said[0]["message"]
    assert "(all 1 restarts used up)" in said[0]["message"]
    assert said[0]["step"] >= said[0]["durable_step"] >= durable
    assert all(words["message"] in last_line(each) for each, words in zip(nodes, said, strict=True))
    assert [event["cause"] for event in run.of_kind("stop")] == ["crash"]

    last = f"optim.max_steps={newest(run) + 1}"
    again = [node(0, last), node(1, last)]  # the code is one that a cluster retries
    assert [each.run.wait() for each in again] == [0, 0], again[0].run.output
    assert [event["step"] for event in run.of_kind("finish")] == [newest(run)]
    assert [each.last_words["cause"] for each in again] == ["finished", "finished"]


def test_a_node_that_dies_without_a_word_is_named_when_its_successor_comes(node):
    first, second = (node(index, "optim.max_steps=60") for index in (0, 1))
    second.rank_of(1)
    first.run.trained_to(2)
    os.kill(second.run.pid, signal.SIGKILL)  # its ranks die with it
    first.run.until(lambda: first.run.of_kind("restart"), "fault that the survivor has only suffered")
    again = node(1, "optim.max_steps=60")
    assert [each.run.wait() for each in (first, again)] == [0, 0], first.run.output
    (fault,), (lost,) = first.run.of_kind("fault"), first.run.of_kind("lost")
    assert (fault["cause"], fault["node"], lost["node"]) == ("failed_collective", 0, 1)
    (incident,) = incidents(first.run.events, first.run.metrics)
    assert (incident.cause, incident.where, incident.lost_steps) == ("peer_loss", "node 1", fault["step"] - incident.resumed_step)


def newest(run):
    return max((int(folder.name.removeprefix("step-")) for folder in (run.run_dir / "checkpoints").glob("step-*")), default=0)
