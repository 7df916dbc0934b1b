"""Node 0's memory of the run across its agents: attempts, restarts by cause, lost steps, productive time. Kept in `ledger.json`.

Other nodes keep the same numbers for themselves only, so that their `/metrics` speak; node 0's are the run's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from ddp_trainer.checkpoint.durable import write_durably
from ddp_trainer.checkpoint.loading import count_quarantined, steps_in
from ddp_trainer.errors import FINISHED, PREEMPTED, DdpError, Exit
from ddp_trainer.resilience.fault import REJOIN
from ddp_trainer.resilience.verdict import Record
from ddp_trainer.telemetry.document import parse
from ddp_trainer.telemetry.node import PROGRESS_FILE
from ddp_trainer.telemetry.progress import Ledger

_log = logging.getLogger(__name__)

LEDGER_FILE = "ledger.json"
PRODUCTIVE_PHASES = frozenset({"training", "evaluating", "saving"})
COUNTED_CAUSES = {
    **dict.fromkeys(("crash", "user_error", "config_error", "data_error"), "crash"),
    "hang": "hang",
    "preemption": "preemption",
}
"""Under which restart counter a cause goes; any other is a lost peer."""


class _Kept(BaseModel):
    """What of a `Chronicle` stands in `ledger.json`; a file that holds anything else is torn."""

    model_config = ConfigDict(allow_inf_nan=False)
    record: Record
    restarts: dict[Literal["crash", "hang", "preemption", "peer_loss"], NonNegativeInt]
    lost_steps: NonNegativeInt
    productive_seconds: NonNegativeFloat
    wall_seconds: NonNegativeFloat
    reached_step: NonNegativeInt
    standing_step: NonNegativeInt
    durable_step: NonNegativeInt
    skipped: list[tuple[int, int]]
    interrupted_by: str | None
    begun_with: str = ""


@dataclass
class Chronicle:
    """The agent's running account. `path` is None except on node 0; `resume` is the `run.resume` of this start."""

    run: str
    node: int
    world_size: int
    path: Path | None
    resume: str = "auto"
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
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Windows of 0-based steps that are passed over after a divergence: (first, one after the last)."""
    interrupted_by: str | None = None
    """What a successor has to count: nothing after an orderly end, a preemption, or the loss of an agent that left no word."""
    begun_with: str = ""
    """The `resume` with which ranks trained here last; empty when the run has ended for good since."""
    phase: Any = None
    note: str = ""
    recovery_seconds: dict[str, float] = field(default_factory=dict)
    """Of the last restart that this agent saw: until all nodes had met, from there until the state was found, and to the first step."""
    verify_failures: int = 0
    clock: Callable[[], float] = time.monotonic
    report: dict[str, Any] = field(default_factory=dict)
    """What the background writer said last."""
    _is_uncounted: bool = False
    """A restart whose lost steps are not known before the ranks say where they go on."""
    _is_between: bool = False
    """After a fault and before new ranks: what the page says is the dead ones' word."""
    _resumed_at: float | None = None
    _fault_at: float | None = None
    _formed_at: float | None = None
    _last: float | None = None
    _step_seconds: float = 0.0

    def recall(self) -> str | None:
        """Take over what earlier agents of this run counted; a missing or torn file is a fresh start.

        Returns:
            What ended the agent before this one, if that has to be counted as a restart.
        """
        if self.path is None:
            return None
        try:
            # not by pydantic's own parser, which refuses half a character: a file name in an error's words may hold one
            kept = _Kept.model_validate(json.loads(self.path.read_bytes()))
        except (OSError, ValueError, RecursionError):
            return None
        for name in _Kept.model_fields:
            setattr(self, name, getattr(kept, name))
        self.restarts = dict.fromkeys(("crash", "hang", "preemption", "peer_loss"), 0) | kept.restarts
        with contextlib.suppress(OSError, DdpError):  # newer than the ledger, which is written at starts and faults only
            seen = parse(self.path.with_name(PROGRESS_FILE).read_bytes())
            self.reached_step = max(self.reached_step, seen.step)
            has_trained = seen.ranks and seen.phase != "starting"  # before, the page has the step of those before
            self.standing_step = max(self.standing_step, seen.step if has_trained else 0)
        self.look_at_disk()
        return kept.interrupted_by

    @property
    def goes_on(self) -> bool:
        """Whether this start goes on with a run that was begun with the same `resume` and interrupted: what lies on disk is its own."""
        return self.begun_with == self.resume

    def observe(self, lead: dict[str, Any] | None, report: dict[str, Any]) -> None:
        """Account for the time since the last look, given the facts of this node's first rank, and the background writer's report."""
        now = self.clock()
        passed, self._last = now - (self._last if self._last is not None else now), now
        self.wall_seconds += passed
        before, saved = self.report.get("checkpoint"), report.get("checkpoint")
        self.report = report
        if isinstance(saved, dict) and saved != before:  # said again it is no news, and may have been set aside since
            self.durable_step = max(self.durable_step, int(saved.get("step") or 0))
        if lead is None or self._is_between or lead.get("attempt") != self.attempt:
            return
        if self._is_uncounted and lead.get("resumed_step") is not None:
            self._count_lost(int(lead["resumed_step"]), now)
        elif self._is_uncounted and lead.get("phase") in PRODUCTIVE_PHASES:
            self._count_lost(0, now)
        if lead.get("phase") in PRODUCTIVE_PHASES:
            self.productive_seconds += passed
            self._recovered(now)
        self.reached_step = max(self.reached_step, int(lead.get("step") or 0))
        if not self._is_uncounted:
            self.standing_step = max(self.standing_step, int(lead.get("step") or 0))
        self._step_seconds = float(lead.get("step_seconds") or 0.0) or self._step_seconds

    def _count_lost(self, resumed_step: int, now: float) -> None:
        lost = max(0, self.standing_step - resumed_step)
        self.standing_step = min(self.standing_step, resumed_step)
        self.lost_steps += lost
        self.productive_seconds = max(0.0, self.productive_seconds - lost * self._step_seconds)
        self._is_uncounted, self._resumed_at = False, now
        self.save()

    def _recovered(self, now: float) -> None:
        """The first look at ranks that train: how long that took, and what is left on disk after what had to be set aside for it."""
        if self._formed_at is None:
            return
        if self._fault_at is not None:
            found = self._resumed_at or self._formed_at
            self.recovery_seconds = {"form": self._formed_at - self._fault_at, "load": found - self._formed_at, "first_step": now - found}
        self.look_at_disk()
        self._formed_at = self._fault_at = self._resumed_at = None
        if not self.goes_on:
            self.begun_with = self.resume
            self.save()

    def look_at_disk(self) -> None:
        """Checkpoints may be gone since they were counted: from what is left, the next one is progress. A failed look changes nothing."""
        if self.path is None:
            return
        checkpoints = self.path.parent / "checkpoints"
        with contextlib.suppress(OSError):
            self.durable_step = max(steps_in(checkpoints), default=0)
            self.record = replace(self.record, durable_step=min(self.record.durable_step, self.durable_step))
            self.verify_failures = count_quarantined(checkpoints)

    def restarted(self, cause: str, still_seconds: float = 0.0) -> None:
        """Count a restart after a fault; what it cost is known when the ranks say where they go on.

        `still_seconds`: how long nothing had moved before it was noticed.
        """
        if cause != REJOIN:
            self.restarts[COUNTED_CAUSES.get(cause, "peer_loss")] += 1
        self._fault_at = self.clock()
        self.productive_seconds = max(0.0, self.productive_seconds - still_seconds)
        self._is_uncounted = self._is_between = True

    def save(self) -> None:
        """Make it durable, on node 0; what cannot be written now is written with the next change."""
        if self.path is None:
            return
        raw = {name: getattr(self, name) for name in _Kept.model_fields} | {"record": asdict(self.record)}
        try:
            write_durably(self.path, json.dumps(raw).encode())
        except OSError as error:  # a full disk must not end a run that can still train
            _log.warning("%s cannot be written: %s", self.path, error.strerror)

    def begin_attempt(self, attempt: int) -> None:
        """New ranks are about to start."""
        self.attempt = attempt
        self._is_between = False
        self._formed_at = self.clock()
        self.phase, self.note = None, ""
        self.interrupted_by = "peer_loss"  # unless the agent says otherwise, which it cannot if it is killed
        self.save()

    def end(self, leaves_with: Exit = FINISHED) -> None:
        """This agent leaves in order."""
        self.interrupted_by = PREEMPTED.cause if leaves_with is PREEMPTED else None
        if not leaves_with.retried:
            self.begun_with = ""
            self.record = Record()  # whoever starts it again has mended something
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
            recovery_seconds=dict(self.recovery_seconds),
            checkpoint=self.report.get("checkpoint"),
            checkpoint_totals={name: float(self.report.get(name, 0)) for name in ("count", "stall_seconds", "persist_seconds")},
            verify_failures=self.verify_failures,
        )

    def forget_crashes(self) -> None:
        """A fresh container has a fresh budget of restarts; what must not be forgotten is whether there is progress."""
        self.record = replace(self.record, crashes=0, hangs=0)
