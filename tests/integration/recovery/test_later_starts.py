"""What a second start makes of what the first one left: it begins anew only where it was told to, and goes on with what is its own."""

import os
import signal

from small_network import VERIFYING_SECONDS

FEW = ("--workers", 2, "--set", "optim.max_steps=4", "--set", "checkpoint.every_steps=2")


def test_a_run_whose_checkpoints_are_all_bad_is_refused_at_every_start_until_told_to_begin_anew(ddp, small, tmp_path):
    home = tmp_path / "run"
    assert ddp(*small, *FEW, run_dir=home).wait() == 0
    folders = list((home / "checkpoints").glob("step-*"))
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"rubbish")
    for _ in range(2):
        refused = ddp(*small, *FEW, run_dir=home)
        assert refused.wait() == 3
        assert "run.resume=never" in refused.output
    assert len(refused.of_kind("quarantine")) == len(folders), "each was told of, once"
    anew = ddp(*small, *FEW, "--set", "run.resume=never", run_dir=home)
    assert anew.wait() == 0, anew.output
    assert (home / "checkpoints" / "step-000000004").is_dir()


def test_never_resuming_refuses_another_runs_checkpoints_and_not_those_of_a_lost_agents_own_run(ddp, small, tmp_path):
    home, never = tmp_path / "run", ("--workers", 2, "--set", "optim.max_steps=12", "--set", "run.resume=never")
    run = ddp(*small, *never, "--set", "checkpoint.every_steps=3", run_dir=home)
    run.trained_to(4)
    run.until(lambda: run.of_kind("checkpoint"), "checkpoint")
    os.kill(run.pids("agent")[0], signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert [event["cause"] for event in run.of_kind("fault")] == ["peer_loss"]
    for _ in range(2):
        again = ddp(*small, *never, run_dir=home)
        assert again.wait() == 3
        assert "run.resume is never" in again.output


def test_ranks_wait_for_one_that_reads_a_checkpoint_for_longer_than_a_collective_may_take(ddp, small, tmp_path):
    home = tmp_path / "run"
    slow = ("--workers", 2, "--set", "task.name=small_network:SlowToVerify", "--set", "checkpoint.every_steps=2")
    bound = ("--set", f"distributed.collective_timeout_seconds={VERIFYING_SECONDS / 3}")
    assert ddp(*small, *slow, "--set", "optim.max_steps=2", run_dir=home).wait() == 0
    later = ddp(*small, *slow, *bound, "--set", "optim.max_steps=4", run_dir=home)
    assert later.wait() == 0, later.output
    assert later.of_kind("fault") == []
    assert (later.of_kind("resume")[-1]["step"], later.of_kind("resume")[-1]["source"]) == (2, "disk")
