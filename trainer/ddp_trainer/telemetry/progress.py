"""Making the progress document from what the ranks said (facts), what the agent counted (ledger) and what the machine showed (readings).

Pure, and it never raises for odd facts: a user's own metric may be anything, and a document without it beats none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddp_trainer.telemetry.document import (
    MAX_AMOUNT,
    MAX_GPUS,
    MAX_RANKS,
    PHASES,
    Checkpoint,
    Gpu,
    Progress,
    ProgressPhase,
    Rank,
    Restarts,
    Storage,
    clean,
    parse,
)
from ddp_trainer.telemetry.fetch import fetch
from ddp_trainer.telemetry.hardware import Readings

__all__ = ["Ledger", "Progress", "compose", "fetch", "parse"]


@dataclass(frozen=True)
class Ledger:
    """What a node's agent counts and decides; the rest of the document comes from the ranks."""

    run: str
    attempt: int
    """The same number that the ranks' recorders were given; facts of a lower attempt are from ranks that are gone."""
    world_size: int
    node: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)
    """By cause: crash, hang, preemption, peer_loss."""
    lost_steps: int = 0
    training_seconds: float = 0.0
    wall_seconds: float = 0.0
    phase: ProgressPhase | None = None
    """The agent's word over the ranks': "starting" while it re-forms, "failed" when it gives up. None: as the ranks say."""
    note: str = ""
    """One line for people about that phase ("waiting for node 2")."""
    verify_failures: int = 0
    """Checkpoints that failed verification."""
    checkpoint: Mapping[str, Any] | None = None
    """The newest durable one, as the background writer says."""
    checkpoint_totals: Mapping[str, float] = field(default_factory=dict)
    """Of the writer: count, stall_seconds, persist_seconds."""
    recovery_seconds: Mapping[str, float] = field(default_factory=dict)
    """The last recovery, by phase of it (detect, form, load, first_step, ...)."""

    @property
    def goodput_ratio(self) -> float | None:
        """The part of the time in which new steps were made; None before there is any time."""
        return min(1.0, max(0.0, self.training_seconds / self.wall_seconds)) if self.wall_seconds > 0 else None


def compose(
    facts: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    previous: Progress | None,
    now: float,
    readings: Readings | None = None,
) -> Progress:
    """The document of this moment.

    While no rank of this attempt has spoken, the run is "starting", and what was known of it (step, loss, checkpoint) is kept from
    `previous`. The lowest rank speaks for the run.
    """
    living = sorted((f for f in facts if _count(f, "attempt") >= ledger.attempt), key=lambda f: _count(f, "rank"))
    lead = living[0] if living else {}
    phase: ProgressPhase = ledger.phase or (_phase(lead) if lead else "starting")
    known: dict[str, Any] = {}
    if previous is not None:
        kept = ("step", "total_steps", "epoch", "epochs", "loss", "accuracy", "test_loss", "test_accuracy", "lr", "checkpoint")
        known = {name: getattr(previous, name) for name in kept}
    if _count(lead, "total_steps"):  # before, a new rank does not know where the run is
        known |= {"step": _count(lead, "step"), "total_steps": _count(lead, "total_steps")}
        known |= {name: _amount(lead, name) or 0.0 for name in ("epoch", "epochs")}
    if lead:
        for name in ("loss", "accuracy", "test_loss", "test_accuracy", "lr"):
            value = _number(lead, name)
            known[name] = known.get(name) if value is None else value
    saved = _checkpoint(ledger.checkpoint)
    if saved and (known.get("checkpoint") is None or saved.saved_at > known["checkpoint"].saved_at):
        known["checkpoint"] = saved
    moving = bool(lead) and phase in {"training", "evaluating", "saving"}
    agent_speaks = bool(ledger.note) or not lead
    document = Progress(
        run=clean(ledger.run),
        node=ledger.node,
        attempt=ledger.attempt,
        phase=phase,
        note=clean(ledger.note if agent_speaks else lead.get("note", "")),
        note_done=0 if agent_speaks else _count(lead, "note_done"),
        note_total=0 if agent_speaks else _count(lead, "note_total"),
        samples_per_second=_amount(lead, "run_samples_per_second") if moving else None,
        eta_seconds=_amount(lead, "eta_seconds") if moving else None,
        updated_at=now,
        world_size=ledger.world_size,
        restarts=Restarts(**{name: max(0, int(ledger.restarts.get(name, 0))) for name in Restarts.model_fields}),
        lost_steps=max(0, ledger.lost_steps),
        goodput_ratio=None if ledger.goodput_ratio is None else round(ledger.goodput_ratio, 4),
        **_hardware(readings or Readings()),
        ranks=[_rank(fact, readings or Readings()) for fact in living[:MAX_RANKS]],
        **known,
    )
    return document.model_copy(update={"updated_at": _heard(document, previous, now)})


def _heard(document: Progress, previous: Progress | None, now: float) -> float:
    if previous is None or any(getattr(document, name) != getattr(previous, name) for name in ("phase", "attempt", "restarts", "note")):
        return now
    return max([previous.updated_at, *(min(rank.updated_at, now) for rank in document.ranks)])


def _rank(fact: Mapping[str, Any], readings: Readings) -> Rank:
    pid = _count(fact, "pid")
    process = readings.processes.get(pid)
    return Rank(
        rank=_count(fact, "rank"),
        phase=_phase(fact),
        step=_count(fact, "step"),
        samples_per_second=_amount(fact, "samples_per_second"),
        cpu_percent=process.cpu_percent if process else None,
        rss_bytes=process.rss_bytes if process else None,
        pid=pid,
        gpu=next((gpu.index for gpu in readings.gpus if gpu.uuid and gpu.uuid == fact.get("gpu_uuid")), None),
        updated_at=_amount(fact, "updated_at") or 0.0,
    )


def _hardware(readings: Readings) -> dict[str, Any]:
    gpus = [
        Gpu(
            index=gpu.index,
            name=clean(gpu.name),
            utilization_ratio=gpu.utilization_ratio,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_total_bytes=gpu.memory_total_bytes,
            temperature_celsius=gpu.temperature_celsius,
        )
        for gpu in readings.gpus[:MAX_GPUS]
    ]
    volume = readings.storage
    return {"gpus": gpus, "storage": None if volume is None else Storage(total_bytes=volume.total_bytes, free_bytes=volume.free_bytes)}


def _checkpoint(saved: Mapping[str, Any] | None) -> Checkpoint | None:
    if not isinstance(saved, Mapping):
        return None
    return Checkpoint(
        step=_count(saved, "step"),
        saved_at=_amount(saved, "saved_at") or 0.0,
        bytes=_count(saved, "bytes"),
        stall_seconds=_amount(saved, "stall_seconds") or 0.0,
        persist_seconds=_amount(saved, "persist_seconds") or 0.0,
        verified=saved.get("verified") is True,
    )


def _number(fact: Mapping[str, Any], name: str) -> float | None:
    value = fact.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e300:  # noqa: PLR2004
        return None
    return float(f"{value:.7g}") if abs(value) < 1e7 else float(value)  # noqa: PLR2004 (times stay exact, losses short)


def _amount(fact: Mapping[str, Any], name: str) -> float | None:
    value = _number(fact, name)
    return None if value is None else min(max(value, 0.0), MAX_AMOUNT)


def _count(fact: Mapping[str, Any], name: str) -> int:
    return int(_amount(fact, name) or 0.0)


def _phase(fact: Mapping[str, Any]) -> ProgressPhase:
    return next((phase for phase in PHASES if phase == fact.get("phase")), "starting")
