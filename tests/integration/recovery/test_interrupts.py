"""Stopping leaves nothing behind, whoever is stopped and however."""

import os
import signal
import time

import pytest
from runs import PATIENCE_SECONDS, is_alive

from ddp_trainer.launchers.local import HELD_KEY_SECONDS


def all_gone(pids):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if is_alive(pid)]
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopping_the_supervisor_leaves_no_process(ddp, small, signum, code):
    run = ddp(*small, "--set", "optim.max_steps=1000")
    run.trained_to(2)
    tree = run.processes()
    assert sorted(tree.values()).count("rank") == 2
    os.kill(run.pid, signum)
    assert run.wait() == code, run.output
    assert all_gone(tree)


def test_agents_and_ranks_are_out_of_reach_of_the_terminals_interrupt(ddp, small):
    """Ctrl-C signals the whole foreground group; they are in another one, and leave in order when the supervisor tells them."""
    run = ddp(*small, "--set", "optim.max_steps=1000")
    run.trained_to(2)
    tree = run.processes()
    assert all(os.getpgid(pid) != os.getpgid(run.pid) for pid, kind in tree.items() if kind in {"agent", "rank"})


def test_a_second_interrupt_does_not_wait_for_agents_that_do_not_leave(ddp, small):
    run = ddp(*small, "--set", "optim.max_steps=1000", "--set", "fault_tolerance.preemption_grace_seconds=600")
    run.trained_to(2)
    tree = run.processes()
    os.kill(run.pids("agent")[0], signal.SIGSTOP)  # it would be waited for to the end of the grace
    os.kill(run.pid, signal.SIGINT)
    run.until(lambda: "Ctrl-C again kills them" in run.output, "the word of the first")
    told = time.monotonic()
    run.until(lambda: time.monotonic() - told > HELD_KEY_SECONDS, "a moment at which it is another press")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "agent 0 is killed" in run.output
    assert all_gone(tree)


def test_an_interrupted_run_goes_on_where_it_was(ddp, small, tmp_path):
    home = tmp_path / "run"
    run = ddp(*small, "--set", "optim.max_steps=22", run_dir=home)
    run.trained_to(5)
    run.until(lambda: run.of_kind("checkpoint"), "checkpoint")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130
    left_at = run.progress["step"]
    again = ddp(*small, "--set", "optim.max_steps=22", run_dir=home)
    assert again.wait() == 0, again.output
    (resume,) = again.of_kind("resume")
    assert resume["source"] == "disk"
    assert resume["step"] == left_at >= 5
    assert resume["lost_steps"] == 0, "the state was saved after the step in which Ctrl-C came"
