"""The form of most cases: train, disturb, let it end, and compare with the run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drill import MEMORY_EVERY_STEPS, STEPS, Drill
from outcome import different, lost_steps, newest_on_disk, pid_of, recovery_seconds, state_of
from runs import Run, wait_until_gone
from table import Row, Sight

DISTURBED_AT = 25
"""A step between two checkpoints, after two of them, and odd: its own state is not kept in memory, so that something can be lost."""
EVERY_STEPS = 10
"""The drill's checkpoint.every_steps."""


def goes_on(
    drill: Drill,
    fault: str,
    disturb: Callable[[Run], object],
    *,
    causes: tuple[str, ...] | None = ("crash",),
    lost_at_most: int | None = 2 * MEMORY_EVERY_STEPS,
    within_seconds: float | None = None,
    workers: int = 4,
    procs: int = 1,
    settings: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    at_step: int = DISTURBED_AT,
    check: Callable[[Run, Sight], object] = lambda *_: None,
) -> Row:
    """One run that is disturbed once at `at_step` (0: at once) and ends with the undisturbed one's bits.

    Args:
        drill: that starts it.
        fault: in words.
        disturb: does it; it may wait for a moment of its own.
        causes: which faults the run is to note, in any order; empty: nobody must notice; None: either is right.
        lost_at_most: steps done again.
        within_seconds: from the fault to the first new step.
        workers: agents.
        procs: ranks of each.
        settings: beside the drill's.
        plan: of small_task and faulty_system.
        at_step: when.
        check: looks for more.
    """
    reference = drill.undisturbed(workers * procs)
    run = drill.start(workers=workers, procs=procs, settings=settings, plan=plan)
    if at_step:
        run.trained_to(at_step)
    since = time.time()
    disturb(run)
    sight = Sight()
    run.wait()
    ended(run, sight, reference)
    noted = tuple(sorted({event["cause"] for event in run.of_kind("fault")}))
    sight.fact(f"faults noted: {', '.join(noted) or 'none'}", causes is None or noted == tuple(sorted(set(causes))))
    lost, seconds = lost_steps(run), recovery_seconds(run, since)
    if lost_at_most is not None and lost > lost_at_most:
        sight.fact(f"{lost} steps lost", holds=False)
    if within_seconds is not None and (seconds is None or seconds > within_seconds):
        sight.fact("not training again in time", holds=False)
    check(run, sight)
    bounds = [] if causes is None else [f"{', '.join(causes) or 'no fault'} noted"]
    bounds += [f"at most {lost_at_most} steps lost"] if lost_at_most is not None else []
    bounds += [f"training within {within_seconds:.0f} s"] if within_seconds is not None else []
    expected = "; ".join(["ends with the undisturbed bits", *bounds])
    return sight.row(fault, expected, None if causes == () else seconds, lost)


def ended(run: Run, sight: Sight, reference: Mapping[str, Any], steps: int = STEPS) -> None:
    """It ended well, with these bits."""
    sight.fact(f"exit {run.code}", run.code == 0)
    if run.code != 0:
        sight.fact(run.output.strip().splitlines()[-1][:300] if run.output.strip() else "no word", holds=False)
    names = different(state_of(run, steps), dict(reference))
    sight.fact("same bits" if not names else f"{len(names)} tensors differ: {names[0]}", not names)


def kill(*names: str, signum: int = signal.SIGKILL) -> Callable[[Run], None]:
    """Signal these processes of the run, at once."""

    def do(run: Run) -> None:
        for pid in [pid_of(run, name) for name in names]:
            os.kill(pid, signum)

    return do


def kill_whole(run: Run) -> list[int]:
    """End a run as a power cut would; gives the processes that it had."""
    tree = list(run.processes())
    os.kill(run.pid, signal.SIGKILL)
    return tree


def lost_gang(drill: Drill, workers: int = 4, procs: int = 1) -> tuple[Path, int]:
    """A run directory whose gang was killed after `DISTURBED_AT`, and the newest step in it."""
    home = drill.new_folder("run")
    run = drill.start(workers=workers, procs=procs, run_dir=home)
    run.trained_to(DISTURBED_AT)
    run.until(lambda: newest_on_disk(run) >= 2 * EVERY_STEPS, "second checkpoint")
    wait_until_gone(kill_whole(run))
    run.wait()
    return home, newest_on_disk(run)
