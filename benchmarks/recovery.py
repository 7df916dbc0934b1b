"""From a fault to the first new step, and what the fault cost: 4 nodes of ResNet-50 on this machine, ours beside torchrun and Lightning.

    python benchmarks/recovery.py [--turns 3]    about 40 minutes on 2 cores: a peer that does not come back is given 120 s each time
    python benchmarks/recovery.py --quick        about 4 minutes: one turn of ours, one kill of a rank for torchrun, at most 60 s

A turn of ours is one run that meets every fault in turn, with everything about checkpoints and faults at its default; its nodes are four
`ddp launch`, as in containers. A peer is four torchrun (c10d rendezvous) with a save every 5 steps, started anew for every fault. All train
at the same batch. "machinery" is all but building the model and the step itself. A lost node's clock starts when its replacement does.

Each fault strikes when it costs most: one rank or node right before the next snapshot in memory is due, all nodes while the next
checkpoint is being written, a peer right before its next save, once one is whole. At the end a run of ours is left alone (`--calm`):
whatever it takes for a fault is a false alarm.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gangs
from gangs import NODES, Gang, running, whole_lines
from processes import BenchmarkError, end_in_order_when_told
from table import machine, middle, print_table, spread
from timeline import NOT_MACHINERY, PARTS, Incident

START_SECONDS = 300.0
BACK_SECONDS = 180.0
"""Ours is given this long to come back."""
LEAVE_SECONDS = 60.0
FIRST_FAULT_AFTER_STEP = 12
STEPS_BETWEEN = 8
"""So many new steps before the next fault: the schedules have settled by then."""
VICTIM = 2
"""Not the rank that leads, and a node without the run directory."""

KILLED, NODE_LOST, NODE_0_LOST, HUNG = (
    "SIGKILL of a rank",
    "a node lost and replaced",
    "node 0 lost and replaced",
    "a rank stands still (SIGSTOP)",
)
ALL_LOST, PREEMPTED = "all nodes killed at once, started again", "all nodes preempted (SIGTERM), started again"
BARS_SECONDS = {KILLED: 5.0, NODE_LOST: 8.0, NODE_0_LOST: 8.0, HUNG: 30.0}
MACHINERY_BAR_SECONDS = 1.5
BARS_LOST_SECONDS = {ALL_LOST: 15.0}
BARS_LOST_STEPS = {PREEMPTED: 0}
SINGLE = (KILLED, NODE_LOST, NODE_0_LOST, HUNG)
"""Whoever is left has the state in memory, so that a memory interval is lost at most."""
DISK_SECONDS, OLD_SECONDS = 11.0, 5.0
"""What is kept for the disk is kept in memory, too, at least so often; a checkpoint that is older than this has its successor under way."""
PEER_SAVE_STEPS = 5
PEER_FAULTS = {
    "examples_imagenet": (KILLED, NODE_LOST, HUNG, ALL_LOST),
    "dcp_loop": (KILLED, ALL_LOST, PREEMPTED),
    "lightning_loop": (KILLED,),
}
PEER_NAMES = {
    "examples_imagenet": "torchrun c10d + examples_imagenet",
    "dcp_loop": "torchrun c10d + DCP async_save",
    "lightning_loop": "torchrun c10d + Lightning Trainer",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    seconds: float | None
    """To the end of the first new step; None: not within the bound."""
    lost_steps: int | None = None
    """Done before the fault, and done again."""
    lost_seconds: float | None = None
    """Of work that had to be done again, the step that the fault met included."""
    memory_every_steps: int | None = None
    """The interval of snapshots in memory when the fault struck; None where it does not count."""
    incident: Incident | None = None


def main() -> int:
    """Parse, hurt, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="of ours")
    parser.add_argument("--peer-turns", type=int, default=1)
    parser.add_argument("--cap", type=float, default=120.0, help="seconds that a peer is given to come back")
    parser.add_argument("--calm", type=float, default=600.0, help="seconds without a fault, at the end; 0: none")
    parser.add_argument("--quick", action="store_true", help="one turn of ours, one fault of torchrun, a cap of 60 s, a calm of 60 s")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="samples per rank and step")
    parser.add_argument("--only", choices=("ours", "peers"), default=None)
    flags = parser.parse_args()
    turns, cap, calm_seconds = (1, 60.0, 60.0) if flags.quick else (flags.turns, flags.cap, flags.calm)
    peer_faults = {"examples_imagenet": (KILLED,)} if flags.quick else PEER_FAULTS
    print(machine())
    print(f"{NODES} nodes x 1 rank, {flags.model}, imagenet stem, gloo, batch {flags.batch} per rank; n = {turns}\n")
    ours: dict[str, list[Outcome]] = {}
    theirs: dict[tuple[str, str], list[Outcome]] = {}
    try:
        for turn in range(max(turns, flags.peer_turns)):
            if turn < turns and flags.only != "peers":
                for fault, outcome in turn_of_ours(flags.model, flags.batch).items():
                    ours.setdefault(fault, []).append(outcome)
            if turn < flags.peer_turns and flags.only != "ours":
                for script, faults in peer_faults.items():
                    for fault in faults:
                        theirs.setdefault((script, fault), []).append(turn_of_peer(script, fault, flags.model, flags.batch, cap))
                        print(f"... {script}, {fault}: {theirs[script, fault][-1].seconds}", file=sys.stderr, flush=True)
            print(f"... turn {turn + 1} done", file=sys.stderr, flush=True)
    except BenchmarkError as error:
        print(f"recovery: {error}", file=sys.stderr)
        return 1
    print_all(ours, theirs, cap)
    if calm_seconds and flags.only != "peers":
        steps, alarms = calm_of_ours(flags.model, flags.batch, calm_seconds)
        holds = "does NOT hold: " + "; ".join(alarms) if alarms else "holds"
        print(f"\nLeft alone for {calm_seconds:.0f} s, {steps} steps: {len(alarms)} false alarms (bar: 0, {holds})")
    return 0


def turn_of_ours(model: str, batch: int) -> dict[str, Outcome]:
    """One run that meets every fault.

    Raises:
        BenchmarkError: it did not come back from one.
    """

    def replaced(node: int) -> Callable[[Gang], tuple[float, float]]:
        return lambda gang: (gang.kill(node), gang.start(node))

    def strike(rank: int, signum: signal.Signals) -> Callable[[Gang], tuple[float, float]]:
        return lambda gang: (gang.signal_rank(rank, signum),) * 2

    faults: dict[str, Callable[[Gang], tuple[float, float]]] = {
        KILLED: strike(VICTIM, signal.SIGKILL),
        NODE_LOST: replaced(VICTIM),
        NODE_0_LOST: replaced(0),
        HUNG: strike(1, signal.SIGSTOP),
        ALL_LOST: lambda gang: (gang.kill(*range(NODES)), gang.start_all()),
        PREEMPTED: lambda gang: (gang.terminate_all(LEAVE_SECONDS), gang.start_all()),
    }
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, running(Path(folder), *gangs.ours(model, batch)) as gang:
        gang.start_all()
        until, what = FIRST_FAULT_AFTER_STEP, f"step {FIRST_FAULT_AFTER_STEP}"
        for fault, strike_now in faults.items():
            gang.wait(lambda until=until: _trained(gang, until), START_SECONDS, what)  # type: ignore[misc]  # a default cannot be typed
            every = gang.wait(lambda fault=fault: _worst_moment(gang, fault), BACK_SECONDS, f"the worst moment for: {fault}")  # type: ignore[misc]  # as above
            attempt = _steps(gang)[-1]["attempt"]
            struck, clock = strike_now(gang)
            back = gang.wait(lambda attempt=attempt: _back(gang, attempt), BACK_SECONDS, f"a step after: {fault}")  # type: ignore[misc]  # as above
            outcomes[fault] = replace(_outcome(gang, struck, clock, back), memory_every_steps=every if fault in SINGLE else None)
            print(f"... ours, {fault}: {outcomes[fault].seconds:.1f} s, {outcomes[fault].lost_steps} lost", file=sys.stderr, flush=True)
            until, what = back["step"] + STEPS_BETWEEN, f"{STEPS_BETWEEN} steps after: {fault}"
    return outcomes


def calm_of_ours(model: str, batch: int, seconds: float) -> tuple[int, list[str]]:
    """A run that nobody disturbs: steps, and what it took for a fault; its end would be one."""
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, running(Path(folder), *gangs.ours(model, batch)) as gang:
        gang.start_all()
        begun = time.time()
        gang.within(lambda: _trained_at(gang, begun + seconds), seconds + START_SECONDS)
        steps = max((line["step"] for line in _lines(gang)), default=0)
        ended = [] if _trained_at(gang, begun + seconds) else ["it ended"]
        events = whole_lines(gang.run_dir / "events.jsonl")
    return steps, [str(event.get("message")) for event in events if event["kind"] in {"fault", "stop"}] + ended


def _worst_moment(gang: Gang, fault: str) -> int | None:
    """Steps between two snapshots in memory, 0 where they do not matter; None: it has not come yet."""
    if fault == PREEMPTED:
        return 0
    if fault == ALL_LOST:
        saved = [event["time"] for event in whole_lines(gang.run_dir / "events.jsonl") if event["kind"] == "checkpoint"]
        is_old = saved and time.time() - saved[-1] >= OLD_SECONDS
        return 0 if is_old and any((gang.run_dir / "checkpoints").glob(".tmp-*")) else None
    kept, every = gang.reading("trainer_snapshot_last_step"), gang.reading("trainer_snapshot_every_steps")
    steps = _steps(gang)
    if not kept or not every or len(steps) < 2:
        return None
    # what goes to disk is kept in memory, too, and may come first: then the interval is that
    shortest = min(every, int(DISK_SECONDS / (steps[-1]["time"] - steps[0]["time"]) * (len(steps) - 1)))
    is_last = kept + shortest - 1 <= steps[-1]["step"] < kept + shortest  # later, the page has not told of the next one yet
    return int(every) if is_last else None


def turn_of_peer(script: str, fault: str, model: str, batch: int, cap_seconds: float) -> Outcome:
    """A peer's run, from its start to its return from one fault, or to the cap.

    Raises:
        BenchmarkError: it did not even start.
    """
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, running(Path(folder), *gangs.torchrun(script, model, batch)) as gang:
        gang.start_all()

        def stepped(step: int, strangers: frozenset[int] = frozenset()) -> dict[str, Any] | None:
            marks = (mark for mark in gang.marks() if mark["what"] == "step" and mark["pid"] not in strangers and mark["step"] >= step)
            return next(marks, None)

        until = -(-FIRST_FAULT_AFTER_STEP // PEER_SAVE_STEPS) * PEER_SAVE_STEPS - 1
        gang.wait(lambda: stepped(until), START_SECONDS, f"{script}'s step {until}")
        gang.wait(lambda: _has_saved(gang), START_SECONDS, f"{script}'s first save")
        newest = max(mark.get("step", 0) for mark in gang.marks())
        gang.wait(lambda: stepped(-(-newest // PEER_SAVE_STEPS) * PEER_SAVE_STEPS + PEER_SAVE_STEPS - 1), START_SECONDS, "the next save")
        old, done = frozenset(mark["pid"] for mark in gang.marks()), max(mark.get("step", 0) for mark in gang.marks())
        if fault == NODE_LOST:
            gang.kill(VICTIM)
            clock = gang.start(VICTIM)
        elif fault == ALL_LOST:
            gang.kill(*range(NODES))
            clock = gang.start_all()
        elif fault == PREEMPTED:
            gang.terminate_all(LEAVE_SECONDS)
            done = max(mark.get("step", 0) for mark in gang.marks())
            clock = gang.start_all()
        else:
            clock = gang.signal_rank(VICTIM, signal.SIGSTOP if fault == HUNG else signal.SIGKILL)
        back = gang.within(lambda: stepped(0, old), cap_seconds)
        return Outcome(back["time"] - clock, max(0, done - back["step"] + 1)) if back else Outcome(None)


def _has_saved(gang: Gang) -> bool | None:
    """Whether a peer has a save that is whole: a file under its last name, or DCP's folder with the metadata that is written last."""
    return any(gang.run_dir.glob("step-*/.metadata")) or any(gang.run_dir.glob("*.tar")) or any(gang.run_dir.glob("last*.ckpt")) or None


def _outcome(gang: Gang, struck: float, clock: float, back: dict[str, Any]) -> Outcome:
    events = whole_lines(gang.run_dir / "events.jsonl")
    resumes = [event["step"] for event in events if event["kind"] == "resume" and event["attempt"] == back["attempt"]]
    resumed = resumes[-1] if resumes else 0
    before = [step for step in _lines(gang) if step["attempt"] < back["attempt"]]
    last = max(before, key=lambda step: step["time"])
    lost = last["step"] - resumed
    work = _work_seconds([step for step in before if step["step"] > resumed]) + struck - last["time"] if lost else 0.0
    parts = _incident(gang, struck, events, back)
    return Outcome(back["time"] - clock, lost, max(0.0, work), incident=parts)


def _work_seconds(steps: Sequence[dict[str, Any]]) -> float:
    """How long these steps took when they were done last; a generation's first step as long as its others, without the start before it."""
    newest = {step["step"]: step for step in steps}
    took = [
        step["time"] - before["time"]
        for step in newest.values()
        if (before := newest.get(step["step"] - 1)) and before["attempt"] == step["attempt"]
    ]
    return sum(took) / len(took) * len(newest) if took else 0.0


def _incident(gang: Gang, struck: float, events: Sequence[dict[str, Any]], back: dict[str, Any]) -> Incident | None:
    """The marks of rank 0 and of node 0's events; None where node 0 did not see the fault itself."""
    marks = {"began": 0.0, "stepped": back["time"] - struck}
    for event in events:
        if event["kind"] in {"fault", "form"} and struck <= event["time"] <= back["time"]:
            marks[event["kind"]] = event["time"] - struck
    for mark in gang.marks():
        if mark["rank"] == 0 and struck + marks.get("form", 0.0) <= mark["time"] <= back["time"]:
            marks.setdefault(mark["what"], mark["time"] - struck)
    needed = {name for _, first, last in PARTS for name in (first, last)}
    return Incident(marks) if needed <= marks.keys() else None


def _lines(gang: Gang) -> list[dict[str, Any]]:
    """Every step that rank 0 has noted, undone ones included."""
    return [line for line in whole_lines(gang.run_dir / "metrics.jsonl") if line["kind"] == "train"]


def _steps(gang: Gang) -> list[dict[str, Any]]:
    """Those of the newest attempt."""
    lines = _lines(gang)
    return [line for line in lines if line["attempt"] == lines[-1]["attempt"]]


def _trained(gang: Gang, step: int) -> dict[str, Any] | None:
    return next((line for line in _steps(gang) if line["step"] >= step), None)


def _trained_at(gang: Gang, moment: float) -> dict[str, Any] | None:
    return next((line for line in _steps(gang) if line["time"] >= moment), None)


def _back(gang: Gang, attempt: int) -> dict[str, Any] | None:
    return next((line for line in _lines(gang) if line["attempt"] > attempt), None)


def print_all(ours: dict[str, list[Outcome]], theirs: dict[tuple[str, str], list[Outcome]], cap: float) -> None:
    """Times, break-down, losses."""
    rows = []
    for fault in SINGLE:
        seconds = [outcome.seconds for outcome in ours.get(fault, []) if outcome.seconds is not None]
        bar = BARS_SECONDS[fault]
        holds = ("yes" if max(seconds) < bar else "NO") if seconds else "-"
        peers = [_capped(theirs.get((script, fault), []), cap) for script in PEER_NAMES]
        rows.append([fault, f"{middle(seconds, 1)} s", spread(seconds, 1), f"< {bar:.0f} s", holds, *peers])
    print_table(("fault -> first new step", "ours", "min - max", "bar", "holds, every time", *PEER_NAMES.values()), rows)
    incidents = [outcome.incident for outcome in ours.get(KILLED, []) if outcome.incident]
    if incidents:
        print("\nWhere ours spends it after the SIGKILL of a rank (medians):\n")
        rows = [
            [name + (" (not machinery)" if name in NOT_MACHINERY else ""), f"{middle([i.parts()[name] for i in incidents], 2)} s"]
            for name in incidents[0].parts()
        ]
        rows.append(["total", f"{middle([i.total_seconds for i in incidents], 2)} s"])
        machinery = [i.machinery_seconds for i in incidents]
        holds = "holds" if max(machinery) < MACHINERY_BAR_SECONDS else "does NOT hold"
        rows.append([f"of it machinery (bar: < {MACHINERY_BAR_SECONDS} s, {holds})", f"{middle(machinery, 2)} s"])
        print_table(("part", "seconds"), rows)
    if ours:
        print(f"\nWhat each fault cost (the peers save every {PEER_SAVE_STEPS} steps):\n")
        rows = []
        for fault, outcomes in ours.items():
            steps = [outcome.lost_steps for outcome in outcomes if outcome.lost_steps is not None]
            work = [outcome.lost_seconds for outcome in outcomes if outcome.lost_seconds is not None]
            peers = [_lost(theirs.get((script, fault), [])) for script in PEER_NAMES]
            rows.append([fault, middle(steps), spread(steps), f"{middle(work, 1)} s", spread(work, 1), *_loss_bar(fault, outcomes), *peers])
        columns = ("fault", "steps done again", "min - max", "work done again", "min - max", "bar", "holds, every time")
        print_table((*columns, *PEER_NAMES.values()), rows)


def _loss_bar(fault: str, outcomes: Sequence[Outcome]) -> tuple[str, str]:
    if fault in BARS_LOST_SECONDS:
        holds = all((outcome.lost_seconds or 0.0) <= BARS_LOST_SECONDS[fault] for outcome in outcomes)
        return f"<= {BARS_LOST_SECONDS[fault]:.0f} s", "yes" if holds else "NO"
    if fault in BARS_LOST_STEPS:
        holds = all((outcome.lost_steps or 0) <= BARS_LOST_STEPS[fault] for outcome in outcomes)
        return f"{BARS_LOST_STEPS[fault]} steps", "yes" if holds else "NO"
    every = [outcome.memory_every_steps or 0 for outcome in outcomes]
    holds = all((outcome.lost_steps or 0) <= most for outcome, most in zip(outcomes, every, strict=True))
    return f"memory interval: {spread(every)} steps", "yes" if holds else "NO"


def _lost(outcomes: Sequence[Outcome]) -> str:
    """Of a peer: the steps that it did again, if it came back."""
    lost = [outcome.lost_steps for outcome in outcomes if outcome.lost_steps is not None]
    return f"{spread(lost)} steps" if lost else "not back" if outcomes else "-"


def _capped(outcomes: Sequence[Outcome], cap: float) -> str:
    """Of a peer: when it was back, or that it was not."""
    came = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    if not outcomes:
        return "-"
    if not came:
        return f"not within {cap:.0f} s ({len(outcomes)} of {len(outcomes)})"
    lost = max(outcome.lost_steps or 0 for outcome in outcomes)
    return f"{middle(came, 1)} s ({len(came)} of {len(outcomes)}; {lost} steps lost)"


if __name__ == "__main__":
    sys.exit(main())
