"""distributed.min_nodes: a node that does not come back is not waited for, and one that does is let in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from drill import STEP_SECONDS, Drill
from outcome import lost_steps, recovery_seconds
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, kill
from cases.worlds import along_the_curve, used_once

SETTINGS = {"distributed.min_nodes": 2, "distributed.rejoin_wait_seconds": 2}
LONG_WAIT_SECONDS = 10
"""No meeting takes this long, also on a busy machine, unless it waits for a node."""
EXPECTED = "goes on with 3; every sample once; the same curve up to rounding"


def never_back(drill: Drill) -> Iterator[Row]:
    """One of 4 nodes is gone for good."""
    run, samples, since = _without_node_3(drill)
    run.until(lambda: run.of_kind("finish"), "end with 3 nodes")
    os.kill(run.pid, signal.SIGCONT)
    run.wait()  # the supervisor, which starts node 3 again before it sees the end of node 0, does not wait for it
    yield _row(drill, run, samples, since, "a node gone for good, min_nodes=2", EXPECTED, [4, 3])


def back_again(drill: Drill) -> Iterator[Row]:
    """It comes back later, and is let in between two steps."""
    run, samples, since = _without_node_3(drill, step_seconds=0.1)
    run.trained_to(DISTURBED_AT + 8)
    os.kill(run.pid, signal.SIGCONT)
    yield _row(drill, run, samples, since, "a node gone, and back later, min_nodes=2", f"{EXPECTED}; let in without a lost step", [4, 3, 4])


def again_without(drill: Drill) -> Iterator[Row]:
    """A rank is killed while a node is gone for good: that node was waited for after its loss, and is not once more."""
    run, _, _ = _without_node_3(drill, step_seconds=0.1, rejoin_wait_seconds=LONG_WAIT_SECONDS)
    since = time.time()
    kill("ddp-rank-1")(run)
    run.until(lambda: run.of_kind("finish"), "end with 3 nodes")
    os.kill(run.pid, signal.SIGCONT)
    sight = Sight()
    sight.fact(f"exit {run.wait()}", run.code == 0)
    seen = [event["world_size"] for event in run.of_kind("form")]
    sight.fact(f"worlds {seen}", seen == [4, 3, 3])
    met_seconds = run.of_kind("form")[-1]["time"] - run.of_kind("restart")[-1]["time"]
    sight.fact(f"met within {met_seconds:.1f} s", met_seconds < LONG_WAIT_SECONDS)
    along_the_curve(drill, run, sight)
    expected = "the lost node is not waited for again; the same curve up to rounding"
    yield sight.row("SIGKILL of rank 1 with a node gone for good, min_nodes=2", expected, recovery_seconds(run, since), lost_steps(run))


def _without_node_3(
    drill: Drill, step_seconds: float = STEP_SECONDS, rejoin_wait_seconds: float = SETTINGS["distributed.rejoin_wait_seconds"]
) -> tuple[Run, Path, float]:
    """A run whose node 3 was killed and, its supervisor being stopped, is not started again."""
    samples = drill.new_folder("samples")
    samples.mkdir()
    settings = {**SETTINGS, "distributed.rejoin_wait_seconds": rejoin_wait_seconds}
    run = drill.start(settings=settings, plan={"samples": str(samples), "step_seconds": step_seconds})
    run.trained_to(DISTURBED_AT)
    os.kill(run.pid, signal.SIGSTOP)
    since = time.time()
    kill("ddp-agent-3")(run)
    run.until(lambda: any(event["time"] > since for event in run.of_kind("first_step")), "step with 3 nodes")
    return run, samples, since


def _row(drill: Drill, run: Run, samples: Path, since: float, fault: str, expected: str, worlds: list[int]) -> Row:
    sight = Sight()
    sight.fact(f"exit {run.wait()}", run.code == 0)
    seen = [event["world_size"] for event in run.of_kind("form")]
    sight.fact(f"worlds {seen}", seen == worlds)
    lost = lost_steps(run)
    by_resume = [event["lost_steps"] for event in run.of_kind("resume")]
    sight.fact(f"lost at each resume: {by_resume}", lost <= 4 and not any(by_resume[1:]))
    used_once(run, samples, sight)
    along_the_curve(drill, run, sight)
    return sight.row(fault, expected, recovery_seconds(run, since), lost)


CASES = (never_back, back_again, again_without)
