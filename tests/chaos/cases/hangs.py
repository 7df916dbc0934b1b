"""Processes that stand still, or are slow, without dying."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

from drill import STEPS, Drill
from outcome import pid_of
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, ended, goes_on, kill

DETECTED_SECONDS = 30.0
"""With the default floor of 10 s."""
AGENT_STOPPED_STEPS = 12
SLOW_FACTOR = 5
PULSES = 6


def stopped_rank(drill: Drill) -> Iterator[Row]:
    """SIGSTOP of a rank: it is found, its stack is asked for and it is named, and training goes on without anybody's help."""

    yield goes_on(
        drill,
        "SIGSTOP of rank 2 of 4",
        kill("ddp-rank-2", signum=signal.SIGSTOP),
        causes=("hang",),
        within_seconds=DETECTED_SECONDS,
        check=_names(2),
    )


def stopped_rank_quickly(drill: Drill) -> Iterator[Row]:
    """The same with a floor of 2 s, for whoever has little time."""
    yield goes_on(
        drill,
        "SIGSTOP of rank 1 of 4, floor 2 s",
        kill("ddp-rank-1", signum=signal.SIGSTOP),
        causes=("hang",),
        settings={"fault_tolerance.hang_floor_seconds": 2},
        check=_names(1),
    )


def _names(rank: int) -> Callable[[Run, Sight], None]:
    """The rank is named, and what it did is in the diary, though that is another node's."""

    def look(run: Run, sight: Sight) -> None:
        (fault, *_) = run.of_kind("fault") or [{}]
        sight.fact(f"rank {fault.get('rank')} named", fault.get("rank") == rank)
        kept = sorted({rank for event in run.of_kind("stacks") for rank in event["stacks"]})
        sight.fact(f"stacks of {', '.join(kept) or 'nobody'} kept", str(rank) in kept)

    return look


def stopped_agent(drill: Drill) -> Iterator[Row]:
    """SIGSTOP of an agent: the ranks do not need it, and when it goes on all is well."""

    def disturb(run: Run) -> None:
        agent = pid_of(run, "ddp-agent-2")
        os.kill(agent, signal.SIGSTOP)
        run.trained_to(DISTURBED_AT + AGENT_STOPPED_STEPS)
        os.kill(agent, signal.SIGCONT)

    yield goes_on(drill, f"SIGSTOP of agent 2 for {AGENT_STOPPED_STEPS} steps", disturb, causes=(), lost_at_most=0)


def frozen_agent(drill: Drill) -> Iterator[Row]:
    """SIGSTOP of an agent for good, late in the run: its ranks get to the end, and the end waits for it with a bound."""
    freeze, settings = kill("ddp-agent-2", signum=signal.SIGSTOP), {"distributed.peer_timeout_seconds": 3}
    yield goes_on(
        drill, "SIGSTOP of agent 2 near the end, for good", freeze, causes=(), lost_at_most=0, at_step=STEPS - 10, settings=settings
    )


def stopped_first_agent(drill: Drill) -> Iterator[Row]:
    """SIGSTOP of the agent with the store in which all meet: the others miss it, stop, and wait for it."""

    def disturb(run: Run) -> None:
        agent = pid_of(run, "ddp-agent-0")
        os.kill(agent, signal.SIGSTOP)
        run.until(lambda: all("waiting for its return" in _log(run, f"agent-{node}") for node in (1, 2, 3)), "the others to miss it")
        os.kill(agent, signal.SIGCONT)

    def noted(run: Run, sight: Sight) -> None:
        sight.fact(f"faults noted: {len(run.of_kind('fault'))}", 1 <= len(run.of_kind("fault")) <= 2)
        sight.fact("agent 0 went on" if "agent 0 left" not in run.output else "agent 0 left", "agent 0 left" not in run.output)

    fault = "SIGSTOP of agent 0 until the others have missed it"
    # steps that take so long that the run is not over by then
    yield goes_on(drill, fault, disturb, causes=None, plan={"slow": [DISTURBED_AT, 10]}, check=noted)


def stopped_agent_and_dead_rank(drill: Drill) -> Iterator[Row]:
    """A rank dies under an agent that stands still: nobody can say so before the agent goes on."""

    def disturb(run: Run) -> None:
        agent, rank = pid_of(run, "ddp-agent-2"), pid_of(run, "ddp-rank-2")
        os.kill(agent, signal.SIGSTOP)
        os.kill(rank, signal.SIGKILL)
        run.until(lambda: "failed" in _log(run, "rank-1") or run.of_kind("fault"), "echo of the dead rank")
        os.kill(agent, signal.SIGCONT)

    yield goes_on(drill, "SIGSTOP of agent 2 while its rank is killed", disturb, causes=("failed_collective",))


def _log(run: Run, name: str) -> str:
    path = run.run_dir / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def slow_machine(drill: Drill) -> Iterator[Row]:
    """From one step on everything takes five times as long: that is no hang."""
    steps, slow_from = 60, 40
    yield goes_on(
        drill,
        f"steps {SLOW_FACTOR}x as long from step {slow_from} on",
        lambda _: None,
        causes=(),
        lost_at_most=0,
        at_step=slow_from,
        settings={"fault_tolerance.hang_floor_seconds": 1, "optim.max_steps": steps},
        plan={"step_seconds": 0.1, "slow": [slow_from, SLOW_FACTOR]},
    )


def pulses(drill: Drill) -> Iterator[Row]:
    """SIGSTOP and SIGCONT in turns, as a machine that is starved of its cores: neither a hang nor a loss."""
    reference = drill.undisturbed()
    run, sight = drill.start(), Sight()
    for number in range(PULSES):
        run.trained_to(10 + 6 * number)
        rank = pid_of(run, "ddp-rank-3")
        os.kill(rank, signal.SIGSTOP)
        time.sleep(0.5)  # this is the fault itself: a process without a core for this long
        os.kill(rank, signal.SIGCONT)
    run.wait()
    ended(run, sight, reference)
    sight.fact(f"{len(run.of_kind('fault'))} faults", not run.of_kind("fault"))
    yield sight.row(f"SIGSTOP of rank 3 for 0.5 s, {PULSES} times", "ends with the undisturbed bits; no fault noted", None, 0)


CASES = (
    stopped_rank,
    stopped_rank_quickly,
    stopped_agent,
    frozen_agent,
    stopped_first_agent,
    stopped_agent_and_dead_rank,
    slow_machine,
    pulses,
)
