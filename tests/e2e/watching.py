"""What is watched of a run while a case is at work: its progress and events, read beside the claim, and how each of its pods ended."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

AGAIN_SECONDS = 0.5
"""Between the end of a watch and its next start."""


class Watcher:
    """A command whose lines are taken until `stop`. It is started again whenever it ends: servers cut watches, and pods go."""

    def __init__(self, command: list[str], take: Callable[[str], None]) -> None:
        self.trouble = ""
        """The last words on its error output, or the last line that could not be taken."""
        self._command = command
        self._take = take
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; waits at most some seconds."""
        self._stopped.set()
        if self._process:
            self._process.kill()
        self._thread.join(5)

    def _pump(self) -> None:
        while not self._stopped.is_set():
            try:
                self._once()
            except OSError as error:
                self.trouble = str(error)
            self._stopped.wait(AGAIN_SECONDS)

    def _once(self) -> None:
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            self._process = process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
            if self._stopped.is_set():  # `stop` may have come before there was something to kill
                process.kill()
            assert process.stdout
            for line in process.stdout:
                try:
                    self._take(line)
                except (ValueError, TypeError, KeyError, IndexError) as error:
                    self.trouble = f"{type(error).__name__}: {error}, in {line[:200]!r}"
            process.wait()
            errors.seek(0)
            self.trouble = errors.read().strip()[-300:] or self.trouble


@dataclass(frozen=True)
class Seen:
    """One look at progress.json."""

    time: float
    attempt: int
    step: int
    phase: str
    world_size: int
    durable: int


@dataclass(frozen=True)
class Exit:
    """How a pod's container ended; `time` is the kubelet's, in whole seconds, and `heard` is when it was known here."""

    time: float
    heard: float
    pod: str
    code: int
    message: str

    @property
    def place(self) -> str:
        """The pod's name without its job's: `worker-1`."""
        return place_of(self.pod)


def place_of(pod: str) -> str:
    """`ddp-demo-1a2b3c4d-worker-1` -> `worker-1`."""
    return "-".join(pod.split("-")[-2:])


@dataclass
class Fault:
    """Something that a case did to a run, and the time in which pods may have ended by it."""

    name: str
    target: str
    """The place that was hit; empty where all pods are meant."""
    started: float
    places: tuple[str, ...]
    ended: float = math.inf

    def codes(self, exits: dict[str, Exit]) -> dict[str, list[int]]:
        """Exit codes by place, none for a pod that went on. Times are whole seconds, so each fault begins with its second."""
        end = self.ended if math.isinf(self.ended) else math.floor(self.ended)
        found: dict[str, list[int]] = {place: [] for place in self.places}
        for end_of_pod in sorted(exits.values(), key=lambda e: e.time):
            if math.floor(self.started) <= end_of_pod.time < end:
                found.setdefault(end_of_pod.place, []).append(end_of_pod.code)
        return found

    def words(self, exits: dict[str, Exit]) -> str:
        """`worker-1: 143`, of those that ended."""
        return ", ".join(f"{place}: {said(codes)}" for place, codes in self.codes(exits).items() if codes) or "none"


def said(codes: list[int]) -> str:
    """`143`, `143+160`, or `-` for a pod that went on."""
    return "+".join(map(str, codes)) or "-"


@dataclass
class Diary:
    """What was seen of one run, in order; filled by watchers' threads."""

    seen: list[Seen] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    exits: dict[str, Exit] = field(default_factory=dict)
    """By the pod's uid."""
    _known: set[str] = field(default_factory=set)

    def of(self, kind: str, after: float = 0.0) -> list[dict[str, Any]]:
        """Events of a kind, later than a time."""
        return [event for event in list(self.events) if event.get("kind") == kind and event.get("time", 0.0) > after]

    def take(self, line: str) -> None:
        """A line of the reader. Events come again from the first one on when the reader is started again."""
        found = json.loads(line)
        if "seen" in found:
            self.seen.append(Seen(*found["seen"]))
        elif line not in self._known:
            self._known.add(line)
            self.events.append(found["event"])

    def take_exit(self, line: str) -> None:
        """`name uid finishedAt exitCode message`, of a pod that may have ended. A message may have more lines: those are skipped."""
        words = line.rstrip("\n").split(" ", 4)
        if len(words) < 4 or not words[3].isdigit() or words[1] in self.exits:
            return
        now = time.time()
        finished = datetime.fromisoformat(words[2]).timestamp() if words[2] else now
        self.exits[words[1]] = Exit(finished, now, words[0], int(words[3]), words[4] if len(words) > 4 else "")


EXIT_FIELDS = "{.metadata.name} {.metadata.uid}" + "".join(
    f' {{.status.containerStatuses[?(@.name=="pytorch")].state.terminated.{name}}}' for name in ("finishedAt", "exitCode", "message")
)
"""The line that `take_exit` reads, as kubectl's jsonpath."""
