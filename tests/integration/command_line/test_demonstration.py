"""`ddp demo` and what its supervisor promises, with real processes."""

import os
import signal
import time

from runs import PATIENCE_SECONDS, is_alive


def test_the_demo_loses_a_worker_recovers_and_says_what_was_seen(ddp, small):
    run = ddp("demo", *small[1:], "--set", "optim.max_steps=16", "--set", "telemetry.eval_every_epochs=0.1")
    assert run.wait() == 0, run.output
    told = run.output
    assert "2 workers train resnet18 on 5,000 images (sample)" in told
    assert "now killing worker 1 (SIGKILL)" in told
    assert "agent 1 was killed by SIGKILL; starting it again" in told
    assert "(chance is 10%)" in told
    assert "restarts       1, " in told
    assert " s from the kill to the first new step" in told
    assert f"report         {run.run_dir / 'report.html'}" in told
    assert "try next       ddp local --config " in told
    assert (run.run_dir / "report.html").stat().st_size > 100_000


def test_a_lost_fork_server_of_the_supervisor_is_a_sentence_and_leaves_nothing(ddp, small):
    run = ddp(*small, "--set", "optim.max_steps=1000")
    run.trained_to(1)
    tree = run.processes()
    os.kill(run.pids("nursery")[0], signal.SIGKILL)
    assert run.wait() == 160, run.output
    assert "the same command goes on from the last checkpoint" in run.output.strip().splitlines()[-1]
    assert "Traceback" not in run.output
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(is_alive(pid) for pid in tree):
        assert time.monotonic() < deadline, [pid for pid in tree if is_alive(pid)]
        time.sleep(0.02)
