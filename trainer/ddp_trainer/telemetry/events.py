"""The run's diary: `events.jsonl`, one line for each thing that happened to the run, and `metrics.jsonl`, its curves.

`KINDS` is the one table of what may be recorded; docs, report and tests read it. Writers are node 0's rank 0, its agent and `ddp local`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ddp_trainer.telemetry.jsonl import JsonLines, read_lines

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "metrics.jsonl"

EventKind = Literal[
    "start",
    "form",
    "resume",
    "first_step",
    "checkpoint",
    "evaluate",
    "fault",
    "lost",
    "stacks",
    "restart",
    "stop",
    "finish",
    "quarantine",
    "note",
]


@dataclass(frozen=True)
class Kind:
    """One kind of event: what it says, and the fields that it carries beside `time`, `at` and `kind`."""

    name: EventKind
    meaning: str
    fields: tuple[str, ...] = ()


KINDS = (
    Kind("start", "the run was started, or started again, by a launcher", ("attempt", "nodes", "procs_per_node")),
    Kind("form", "all nodes met and a generation of ranks was formed", ("attempt", "generation", "world_size")),
    Kind(
        "resume",
        "training goes on from a saved state, or again from the beginning (step 0)",
        ("step", "source", "lost_steps", "attempt"),
    ),
    Kind("first_step", "the first optimizer step after a start of the ranks is done", ("step", "attempt")),
    Kind(
        "checkpoint",
        "a state became durable",
        ("step", "bytes", "stall_seconds", "stall_seconds_so_far", "persist_seconds", "verified", "attempt"),
    ),
    Kind("evaluate", "the test set was evaluated", ("step", "metrics", "seconds", "attempt")),
    Kind(
        "fault",
        "a rank, an agent or a node was lost, or misbehaved",
        ("cause", "rank", "node", "exit", "step", "message", "window", "still_seconds", "struck_at"),
    ),
    Kind(
        "lost",
        "which node that fault was about, where it could only say who suffered from it: it was replaced, or has not come back",
        ("node", "message"),
    ),
    Kind("stacks", "what the ranks of a node were doing when they stood still", ("stacks",)),
    Kind("restart", "ranks or an agent are being started again after a fault", ("cause", "node", "attempt")),
    Kind("stop", "the run was stopped before its end", ("cause", "exit", "step", "message")),
    Kind("finish", "the run reached its last step", ("step", "metrics", "seconds", "stall_seconds_so_far", "attempt")),
    Kind("quarantine", "a checkpoint failed verification and was set aside", ("step", "path", "message")),
    Kind("note", "something worth reading, for people", ("message",)),
)


class EventLog:
    """Appends events; one object per process, any number of processes per file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._lines = JsonLines(path)
        self._clock = clock

    @property
    def path(self) -> Path:
        """The file."""
        return self._lines.path

    def append(self, kind: EventKind, **fields: Any) -> None:
        """Record an event now. Never raises for a full or missing disk: that is warned of once."""
        now = self._clock()
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        self._lines.append({"time": round(now, 3), "at": at, "kind": kind, **fields})

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        self._lines.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in order; a torn line (a writer died, the disk was full) is skipped; no file is no events."""
    return [record for record in read_lines(path) if "kind" in record and "time" in record]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The curves as the final state lived them: kinds "train" and "eval", by rising step within each.

    Work that a fault undid is dropped: lines after the step at which a later attempt resumed, and late lines of an earlier attempt.
    """
    kept: list[dict[str, Any]] = []
    newest_attempt = -1
    for line in read_lines(path):
        step, attempt, kind = line.get("step"), line.get("attempt", 0), line.get("kind")
        if not isinstance(step, int) or not isinstance(attempt, int) or attempt < newest_attempt:
            continue
        newest_attempt = attempt
        # A resume at step s keeps step s; a measurement of step s replaces an older one of the same kind, and everything after it.
        kept = [old for old in kept if old["step"] < step or (old["step"] == step and old["kind"] != kind)]
        if kind in {"train", "eval"}:
            kept.append(line)
    return kept
