"""Somebody asks a node, or all of them, to leave: the state goes with nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from drill import Drill
from outcome import lost_steps, newest_on_disk, pid_of, recovery_seconds
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, ended, goes_on, kill

PREEMPTED = 143


def one_agent(drill: Drill) -> Iterator[Row]:
    """SIGTERM of one node's agent."""
    yield goes_on(drill, "SIGTERM of agent 2", kill("ddp-agent-2", signum=signal.SIGTERM), causes=("preemption",), lost_at_most=0)


def first_agent(drill: Drill) -> Iterator[Row]:
    """SIGTERM of the agent that has the run directory: the step reached is on disk when it has gone."""

    def disturb(run: Run) -> None:
        kill("ddp-agent-0", signum=signal.SIGTERM)(run)
        run.until(lambda: any(event["cause"] == "preemption" for event in run.of_kind("stop")), "its end")

    def saved(run: Run, sight: Sight) -> None:
        (stop, *_) = run.of_kind("stop")
        done = [line["step"] for line in run.metrics if line["kind"] == "train" and line["time"] <= stop["time"]]
        saved = [event["step"] for event in run.of_kind("checkpoint") if event["time"] <= stop["time"]]
        sight.fact(f"left after step {max(done)}, step {max(saved, default=0)} on disk", max(done) in saved)

    yield goes_on(drill, "SIGTERM of agent 0", disturb, causes=("preemption",), lost_at_most=0, check=saved)


def slurm_warning(drill: Drill) -> Iterator[Row]:
    """SIGUSR1, by which Slurm announces the end of a node's time."""
    yield goes_on(drill, "SIGUSR1 of agent 1", kill("ddp-agent-1", signum=signal.SIGUSR1), causes=("preemption",), lost_at_most=0)


def all_leave(drill: Drill) -> Iterator[Row]:
    """on_preemption=leave: when one goes, all go, with the state on disk."""

    def left(run: Run, sight: Sight) -> None:
        agents = [node for node in range(4) if f"agent {node} left with {PREEMPTED}" in run.output]
        sight.fact(f"agents {', '.join(map(str, agents))} left with {PREEMPTED}", len(agents) == 4)

    settings = {"fault_tolerance.on_preemption": "leave"}
    fault = kill("ddp-agent-2", signum=signal.SIGTERM)
    yield goes_on(
        drill, "SIGTERM of agent 2, on_preemption=leave", fault, causes=("preemption",), lost_at_most=0, settings=settings, check=left
    )


def while_it_starts(drill: Drill) -> Iterator[Row]:
    """SIGTERM before the first step: there is nothing to save, and nothing to wait for."""

    def disturb(run: Run) -> None:
        pid_of(run, "ddp-rank-1")
        kill("ddp-agent-1", signum=signal.SIGTERM)(run)

    yield goes_on(drill, "SIGTERM of agent 1 before the first step", disturb, causes=("preemption",), lost_at_most=0, at_step=0)


def impatient(drill: Drill) -> Iterator[Row]:
    """SIGTERM twice is SIGTERM once."""

    def disturb(run: Run) -> None:
        agent = pid_of(run, "ddp-agent-2")
        os.kill(agent, signal.SIGTERM)
        os.kill(agent, signal.SIGTERM)

    yield goes_on(drill, "SIGTERM of agent 2, twice", disturb, causes=("preemption",), lost_at_most=0)


def everybody(drill: Drill) -> Iterator[Row]:
    """SIGTERM of `ddp local`, as a machine that shuts down: the step reached is on disk, and a new start goes on from it."""
    yield _stopped(drill, "SIGTERM of the whole run", lambda run: os.kill(run.pid, signal.SIGTERM))


def everybody_twice(drill: Drill) -> Iterator[Row]:
    """... by somebody who does not wait."""

    def disturb(run: Run) -> None:
        os.kill(run.pid, signal.SIGTERM)
        os.kill(run.pid, signal.SIGTERM)

    yield _stopped(drill, "SIGTERM of the whole run, twice", disturb)


def whole_tree(drill: Drill) -> Iterator[Row]:
    """SIGTERM of every process there is, as `scancel --full` and systemd send it: only agents act on it."""

    def disturb(run: Run) -> None:
        for pid in run.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    yield _stopped(drill, "SIGTERM of every process of the run", disturb)


def _stopped(drill: Drill, fault: str, disturb: Callable[[Run], object]) -> Row:
    reference, home, sight = drill.undisturbed(), drill.new_folder("run"), Sight()
    first = drill.start(run_dir=home)
    first.trained_to(DISTURBED_AT)
    disturb(first)
    code = first.wait()
    step = max(line["step"] for line in first.metrics if line["kind"] == "train")
    sight.fact(f"exit {code}", code == PREEMPTED)
    sight.fact(f"step {newest_on_disk(first)} on disk after step {step}", newest_on_disk(first) == step >= DISTURBED_AT)
    since = time.time()
    again = drill.start(run_dir=home)
    again.wait()
    ended(again, sight, reference)
    lost = lost_steps(again)
    sight.fact(f"{lost} steps lost", lost == 0)
    expected = f"{PREEMPTED} with the step reached on disk; a new start loses no step and ends with the undisturbed bits"
    return sight.row(fault, expected, recovery_seconds(again, since), lost)


CASES = (one_agent, first_agent, slurm_warning, all_leave, while_it_starts, impatient, everybody, everybody_twice, whole_tree)
