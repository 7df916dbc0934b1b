"""An agent that stands still for good: its ranks train to the end, and the end does not wait for it without a bound."""

import os
import signal

import pytest


@pytest.mark.parametrize(
    ("setting", "node", "signum"),
    [
        ("distributed.peer_timeout_seconds=2", None, None),
        ("fault_tolerance.preemption_grace_seconds=2", 0, signal.SIGTERM),
        ("run.seed=0", 1, signal.SIGKILL),
    ],
    ids=["the patience ends", "node 0 is told to stop", "it is replaced"],
)
def test_a_frozen_agent_is_not_waited_for_at_the_end_when(ddp, small, setting, node, signum):
    run = ddp(*small, "--workers", 2, "--set", "optim.max_steps=5", "--set", setting)
    run.trained_to(2)
    agents = run.pids("agent")
    os.kill(agents[1], signal.SIGSTOP)
    run.until(lambda: run.of_kind("finish"), "finish")
    if signum:
        os.kill(agents[node], signum)
    assert run.wait() == 0, run.output
    assert signum == signal.SIGKILL or run.of_kind("fault") == [], "the loss of the one that is killed may be told"
    assert len(run.of_kind("form")) == 1, "nobody met again, for there was nothing to do"
    assert run.progress["phase"] == "finished"
    assert (run.run_dir / "checkpoints" / "step-000000005").is_dir()
