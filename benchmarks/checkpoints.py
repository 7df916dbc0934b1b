"""What a checkpoint costs, beside torch.save, torch's DCP and Lightning Fabric: 188 MB of ResNet-50 with momentum, in one interleaved run.

    python benchmarks/checkpoints.py            about 35 minutes on 2 cores; --worlds 1 --rounds 4: 17
    python benchmarks/checkpoints.py --quick    about 5 minutes: short turns, two rounds, one rank

1. A plain `ddp local` with the default schedule says how often snapshots in memory are taken and what part of the time they cost.
2. All savers are warmed up and take turns, one checkpoint in each turn: how long training stands still, how long until the bytes are
   durable, and how much longer the turn takes than the same loop's without a checkpoint. The first turn of each is thrown away (it starts
   DCP's process and maps our memory). The floor is one pass of write + SHA-256 and one fsync, alone and beside training.
3. The files that they left are read back, and then one bit of each is flipped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import restores
from checkpoint_tables import INTERVAL_SECONDS, SAVERS, Pace, Saver, print_costs, print_restores
from contest import Burst, Player, entered
from contestants import DDP, PEERS, Contestant, Workload, ours
from precision import native_precision
from processes import BenchmarkError, end_in_order_when_told, started, wait_for
from table import machine

from ddp_trainer.errors import DataError

sys.path.insert(0, str(PEERS))  # the floor is the same function in both places
from write_floor import write_once

SHORT_TURN_STEPS = 12
SHORT_TURN_SECONDS = 8.0
"""Of two ranks in the full form: the writing ends within it, and that is all a turn has to be long for."""
SETTLED_STEPS = 20
"""By then the default schedule knows what a step and a snapshot take."""
NEVER = 10**9
START_SECONDS = 300.0


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short turns, two rounds, one rank")
    parser.add_argument("--rounds", type=int, default=None, help="turns of each that count; default 5 (--quick: 2)")
    parser.add_argument("--worlds", type=int, nargs="+", default=None, help="default: 1 2 (--quick: 1)")
    parser.add_argument("--model", default="resnet50", help="a ResNet of torchvision's; the bars are for the default")
    parser.add_argument("--batch", type=int, default=64, help="samples per rank and step")
    flags = parser.parse_args()
    rounds = flags.rounds or (2 if flags.quick else 5)
    print(machine())
    size = restores.state_bytes(restores.live(flags.model))
    what = f"{flags.model} + SGD momentum, channels_last, {size / 1e6:.0f} MB, {native_precision()}"
    print(f"{what}, batch {flags.batch} per rank; n = {rounds} each\n")
    try:
        for world in flags.worlds or ((1,) if flags.quick else (1, 2)):
            threads = max(1, len(os.sched_getaffinity(0)) // world)
            compare(Workload(world=world, model=flags.model, batch=flags.batch, threads=threads), rounds, quick=flags.quick)
    except BenchmarkError as error:
        print(f"checkpoints: {error}", file=sys.stderr)
        return 1
    return 0


def compare(workload: Workload, rounds: int, *, quick: bool) -> None:
    """All tables of one world size.

    Raises:
        BenchmarkError: somebody did not run; a table with a row missing would be no comparison.
    """
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch:
        folder = Path(scratch)
        pace = default_schedule(workload, folder, seconds=20.0 if quick else 60.0)
        lead = 2
        seconds = INTERVAL_SECONDS if workload.world == 1 else SHORT_TURN_SECONDS
        steps = SHORT_TURN_STEPS if quick else max(SHORT_TURN_STEPS, round(seconds / pace.step_seconds) - lead)
        field, savers = lineup(workload, folder, pace, turn_steps=lead + steps)
        with contextlib.ExitStack() as stack:
            players = []
            for number, contestant in enumerate(field):
                player = stack.enter_context(entered(contestant, workload.threads, folder / f"{number}.log"))
                # so long that step `turn_steps` comes early in the next turn: the writing must end inside it
                player.burst(steps - lead - 2)
                players.append(player)
            seen, floors = turns(players, rounds, steps, folder, restores.state_bytes(restores.live(workload.model)))
        print_costs(workload, pace, steps, seen, floors, savers)
        if workload.world == 1:
            print_restores(folder, rounds, workload.model)


def default_schedule(workload: Workload, folder: Path, seconds: float) -> Pace:
    """Train for a while as a user's run does, and read what its rank says about its snapshots."""
    run_dir, log = folder / "plain", folder / "plain.log"
    settings = _settings(workload) | {"task.name": "cifar10", "checkpoint.keep": 2}
    command = [str(DDP), "local", "--workers", str(workload.world), "--run-dir", str(run_dir), *_pairs(settings)]
    with started(command, log, PEERS) as process:

        def facts(after: float) -> dict[str, Any] | None:
            told = _facts(run_dir)
            return told if told.get("snapshot_count_total") and told["step"] >= SETTLED_STEPS and time.time() >= after else None

        first = wait_for(lambda: facts(0.0), process, log, START_SECONDS, "the first snapshots")
        last = wait_for(lambda: facts(first["updated_at"] + seconds), process, log, START_SECONDS, "more snapshots")
    took = last["updated_at"] - first["updated_at"]
    stalled = last["snapshot_stall_seconds_total"] - first["snapshot_stall_seconds_total"]
    steps, count = last["step"] - first["step"], last["snapshot_count_total"] - first["snapshot_count_total"]
    return Pace(took / steps, max(1, round(steps / max(1, count))), stalled / took)


def lineup(workload: Workload, folder: Path, pace: Pace, turn_steps: int) -> tuple[list[Contestant], list[Saver]]:
    """Who plays: ours without, with memory, with disk; the bare loop without and with each saver."""
    forms: list[tuple[str, dict[str, Any]]] = [
        ("off", {"checkpoint.memory_every_steps": 0}),
        ("memory", {"checkpoint.memory_every_steps": pace.memory_every_steps}),
        ("disk", {"checkpoint.memory_every_steps": pace.memory_every_steps, "checkpoint.every_steps": turn_steps}),
    ]
    patience = {
        "fault_tolerance.hang_floor_seconds": 10**6,
        "fault_tolerance.start_limit_seconds": 10**6,
        "fault_tolerance.preemption_grace_seconds": 1,
    }
    field = [ours(workload, folder / f"ours-{name}", _pairs(patience | settings)) for name, settings in forms]
    savers = [Saver("ours", 0, folder / "ours-disk" / "events.jsonl")]
    for name in ("none", *SAVERS):
        saves = folder / name
        saves.mkdir()
        same = [
            f"--model={workload.model}",
            f"--batch={workload.batch}",
            f"--threads={workload.threads}",
            f"--world={workload.world}",
            "--channels-last",
            "--fused",
            f"--save-with={name}",
            f"--save-every={turn_steps}",
            f"--saves={saves}",
            f"--stamps={saves / 'notes.jsonl'}",
        ]
        command = [sys.executable, str(PEERS / "savers.py"), *same]
        if name != "none":
            savers.append(Saver(name, len(forms), saves / "notes.jsonl"))
        field.append(Contestant(name, "", command, "--control {port}", workload.world))
    return field, savers


def turns(players: Sequence[Player], rounds: int, steps: int, folder: Path, size: int) -> tuple[list[list[Burst]], list[float]]:
    """One turn of each per round, in rotating order, and the floor once while all rest; the first round does not count."""
    data = memoryview(os.urandom(size))
    seen: list[list[Burst]] = [[] for _ in players]
    floors = []
    for number in range(rounds + 1):
        for turn in range(len(players)):
            i = (turn + number) % len(players)
            seen[i].append(players[i].burst(steps))
        floors.append(write_once(folder / "floor.bin", data))
        print(f"... round {number} of {rounds} done", file=sys.stderr, flush=True)
    return [bursts[1:] for bursts in seen], floors[1:]


def _facts(run_dir: Path) -> dict[str, Any]:
    """What rank 0 has told its agent, from the page that they share."""
    from ddp_trainer.telemetry.facts import FactsPage

    digest = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:12]
    try:
        return FactsPage.open(Path("/dev/shm") / f"ddp-{digest}-node-0" / "facts").read(0) or {}  # noqa: S108  # the run's own
    except DataError:  # not made yet
        return {}


def _settings(workload: Workload) -> dict[str, Any]:
    return {
        "data.source": "sample",
        "data.global_batch": workload.batch * workload.world,
        "data.micro_batches": workload.world,
        "model.name": workload.model,
        "optim.lr": 0.01,
        "optim.epochs": NEVER,
        "precision.dtype": workload.precision,
        "precision.threads_per_rank": workload.threads,
        "distributed.device": "cpu",
        "telemetry.port": 0,
        "telemetry.eval_every_epochs": NEVER,
    }


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


if __name__ == "__main__":
    sys.exit(main())
