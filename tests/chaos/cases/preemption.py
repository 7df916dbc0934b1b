"""Somebody asks a node, or all of them, to leave: the state goes with nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from drill import SETTINGS, STEPS, Drill
from outcome import lost_steps, newest_on_disk, pid_of, recovery_seconds
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, ended, goes_on, kill

PREEMPTED = 143
FAILED_WRITES = 3
"""More than one of the newest state, the one before it having failed or not; the writer tries again every 2 s."""
SAMPLES = 5000
"""Images of an epoch of the sample data."""


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


def while_it_evaluates(drill: Drill) -> Iterator[Row]:
    """SIGTERM in an evaluation that takes longer than the grace: the step before it is in every node's memory."""
    held, at = drill.new_folder("held"), 30
    held.touch()

    def disturb(run: Run) -> None:
        run.until(lambda: run.progress["phase"] == "evaluating", "evaluation")
        kill("ddp-agent-2", signum=signal.SIGTERM)(run)
        run.until(lambda: f"agent 2 left with {PREEMPTED}" in run.output, "its end")
        held.unlink()

    def evaluated(run: Run, sight: Sight) -> None:
        steps = [event["step"] for event in run.of_kind("evaluate")]
        sight.fact(f"evaluated after steps {steps}", steps == [at, STEPS])

    settings = {
        "fault_tolerance.preemption_grace_seconds": 4,
        "telemetry.eval_every_epochs": at * SETTINGS["data.global_batch"] / SAMPLES,
        "checkpoint.memory_every_steps": 50,
        "checkpoint.every_steps": 50,
    }
    plan = {"evaluation_waits": str(held)}
    fault = "SIGTERM of agent 2 in an evaluation longer than the grace"
    yield goes_on(drill, fault, disturb, causes=("preemption",), lost_at_most=0, settings=settings, plan=plan, at_step=at, check=evaluated)


def when_it_has_finished(drill: Drill) -> Iterator[Row]:
    """SIGTERM of a node whose ranks have done all there was to do, while node 0 still writes; and of the whole run then."""

    def saving(run: Run) -> None:
        run.until(lambda: run.progress["phase"] == "saving", "last save")
        run.until(lambda: sum(role == "rank" for role in run.processes().values()) == 1, "end of all ranks but rank 0")

    def one(run: Run) -> None:
        saving(run)
        kill("ddp-agent-2", signum=signal.SIGTERM)(run)

    def whole(run: Run) -> None:
        saving(run)
        os.kill(run.pid, signal.SIGTERM)

    def left(run: Run, sight: Sight) -> None:
        codes = [words["exit"] for words in run.words_of_agents()]
        sight.fact(f"agents left with {codes}", codes == [0] * 4)

    slow = {"checkpoint.write_megabytes_per_second": 0.02, "checkpoint.every_steps": 40}
    for who, fault in (("agent 2", one), ("the whole run", whole)):
        words = f"SIGTERM of {who} when only the last checkpoint is still to be written"
        yield goes_on(drill, words, fault, causes=(), lost_at_most=0, settings=slow, check=left)


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


def everybody_on_a_full_disk(drill: Drill) -> Iterator[Row]:
    """SIGTERM of the whole run while its disk is full, which mends within the grace: the rest of the grace is used."""
    while_there = drill.new_folder("full")

    def disturb(run: Run) -> None:
        while_there.touch()
        os.kill(run.pid, signal.SIGTERM)
        run.until(lambda: len(_failed_writes(run)) >= FAILED_WRITES, "writes that fail")
        while_there.unlink()

    plan = {"write_fails": errno.ENOSPC, "fault_while": str(while_there)}
    yield _stopped(drill, f"SIGTERM of the whole run, the disk full for {FAILED_WRITES} tries", disturb, plan)


def _failed_writes(run: Run) -> list[str]:
    return [line for line in (run.run_dir / "logs" / "writer.log").read_text().splitlines() if "cannot be written" in line]


def _stopped(drill: Drill, fault: str, disturb: Callable[[Run], object], plan: Mapping[str, Any] | None = None) -> Row:
    reference, home, sight = drill.undisturbed(), drill.new_folder("run"), Sight()
    first = drill.start(run_dir=home, plan=plan)
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


CASES = (
    one_agent,
    first_agent,
    slurm_warning,
    all_leave,
    while_it_starts,
    while_it_evaluates,
    when_it_has_finished,
    impatient,
    everybody,
    everybody_twice,
    whole_tree,
    everybody_on_a_full_disk,
)
