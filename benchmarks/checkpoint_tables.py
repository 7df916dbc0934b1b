"""The tables of checkpoints.py: what each saver's checkpoints cost, what reading back takes, and ours against its bars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import restores
from contest import Burst
from contestants import Workload
from table import middle, paired_ratio, print_table, spread

from ddp_trainer.checkpoint.schedule import Schedule
from ddp_trainer.config import CheckpointSection
from ddp_trainer.telemetry.events import read_events

INTERVAL_SECONDS = 15.0
"""`checkpoint.every_seconds` by default, which the interval is shorter than: a turn of the full form is as long."""
POLL_SECONDS = 0.05
"""Our writer looks for requests this often: the most that lies between a snapshot and the beginning of its writing."""
SAVERS = ("floor", "torch", "dcp-thread", "dcp-process", "fabric")
NAMES = {
    "floor": "floor: write + SHA-256 + fsync beside training",
    "torch": "torch.save, fsync, rename",
    "dcp-thread": "DCP async_save, thread",
    "dcp-process": "DCP async_save, process",
    "fabric": "Lightning Fabric.save (not synced)",
}
STALL_BAR_SECONDS, STALL_BAR_RATIO, MEMORY_BAR_RATIO, DURABLE_BAR_FLOORS, LOAD_BAR_SECONDS = 0.05, 0.005, 0.01, 2.0, 1.0


@dataclass(frozen=True)
class Pace:
    """What the plain run with the default schedule did."""

    step_seconds: float
    memory_every_steps: int
    memory_ratio: float
    """Part of the training time that snapshots in memory took."""


@dataclass(frozen=True)
class Saver:
    """A contestant that saves once a turn, the place in the field of the same loop without checkpoints, and where its notes are."""

    name: str
    limit: int
    notes: Path


def print_costs(
    workload: Workload, pace: Pace, steps: int, seen: Sequence[Sequence[Burst]], floors: Sequence[float], savers: Sequence[Saver]
) -> None:
    """Stalls, durability, slow-down, and ours against its bars."""
    rates = [[burst.samples_per_second for burst in bursts] for bursts in seen]
    samples = steps * workload.batch * workload.world
    rows, first_peer = [], 4  # after ours without, with memory, with disk, and the loop without checkpoints
    measured: dict[str, tuple[list[float], list[float]]] = {}
    for number, saver in enumerate(savers):
        mine = 2 if saver.name == "ours" else first_peer + number - 1
        stalls, durable = _notes(saver)[0][1:][: len(floors)], _notes(saver)[1][1:][: len(floors)]
        measured[saver.name] = stalls, durable
        extra = [(samples / a - samples / b) * 1e3 for a, b in zip(rates[mine], rates[saver.limit], strict=True)]
        stall_ratio = f"{median(stalls) / INTERVAL_SECONDS:.2%}" if stalls else "-"
        rows.append(
            [
                NAMES.get(saver.name, "ours (a snapshot, a writer of its own)"),
                _milliseconds(stalls) if saver.name != "floor" else "-",
                spread([s * 1e3 for s in stalls]) if saver.name != "floor" else "-",
                stall_ratio if saver.name != "floor" else "-",
                f"{middle(durable, 2)} s",
                spread(durable, 2),
                f"{middle(extra)} ms ({spread(extra)})",
            ]
        )
    rows.append(["floor: the same with nobody beside it", "-", "-", "-", f"{middle(floors, 2)} s", spread(floors, 2), "-"])
    print(f"World {workload.world}, {workload.threads} threads a rank, turns of {steps} steps with one checkpoint each:\n")
    columns = ("saver", "training stands still", "ms, min - max", f"of {INTERVAL_SECONDS:.0f} s", "durable after", "min - max")
    print_table((*columns, "turn longer by (min - max)"), rows)
    memory, disk = paired_ratio(rates[1], rates[0]), paired_ratio(rates[2], rates[0])
    print("\nSamples per second of ours, snapshots on beside off, interleaved:\n")
    every = f"in memory every {pace.memory_every_steps} steps, as the default schedule chose"
    print_table(
        ("snapshots", "samples/s", "min - max", "of off"),
        [
            ["off", middle(rates[0], 1), spread(rates[0], 1), "1.000"],
            [every, middle(rates[1], 1), spread(rates[1], 1), f"{memory:.3f}"],
            [f"... and one on disk every {steps + 2} steps", middle(rates[2], 1), spread(rates[2], 1), f"{disk:.3f}"],
        ],
    )
    stalls, durable = measured["ours"]
    floor = median(measured["floor"][1])
    stall = median(stalls)
    interval = Schedule(CheckpointSection(), steps, pace.step_seconds, median(durable)).durable_every_seconds or INTERVAL_SECONDS
    print("\nOurs against its bars:\n")
    print_table(
        ("claim", "bar", "measured", "holds"),
        [
            _bar("training stands still for a durable checkpoint", stall, STALL_BAR_SECONDS, "{:.3f} s"),
            _bar(f"... of the time, at the default interval ({interval:.1f} s)", stall / interval, STALL_BAR_RATIO, "{:.2%}"),
            _bar("snapshots in memory, of the time, at the default schedule", pace.memory_ratio, MEMORY_BAR_RATIO, "{:.2%}"),
            _bar("durable, in floors beside training", median(durable) / floor, DURABLE_BAR_FLOORS, "{:.2f}"),
            _bar("durable, in floors with nobody beside", median(durable) / median(floors), DURABLE_BAR_FLOORS, "{:.2f}"),
        ],
    )
    print(flush=True)


def print_restores(folder: Path, rounds: int, model: str) -> None:
    """Reading back from the page cache, and one flipped bit."""
    places = {name: _newest_of(folder / name) for name in SAVERS if name != "floor"}
    field = restores.readers(folder / "ours-disk" / "checkpoints", places)
    seconds: dict[str, list[float]] = {reader.name: [] for reader in field}
    for number in range(rounds + 1):
        for reader in field:
            took = restores.timed(reader, model)
            if number:  # the first fills the page cache
                seconds[reader.name].append(took)
    rows = []
    for reader in field:
        verdict = restores.flip(reader, model)
        wrong = "-" if verdict.wrong_elements is None else f"{verdict.wrong_elements} {verdict.example}".strip()
        name = NAMES.get(reader.name, "ours (load + verify)")
        rows.append([name, f"{middle(seconds[reader.name], 2)} s", spread(seconds[reader.name], 2), verdict.said, wrong])
    print("Reading back from the page cache into a live model, and what becomes of one flipped bit in the newest checkpoint:\n")
    print_table(("checkpoint of", "read", "min - max", "one bit flipped", "wrong elements"), rows)
    print()
    print_table(
        ("claim", "bar", "measured", "holds"),
        [_bar("load + verify from the page cache", median(seconds["ours"]), LOAD_BAR_SECONDS, "{:.2f} s")],
    )


def _newest_of(folder: Path) -> Path:
    found = [f for f in folder.iterdir() if f.name != "notes.jsonl"]
    complete = [f for f in found if not f.is_dir() or (f / ".metadata").is_file()]
    return max(complete, key=lambda f: f.stat().st_mtime)


def _notes(saver: Saver) -> tuple[list[float], list[float]]:
    """Stalls and times until durable, in order. Ours counts the longest wait of its writer before it begins."""
    if saver.name == "ours":
        events = [event for event in read_events(saver.notes) if event["kind"] == "checkpoint"]
        stalls = [event["stall_seconds"] for event in events]
        return stalls, [e["stall_seconds"] + POLL_SECONDS + e["persist_seconds"] for e in events]
    lines = [json.loads(line) for line in saver.notes.read_text(encoding="utf-8").splitlines()]
    return [line["stall_seconds"] for line in lines], [line["durable_seconds"] for line in lines]


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{middle([s * 1e3 for s in seconds])} ms"


def _bar(claim: str, value: float, bar: float, form: str) -> list[str]:
    return [claim, "< " + form.format(bar), form.format(value), "yes" if value < bar else "NO"]
