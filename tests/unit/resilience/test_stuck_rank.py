"""A rank that SIGKILL does not end, in a dead file system or a driver: the agent says so and leaves, instead of waiting for ever.

The fork server is fake here, and its `kill` does nothing: no test can put a real process into a sleep that the kernel does not interrupt.
"""

from __future__ import annotations

import re
import signal
from types import SimpleNamespace

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import PREEMPTED
from ddp_trainer.resilience.agent import GangAgent
from ddp_trainer.resilience.departure import Departure
from ddp_trainer.resilience.fault import Ending
from ddp_trainer.resilience.judge import Judge
from ddp_trainer.resilience.local_ranks import LocalRanks

PID = 4711
STOP_SECONDS = 0.05
REACHED_STEP = 7
WORDS = r"^ranks did not die within 0\.05 s of SIGKILL: process 4711 \(local rank 0\) is stuck in the kernel, .*; see /proc/<pid>/stack"


class AgentOfStuckRank(GangAgent):
    """Node 0's, with one rank that does not die; without a machine below it. `after` is how the generation ends."""

    def __init__(self, folder, after):
        policy = {"stop_grace_seconds": STOP_SECONDS, "preemption_grace_seconds": 4 * STOP_SECONDS}
        self._config = RunConfig.model_validate({"fault_tolerance": policy})
        self._worker_group = SimpleNamespace(workers=[])
        self.killed, self.diary, self.told, self.written = [], [], [], []
        zygote = SimpleNamespace(spawn=lambda *_, **__: PID, kill=lambda *what: self.killed.append(what))
        self._ranks = LocalRanks(self._config, 0, zygote, SimpleNamespace(path=folder / "facts"), folder, None)
        worker = SimpleNamespace(local_rank=0, global_rank=0)
        self._ranks.begin_attempt(1, [worker])
        self._ranks.start(worker, {}, {}, {})
        self._barrier = SimpleNamespace(node=0, nodes=2, members=[0, 1], close=self.told.append)
        events = SimpleNamespace(append=lambda kind, **what: self.diary.append((kind, what)))
        self._judge = Judge(self._barrier, SimpleNamespace(reached_step=REACHED_STEP), events, self._config.fault_tolerance)
        self._departure = Departure(SimpleNamespace(), 4 * STOP_SECONDS)
        self._after = after

    def run(self):
        try:
            return self._invoke_run()
        finally:
            self._shutdown()

    def _tell(self, *_):
        pass

    def _initialize_workers(self, _):
        pass

    def _watch(self):
        return self._after

    def _deaths(self, timeout_seconds):  # noqa: ARG002
        return []

    def _write_newest(self):
        self.written.append(True)


def test_it_is_reported_as_a_crash_with_its_process_and_where_to_look(tmp_path):
    agent = AgentOfStuckRank(tmp_path, None)  # all are to meet again
    ending = agent.supervise()
    assert (ending.exit.code, ending.exit.retried) == (160, True), "the container is started again, perhaps elsewhere"
    assert re.match(WORDS, ending.fault.message)
    assert [kind for kind, _ in agent.diary] == ["fault"]
    (_, fault) = agent.diary[0]
    assert (fault["cause"], fault["node"], fault["exit"], fault["step"], fault["message"]) == ("crash", 0, 160, 7, ending.fault.message)
    assert agent.told == [], "the others wait for its successor"


def test_it_is_killed_once_waited_for_once_and_the_newest_state_is_written_without_it(tmp_path):
    agent = AgentOfStuckRank(tmp_path, None)
    agent.supervise()
    assert agent.killed == [(PID, signal.SIGKILL)], "the way out neither kills nor awaits it again"
    assert agent.written == [True]


def test_a_node_that_was_asked_to_stop_leaves_it_behind_and_says_so(tmp_path, caplog):
    agent = AgentOfStuckRank(tmp_path, Ending(PREEMPTED))
    agent.ask_to_stop("SIGTERM")
    assert agent.supervise().exit.code == 143, "nothing is to be started in its place, so it is no fault"
    assert "left behind without waiting for its end: process 4711 (local rank 0)" in caplog.text
    assert (agent.killed, agent.diary, agent.written) == ([(PID, signal.SIGKILL)], [], [True])


def test_a_node_that_was_asked_to_stop_gives_it_no_more_than_half_of_what_is_left(tmp_path):
    agent = AgentOfStuckRank(tmp_path, Ending(PREEMPTED))
    agent._config = RunConfig.model_validate({"fault_tolerance": {"stop_grace_seconds": 1e6}})
    agent.ask_to_stop("SIGTERM")
    assert agent.supervise().exit is PREEMPTED
