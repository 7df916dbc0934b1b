"""The run as a story: how it ended, what it reached, which faults it met, what each cost, and where its time went.

Pure: raw inputs in, one frozen `Run` out; page and charts only show what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from ddp_trainer.report.inputs import Inputs, Record
from ddp_trainer.report.model import (
    Checkpoint,
    Evaluated,
    Evaluation,
    Event,
    Train,
    checkpoints,
    eval_points,
    evaluation,
    event_list,
    train_points,
)
from ddp_trainer.telemetry.goodput import Goodput, summary
from ddp_trainer.telemetry.incidents import REJOIN, Incident
from ddp_trainer.telemetry.run_clock import RunClock, text, whole

LASTING = frozenset({"checkpoint", "resume", "finish"})
"""Events whose step no later fault has taken back."""
INTENDED_EXITS = frozenset({0, 130, 143})
"""Finished, Ctrl-C and preemption: somebody wanted the stop."""


@dataclass(frozen=True)
class Outcome:
    """How the run ended; `word` is also the page's colour class."""

    word: Literal["finished", "stopped", "failed", "unfinished"]
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """Everything the report says, besides the configuration."""

    name: str
    outcome: Outcome
    started_at: float | None
    """Seconds since 1970."""
    wall_seconds: float
    """Run time, pauses between two invocations not counted."""
    train: list[Train]
    evals: list[Evaluated]
    checkpoints: list[Checkpoint]
    goodput: Goodput
    events: list[Event]
    evaluation: Evaluation | None
    last_step: int | None
    total_steps: int | None
    lost_steps: int | None
    restarts: dict[str, int]
    samples_per_second: float | None
    """Median over the training lines."""
    world_size: int | None
    nodes: int | None
    environment: dict[str, str]
    """What is known of the machine: label -> value."""

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """What struck it, in order."""
        return self.goodput.incidents

    @property
    def is_classification(self) -> bool:
        """Whether an evaluation counted hits, or there was none that could."""
        return not self.evals or any(p.accuracy is not None for p in self.evals)

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy of the last evaluation, a ratio."""
        return next((p.accuracy for p in reversed(self.evals) if p.accuracy is not None), None)

    @property
    def best_accuracy(self) -> float | None:
        """The best test accuracy seen."""
        return max((p.accuracy for p in self.evals if p.accuracy is not None), default=None)


def tell(inputs: Inputs) -> Run:
    """Derive everything the page shows from what the run wrote."""
    clock, account = RunClock(inputs.events, inputs.metrics), summary(inputs.events, inputs.metrics)
    records = [record for _, record in clock.moments]
    train, evals = train_points(inputs.metrics, clock), eval_points(inputs.metrics, clock)
    events, progress, incidents = event_list(clock.moments), inputs.progress or {}, account.incidents
    restarts = {name: n for name, count in _mapping(progress.get("restarts")).items() if (n := whole(count))}
    lost = [i.lost_steps for i in incidents if i.lost_steps is not None]
    speeds = [p.samples_per_second for p in train if p.samples_per_second]
    world_size, nodes = _world(inputs, records)
    steps = [*(p.step for p in train), *(p.step for p in evals), *(e.step for e in events if e.step is not None and e.kind in LASTING)]
    return Run(
        name=text(_mapping(_mapping(inputs.config).get("run")).get("name")) or text(progress.get("run")) or inputs.name,
        outcome=find_outcome(records, incidents, progress),
        started_at=clock.origin or None,
        wall_seconds=clock.end_seconds,
        train=train,
        evals=evals,
        checkpoints=checkpoints(clock.moments),
        goodput=account,
        events=events,
        evaluation=evaluation(inputs.evaluation),
        last_step=max(steps, default=whole(progress.get("step"))),
        total_steps=whole(progress.get("total_steps")),
        lost_steps=sum(lost) if lost else (whole(progress.get("lost_steps")) if incidents or inputs.progress else None),
        restarts=restarts or _count_causes(incidents),
        samples_per_second=median(speeds) if speeds else None,
        world_size=world_size,
        nodes=nodes,
        environment=_environment(inputs),
    )


def find_outcome(records: Sequence[Mapping[str, Any]], incidents: Sequence[Incident], progress: Record) -> Outcome:
    """How it ended, from the last event that says so, else from progress.json."""
    last: Mapping[str, Any] = next((r for r in reversed(records) if r.get("kind") in {"start", "stop", "finish"}), {})
    if last.get("kind") == "finish" or (not records and progress.get("phase") == "finished"):
        return Outcome("finished")
    if last.get("kind") == "stop":
        reason = text(last.get("message")) or (text(last.get("cause")) or "").replace("_", " ")
        code = whole(last.get("exit"))
        return Outcome("stopped" if code is None or code in INTENDED_EXITS else "failed", reason)
    if progress.get("phase") == "failed" or (incidents and incidents[-1].recovery_seconds is None):
        reason = f"{incidents[-1].cause.replace('_', ' ')}: {incidents[-1].message}" if incidents else ""
        return Outcome("failed", reason)
    return Outcome("unfinished", "no end of the run was recorded: it still runs, or it was killed")


def _world(inputs: Inputs, records: Sequence[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """World size and nodes: as formed, else as reported, else as configured."""
    formed = [size for r in records if r.get("kind") == "form" and (size := whole(r.get("world_size")))]
    started = [nodes for r in records if r.get("kind") == "start" and (nodes := whole(r.get("nodes")))]
    distributed = _mapping(_mapping(inputs.config).get("distributed"))
    nodes = started[-1] if started else whole(distributed.get("nodes"))
    procs = whole(distributed.get("procs_per_node"))
    reported = whole((inputs.progress or {}).get("world_size"))
    return (formed[-1] if formed else reported or (nodes * procs if nodes and procs else None)), nodes


def _environment(inputs: Inputs) -> dict[str, str]:
    found: dict[str, str] = {}
    gpus = (inputs.progress or {}).get("gpus")
    if isinstance(gpus, list):
        names = [text(_mapping(gpu).get("name")) or "GPU" for gpu in gpus]
        found["device"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "CPU"
    manifest = inputs.manifest or {}
    for key in ("versions", "libraries", "library_versions"):
        found |= {str(name): str(version) for name, version in _mapping(manifest.get(key)).items()}
    return found


def _count_causes(incidents: Sequence[Incident]) -> dict[str, int]:
    causes = [i.cause for i in incidents if i.recovery_seconds is not None and i.cause != REJOIN]
    return {cause: causes.count(cause) for cause in dict.fromkeys(causes)}


def _mapping(value: object) -> Record:
    return value if isinstance(value, dict) else {}
