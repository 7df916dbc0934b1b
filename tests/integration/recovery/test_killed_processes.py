"""Kill anything: training comes back, and the result is the undisturbed one."""

import os
import signal

import pytest
from safetensors.torch import load_file

STEPS = 22
MEMORY_EVERY_STEPS = 2


def final_state(run):
    newest = max((run.run_dir / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{STEPS:09d}"
    return {f"{file.stem}.{name}": tensor for file in newest.glob("*.safetensors") for name, tensor in load_file(file).items()}


def arguments(small, workers=4, procs=1):
    sizes = ("--workers", workers, "--set", f"distributed.procs_per_node={procs}", "--set", f"optim.max_steps={STEPS}")
    few = ("--set", "data.global_batch=16")  # what they show says nothing
    return (*small, *sizes, *few, "--set", f"checkpoint.memory_every_steps={MEMORY_EVERY_STEPS}")


@pytest.fixture(scope="module")
def undisturbed():
    return {}


def assert_same_state(state, reference):
    assert state.keys() == reference.keys()
    different = [name for name, tensor in state.items() if not tensor.equal(reference[name])]
    assert different == []


@pytest.fixture
def reference(ddp, quick, undisturbed):
    if not undisturbed:
        run = ddp(*arguments(quick))
        assert run.wait() == 0, run.output
        undisturbed.update(final_state(run))
    return undisturbed


def test_a_killed_rank_recovers_mid_epoch_to_the_same_bits(ddp, small, reference):
    run = ddp(*arguments(small))
    run.trained_to(7)
    os.kill(run.pids("rank")[2], signal.SIGKILL)
    assert run.wait() == 0, run.output
    (resume,) = run.of_kind("resume")
    assert resume["source"] == "memory"
    assert resume["step"] >= 7 - MEMORY_EVERY_STEPS, "the state of the last few steps is in every node's memory"
    assert resume["lost_steps"] <= MEMORY_EVERY_STEPS
    (fault,) = run.of_kind("fault")
    assert fault["cause"] == "crash"
    assert "SIGKILL" in fault["message"]
    assert_same_state(final_state(run), reference)


def test_a_killed_agent_is_started_again_and_the_run_ends_with_the_same_bits(ddp, small, reference):
    run = ddp(*arguments(small))
    run.trained_to(6)
    os.kill(run.pids("agent")[3], signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert [(fault["cause"], fault["node"]) for fault in run.of_kind("fault")] == [("peer_loss", 3)]
    assert_same_state(final_state(run), reference)


def test_node_0s_agent_can_be_killed_and_the_others_wait_for_its_successor(ddp, small, reference):
    run = ddp(*arguments(small))
    run.trained_to(6)
    os.kill(run.pids("agent")[0], signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert run.of_kind("fault")[0]["node"] == 0
    assert_same_state(final_state(run), reference)


def test_a_killed_fork_server_is_the_end_of_its_agent_only(ddp, small, reference):
    run = ddp(*arguments(small))
    run.trained_to(6)
    os.kill(run.pids("zygote")[1], signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert_same_state(final_state(run), reference)


def test_two_agents_of_two_ranks_survive_one_rank_after_the_other(ddp, small, reference):
    run = ddp(*arguments(small, workers=2, procs=2))
    for times, index in enumerate((3, 0, 1)):
        run.trained_to(6, attempt=times + 1)
        os.kill(run.pids("rank")[index], signal.SIGKILL)
        run.until(lambda n=times: len(run.of_kind("form")) == n + 2, "new generation")
    assert run.wait() == 0, run.output
    assert len(run.of_kind("fault")) == 3
    assert_same_state(final_state(run), reference)


def test_an_exception_in_the_users_code_ends_all_agents_with_1_and_the_same_root_cause(ddp, smoke, tmp_path):
    (tmp_path / "faulty.py").write_text(
        "from small_network import QuickNetwork\n"
        "class Faulty(QuickNetwork):\n"
        "    def loss(self, outputs, targets):\n"
        "        import os\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise ZeroDivisionError('my own mistake')\n"
        "        return super().loss(outputs, targets)\n"
    )
    sizes = ("--workers", 3, "--set", "data.micro_batches=3", "--set", "data.global_batch=48")
    run = ddp(*smoke, *sizes, "--set", "task.name=faulty:Faulty", env={"PYTHONPATH": str(tmp_path)})
    assert run.wait() == 1, run.output
    words = run.words_of_agents()
    assert len(words) == 3
    assert {(w["cause"], w["exit"], w["rank"], w["node"]) for w in words} == {("user_error", 1, 1, 1)}
    assert "ZeroDivisionError: my own mistake" in run.output
    assert "Traceback" not in run.output


def test_a_loss_that_is_not_finite_ends_with_4_and_keeps_the_last_good_checkpoint(ddp, quick):
    run = ddp(*quick, "--set", "optim.lr=1e30", "--set", "checkpoint.every_steps=1", "--set", "optim.warmup_ratio=0")
    assert run.wait() == 4, run.output
    assert "not finite" in run.output
    for folder in (run.run_dir / "checkpoints").glob("step-*"):
        assert all(bool(t.isfinite().all()) for t in load_file(folder / "model.safetensors").values()), folder


@pytest.mark.parametrize("node", [0, 3])
def test_an_agent_that_is_told_to_stop_says_preemption_and_its_successor_goes_on(ddp, small, reference, node):
    run = ddp(*arguments(small))
    run.trained_to(6)
    os.kill(run.pids("agent")[node], signal.SIGTERM)
    assert run.wait() == 0, run.output
    assert [(fault["cause"], fault["node"]) for fault in run.of_kind("fault")] == [("preemption", node)]
    assert run.progress["restarts"] == {"crash": 0, "hang": 0, "preemption": 1, "peer_loss": 0}
    assert [resume["lost_steps"] for resume in run.of_kind("resume")] == [0]
    assert run.progress["lost_steps"] == 0
    assert_same_state(final_state(run), reference)
