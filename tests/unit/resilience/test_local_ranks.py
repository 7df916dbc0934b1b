"""What an agent finds out about its own ranks. The fork server is a list here: real ranks are in integration tests and the chaos suite."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddp_trainer.config import RunConfig
from ddp_trainer.resilience.fault import LEFT_EXIT, leave_note
from ddp_trainer.resilience.local_ranks import LocalRanks
from ddp_trainer.resilience.zygote import Death
from ddp_trainer.telemetry.facts import FactsPage

ATTEMPT = 3


class ForkServer:
    """Says what was asked of it."""

    def __init__(self):
        self.spawned, self.killed = [], []

    def spawn(self, target, arguments, environment, log, name, is_deaf):  # noqa: ARG002
        self.spawned.append(SimpleNamespace(target=target, arguments=arguments, log=log, name=name, is_deaf=is_deaf))
        return 100 + len(self.spawned)

    def kill(self, pid, signum):
        self.killed.append((pid, signum))


@pytest.fixture
def server():
    return ForkServer()


@pytest.fixture
def page(tmp_path):
    return FactsPage.create(tmp_path / "facts", 2)


@pytest.fixture
def pair(server, page, tmp_path):
    """Global ranks 4 and 5, as pids 101 and 102."""
    config = RunConfig.model_validate({"fault_tolerance": {"save_limit_seconds": 0.001}})
    ranks = LocalRanks(config, 2, server, page, tmp_path, tmp_path / "logs")
    workers = [SimpleNamespace(local_rank=i, global_rank=4 + i) for i in range(2)]
    ranks.begin_attempt(ATTEMPT, workers)
    assert [ranks.start(worker, {}, {"attempt": ATTEMPT}, {}) for worker in workers] == [101, 102]
    return ranks


def test_each_is_forked_with_a_log_and_notes_of_its_own(pair, server, tmp_path):
    assert [spawned.name for spawned in server.spawned] == ["ddp-rank-4", "ddp-rank-5"]
    assert [spawned.log for spawned in server.spawned] == [tmp_path / "logs" / f"rank-{rank}.log" for rank in (4, 5)]
    assert len({spawned.arguments["note"] for spawned in server.spawned}) == 2
    assert all(spawned.is_deaf for spawned in server.spawned), "only the agent hears a signal to stop"
    assert pair.names == "101 (local rank 0), 102 (local rank 1)"


def test_a_rank_that_dies_is_a_fault_with_its_global_rank_and_step(pair, page):
    page.write(1, {"attempt": ATTEMPT, "phase": "training", "step": 7})
    (fault,) = pair.failures([Death(102, -signal.SIGKILL, 1e9)])
    assert (fault.cause, fault.node, fault.rank, fault.step, fault.struck_at) == ("crash", 2, 5, 7, 1e9)
    assert pair.names == "101 (local rank 0)"


def test_a_rank_that_said_why_is_a_fault_of_that_cause(pair, server):
    leave_note(Path(server.spawned[0].arguments["note"]), "data", "no image")
    (fault,) = pair.failures([Death(101, 3)])
    assert (fault.cause, fault.message, fault.rank) == ("data", "no image", 4)


def test_one_that_was_asked_to_leave_or_has_finished_is_no_fault(pair, page):
    page.write(1, {"attempt": ATTEMPT, "phase": "finished"})
    deaths = [Death(101, LEFT_EXIT), Death(102, -signal.SIGKILL)]
    assert pair.have_all_ended_well(deaths)
    assert pair.failures(deaths) == []
    assert not pair.are_running


@pytest.mark.parametrize("said", [None, {"attempt": ATTEMPT - 1, "phase": "finished"}, {"attempt": ATTEMPT, "phase": "training"}])
def test_one_that_ends_with_0_and_has_not_said_that_it_finished_has_failed(pair, page, said):
    if said:
        page.write(0, said)
    assert not pair.have_all_ended_well([Death(101, 0)])
    assert [fault.cause for fault in pair.failures([Death(101, 0)])] == ["user_error"]


def test_a_stranger_is_nobodys_fault(pair):
    assert pair.have_all_ended_well([Death(999, -signal.SIGKILL)])
    assert pair.failures([Death(999, -signal.SIGKILL)]) == []
    assert pair.are_running


def test_all_are_killed_and_gone_when_their_deaths_have_come(pair, server):
    pair.kill()
    assert server.killed == [(101, signal.SIGKILL), (102, signal.SIGKILL)]
    assert pair.are_running
    pair.bury([Death(101, -signal.SIGKILL), Death(102, -signal.SIGKILL)])
    assert not pair.are_running


def test_one_that_has_finished_and_does_not_end_is_killed_once(pair, server, page, monkeypatch):
    page.write(0, {"attempt": ATTEMPT, "phase": "finished"})
    now = [10.0]
    monkeypatch.setattr("ddp_trainer.resilience.local_ranks.time.monotonic", lambda: now[0])
    for now[0] in (10.0, 20.0, 30.0):
        pair.end_finished()
    assert server.killed == [(101, signal.SIGKILL)]
