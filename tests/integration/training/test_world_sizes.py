"""The configuration decides the result; the number of workers does not."""

import pytest

STEPS = 16


@pytest.fixture(scope="module")
def losses_by_world():
    return {}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_loss_falls_on_real_images_along_one_curve_whatever_the_world_size(ddp, quick, losses_by_world, workers):
    run = ddp(*quick, "--workers", workers, "--set", f"optim.max_steps={STEPS}")
    assert run.wait() == 0, run.output
    losses = losses_by_world[workers] = run.losses()
    assert len(losses) == STEPS
    assert sum(losses[-4:]) < sum(losses[:4])
    # the same samples in the same micro-batches: only the order of summation differs, by 6e-8 of a loss at most where this was written
    assert losses == pytest.approx(losses_by_world[min(losses_by_world)], rel=1e-5)


def test_two_agents_with_two_ranks_each_are_the_same_four_ranks(ddp, quick):
    short = ("--set", "optim.max_steps=4", "--set", "optim.warmup_ratio=0")
    run = ddp(*quick, *short, "--workers", 2, "--set", "distributed.procs_per_node=2")
    assert run.wait() == 0, run.output
    other = ddp(*quick, *short, "--workers", 4)
    assert other.wait() == 0, other.output
    assert run.losses() == other.losses()  # the same world of four: bit for bit


def test_a_finished_run_that_is_started_again_ends_at_once_with_0(ddp, smoke, tmp_path):
    home = tmp_path / "run"
    first = ddp(*smoke, "--set", "optim.max_steps=2", run_dir=home)
    assert first.wait() == 0, first.output
    steps_before, written = len(first.metrics), first.of_kind("checkpoint")
    again = ddp(*smoke, "--set", "optim.max_steps=2", run_dir=home)
    assert again.wait() == 0, again.output
    assert [line for line in again.metrics if line["kind"] == "train"][-1]["step"] == 2
    assert len([line for line in again.metrics if line["kind"] != "resume"]) == steps_before
    assert again.of_kind("checkpoint") == written  # it is there, and was verified when it was read


def test_a_longer_schedule_goes_on_from_the_last_checkpoint(ddp, quick, tmp_path):
    home = tmp_path / "run"
    assert ddp(*quick, "--set", "optim.max_steps=4", run_dir=home).wait() == 0
    longer = ddp(*quick, "--set", "optim.max_steps=6", run_dir=home)
    assert longer.wait() == 0, longer.output
    assert [event["step"] for event in longer.of_kind("resume")] == [4]
    assert [event["step"] for event in longer.of_kind("finish")] == [4, 6]
