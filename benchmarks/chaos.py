"""Kill a process of a training run, ten times in a row, at every shape: how often it came back, how fast, and what it cost.

    python benchmarks/chaos.py              about 15 minutes on 2 cores
    python benchmarks/chaos.py --quick      two kills each

One run per row: ResNet-18 on the packaged sample, a checkpoint every 5 steps. Each SIGKILL waits until the run has trained past the one
before. "generations" is how many times all nodes met again for each kill: more than 1 would be a cascade, in which one incident sets off
another. "seconds" is from the kill to the first new step, fork, checkpoint and step included.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
from contestants import DDP
from processes import BenchmarkError, end_in_order_when_told, started, wait_for
from table import machine, middle, print_table, spread

from ddp_trainer.telemetry.events import read_events, read_metrics

SHAPES = ((2, 1), (4, 1), (8, 1), (2, 2))
"""Agents, ranks of each."""
VICTIMS = ("a rank", "an agent", "node 0's agent")
ROLES = ("supervisor", "nursery", "agent", "zygote", "rank")
"""How deep in the tree of processes each lies."""
STEPS_BETWEEN = 3
PATIENCE_SECONDS = 180.0
NEVER = 10**9
SETTINGS = {
    "model.name": "resnet18",
    "data.source": "sample",
    "data.global_batch": 32,
    "data.micro_batches": 8,
    "optim.lr": 0.01,
    "optim.epochs": NEVER,
    "precision.threads_per_rank": 1,
    "distributed.device": "cpu",
    "checkpoint.every_steps": 5,
    "checkpoint.every_seconds": "null",
    "fault_tolerance.max_restarts": NEVER,
    "fault_tolerance.no_progress_restarts": NEVER,
    "telemetry.port": 0,
    "telemetry.log_every_steps": 1,
    "telemetry.eval_every_epochs": NEVER,
    "telemetry.tensorboard": "false",
}


@dataclass(frozen=True)
class Kill:
    """One kill that the run came back from."""

    seconds: float
    lost_steps: int
    generations: int


def main() -> int:
    """Parse, kill, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two kills in each row")
    flags = parser.parse_args()
    wanted = 2 if flags.quick else flags.kills
    print(machine(), "\n")
    rows, failures = [], 0
    for agents, procs in SHAPES:
        for victim in VICTIMS:
            came, why = kill_again_and_again(agents, procs, victim, wanted)
            failures += len(came) < wanted
            seconds = [kill.seconds for kill in came]
            lost = [kill.lost_steps for kill in came]
            most = max((kill.generations for kill in came), default=0)
            cells = [f"{len(came)} of {wanted}", middle(seconds, 1), spread(seconds, 1), middle(lost), spread(lost), str(most)]
            rows.append([f"{agents} x {procs}", victim, *cells])
            print(f"... {agents} x {procs}, {victim}: {len(came)} of {wanted}{why}", file=sys.stderr, flush=True)
    columns = (
        "agents x ranks",
        "SIGKILL of",
        "came back",
        "seconds",
        "min - max",
        "steps lost",
        "min - max",
        "generations a kill, at most",
    )
    print_table(columns, rows)
    return int(failures > 0)


def kill_again_and_again(agents: int, procs: int, victim: str, wanted: int) -> tuple[list[Kill], str]:
    """The kills that one run came back from, and why it did not from the next."""
    came: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="ddp-chaos-") as folder:
        run_dir, log = Path(folder, "run"), Path(folder, "log")
        settings = SETTINGS | {"distributed.procs_per_node": procs}
        pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with started([str(DDP), "local", "--workers", str(agents), "--run-dir", str(run_dir), *pairs], log) as process:
            try:
                wait_for(lambda: _step_after(run_dir, 0, 0), process, log, PATIENCE_SECONDS, "the first step")
                for number in range(wanted):
                    kill = _kill(process.pid, victim, number, run_dir, wait=partial(_wait, process, log))
                    came.append(kill)  # one by one: those before a failure count
            except BenchmarkError as error:
                return came, f"; {error}"
    return came, ""


def _wait(process: Popen[bytes], log: Path, look: Callable[[], Any]) -> Any:
    return wait_for(look, process, log, PATIENCE_SECONDS, "a new step")


def _kill(supervisor: int, victim: str, number: int, run_dir: Path, wait: Callable[[Callable[[], Any]], Any]) -> Kill:
    newest = _trained(run_dir)[-1]
    wait(lambda: _step_after(run_dir, newest["attempt"], newest["step"] + STEPS_BETWEEN))
    them = _processes(supervisor, "rank" if victim == "a rank" else "agent")
    before, killed = _trained(run_dir)[-1], time.time()
    os.kill(them[0 if victim == VICTIMS[2] else 1 + number % (len(them) - 1)].pid, signal.SIGKILL)
    back = wait(lambda: _step_after(run_dir, before["attempt"] + 1, 0))
    events = [event for event in read_events(run_dir / "events.jsonl") if event["time"] > killed]
    lost = sum(event["lost_steps"] for event in events if event["kind"] == "resume")
    return Kill(back["time"] - killed, lost, sum(event["kind"] == "form" for event in events))


def _processes(supervisor: int, role: str) -> list[psutil.Process]:
    """The run's living processes of a role, oldest place in the gang first."""
    level = [psutil.Process(supervisor)]
    for _ in ROLES[1 : ROLES.index(role) + 1]:
        level = [child for parent in level for child in sorted(parent.children(), key=lambda one: one.pid)]
    if role == "agent":
        level.sort(key=_node)
    return level


def _node(agent: psutil.Process) -> int:
    """Which node an agent is: its log's name says so."""
    return int(Path(f"/proc/{agent.pid}/fd/1").readlink().stem.rpartition("-")[2])


def _trained(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "train"]


def _step_after(run_dir: Path, attempt: int, step: int) -> dict[str, Any] | None:
    """The first step of `attempt` or a later one that is `step` or later, or belongs to a newer attempt."""
    return next(
        (line for line in _trained(run_dir) if line["attempt"] > attempt or (line["attempt"] == attempt and line["step"] >= step)), None
    )


if __name__ == "__main__":
    sys.exit(main())
