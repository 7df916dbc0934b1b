"""The exponential moving average of the parameters is part of a run's state: a kill and a resume leave it, the parameters and the
evaluation made with it as they are in the undisturbed run, bit for bit.
"""

import os
import signal

import pytest
from safetensors.torch import load_file

STEPS = 20


@pytest.fixture
def averaged(ddp):
    """Four ranks: at two, another order of summation could not show."""

    def start(arguments):
        settings = ("optim.ema_decay=0.9", f"optim.max_steps={STEPS}")
        return ddp(*arguments, "--workers", 4, *(part for setting in settings for part in ("--set", setting)))

    return start


def final_tensors(run):
    """Name -> tensor of the last checkpoint, by the name that it has inside `ema`, `model` and `optimizer`."""
    newest = max((run.run_dir / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{STEPS:09d}"
    files = {file.stem: load_file(file) for file in newest.glob("*.safetensors")}
    return {f"{stem}.{name}".removeprefix("state."): tensor for stem, tensors in files.items() for name, tensor in tensors.items()}


def evaluation(run):
    (line,) = [line for line in run.metrics if line["kind"] == "eval"]
    return {name: value for name, value in line.items() if name not in {"time", "seconds", "attempt"}}


def test_average_parameters_and_evaluation_survive_a_kill_bit_for_bit(averaged, quick, small):
    undisturbed = averaged(quick)
    assert undisturbed.wait() == 0, undisturbed.output
    run = averaged(small)
    run.trained_to(7)
    os.kill(run.pids("rank")[2], signal.SIGKILL)
    assert run.wait() == 0, run.output
    (resume,) = run.of_kind("resume")
    assert resume["step"] > 0  # else nothing was restored, and the result would say nothing

    expected, found = final_tensors(undisturbed), final_tensors(run)
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not tensor.equal(found[name])] == []
    averages = [name.removeprefix("ema.") for name in found if name.startswith("ema.")]
    assert averages
    assert [name for name in averages if found[f"ema.{name}"].equal(found[f"model.{name}"])] == []  # an average, not a copy
    assert evaluation(run) == evaluation(undisturbed)
