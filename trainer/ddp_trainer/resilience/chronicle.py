"""Node 0's memory of the run across its agents: attempts, restarts by cause, lost steps, productive time. Kept in `ledger.json`.

Other nodes keep the same numbers for themselves only, so that their `/metrics` speak; node 0's are the run's.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ddp_trainer.checkpoint.store import write_durably
from ddp_trainer.errors import DdpError
from ddp_trainer.resilience.verdict import Record
from ddp_trainer.telemetry.document import parse
from ddp_trainer.telemetry.node import PROGRESS_FILE
from ddp_trainer.telemetry.progress import Ledger

LEDGER_FILE = "ledger.json"
PRODUCTIVE_PHASES = frozenset({"training", "evaluating", "saving"})
NUMBERS = ("lost_steps", "productive_seconds", "wall_seconds", "reached_step", "standing_step", "durable_step")
"""What is kept besides the restarts and the judge's record."""
COUNTED_CAUSES = {"crash": "crash", "user_error": "crash", "hang": "hang", "preemption": "preemption"}
"""Under which restart counter a cause goes; any other is a lost peer."""


@dataclass
class Chronicle:
    """The agent's running account. `path` is None except on node 0."""

    run: str
    node: int
    world_size: int
    path: Path | None
    attempt: int = 0
    record: Record = field(default_factory=Record)
    restarts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("crash", "hang", "preemption", "peer_loss"), 0))
    lost_steps: int = 0
    productive_seconds: float = 0.0
    wall_seconds: float = 0.0
    reached_step: int = 0
    """The last step that a rank of this node was seen to have done."""
    standing_step: int = 0
    """The last step done whose loss would still have to be counted: a second fault before the first new step loses nothing more."""
    durable_step: int = 0
    running: bool = False
    phase: Any = None
    note: str = ""
    clock: Callable[[], float] = time.monotonic
    _last: float | None = None
    _step_seconds: float = 0.0

    def recall(self) -> bool:
        """Take over what earlier agents of this run counted; a missing or torn file is a fresh start.

        Returns:
            Whether the agent before this one was lost without an ending.
        """
        if self.path is None:
            return False
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            record = raw["record"]
            self.record = Record(**{**record, "last_error": tuple(record["last_error"])})
            self.restarts.update(raw["restarts"])
            for name in NUMBERS:
                setattr(self, name, raw[name])
            was_lost = bool(raw["running"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        with contextlib.suppress(OSError, DdpError):  # newer than the ledger, which is written at starts and faults only
            seen = parse(self.path.with_name(PROGRESS_FILE).read_bytes())
            self.reached_step = max(self.reached_step, seen.step)
            self.standing_step = max(self.standing_step, seen.step if seen.ranks else 0)
            self.durable_step = max(self.durable_step, seen.checkpoint.step if seen.checkpoint else 0)
        return was_lost

    def observe(self, lead: dict[str, Any] | None) -> None:
        """Account for the time since the last look, given the facts of this node's first rank."""
        now = self.clock()
        passed, self._last = now - (self._last if self._last is not None else now), now
        self.wall_seconds += passed
        if lead is None or lead.get("attempt") != self.attempt:
            return
        if lead.get("phase") in PRODUCTIVE_PHASES:
            self.productive_seconds += passed
        self.reached_step = max(self.reached_step, int(lead.get("step") or 0))
        self.standing_step = max(self.standing_step, int(lead.get("step") or 0))
        self._step_seconds = float(lead.get("step_seconds") or 0.0)
        saved = lead.get("checkpoint")
        if isinstance(saved, dict):
            self.durable_step = max(self.durable_step, int(saved.get("step") or 0))

    def restarted(self, cause: str) -> int:
        """Count a restart after a fault; returns the steps that have to be done again."""
        self.restarts[COUNTED_CAUSES.get(cause, "peer_loss")] += 1
        lost = max(0, self.standing_step - self.durable_step)
        self.standing_step = min(self.standing_step, self.durable_step)
        self.lost_steps += lost
        self.productive_seconds = max(0.0, self.productive_seconds - lost * self._step_seconds)
        return lost

    def save(self) -> None:
        """Make it durable, on node 0."""
        if self.path is not None:
            raw = {name: getattr(self, name) for name in ("restarts", *NUMBERS)} | {"record": asdict(self.record), "running": self.running}
            write_durably(self.path, json.dumps(raw).encode())

    def begin_attempt(self, attempt: int) -> None:
        """New ranks are about to start."""
        self.attempt = attempt
        self.phase, self.note = None, ""
        self.running = True
        self.save()

    def end(self) -> None:
        """This agent leaves in order."""
        self.running = False
        self.save()

    def ledger(self) -> Ledger:
        """As telemetry wants it."""
        return Ledger(
            run=self.run,
            attempt=self.attempt,
            world_size=self.world_size,
            node=self.node,
            restarts=dict(self.restarts),
            lost_steps=self.lost_steps,
            training_seconds=self.productive_seconds,
            wall_seconds=self.wall_seconds,
            phase=self.phase,
            note=self.note,
        )

    def forget_crashes(self) -> None:
        """A fresh container has a fresh budget of restarts; what must not be forgotten is whether there is progress."""
        self.record = replace(self.record, crashes=0)
