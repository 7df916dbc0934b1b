"""Prometheus text of one node: its own ranks, and on node 0 the run's ledger and checkpoints as well.

`METRICS` is the one table of names; docs and tests read it. Labels are bounded by the node's size: never a step, a pid or a pod.
GPU metrics are left to the DCGM exporter, which is already there on clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from ddp_trainer.telemetry.document import PHASES, Progress
from ddp_trainer.telemetry.pace import BUCKETS_SECONDS
from ddp_trainer.telemetry.progress import Ledger

Type = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True)
class Metric:
    """One metric; `scope` run: exported by node 0 only, so that sums over nodes are right."""

    name: str
    type: Type
    meaning: str
    labels: tuple[str, ...] = ()
    scope: Literal["rank", "node", "run"] = "run"


METRICS = (
    Metric("trainer_info", "gauge", "Always 1; says which run and node this is", ("run", "node"), "node"),
    Metric("trainer_step_seconds", "histogram", "Duration of optimizer steps", ("rank",), "rank"),
    Metric("trainer_samples_total", "counter", "Samples trained on since the rank's start", ("rank",), "rank"),
    Metric(
        "trainer_data_wait_seconds_total", "counter", "Time that the rank's host was busy with samples, since its start", ("rank",), "rank"
    ),
    Metric("trainer_samples_per_second", "gauge", "Smoothed speed of the rank", ("rank",), "rank"),
    Metric("trainer_beat_timestamp_seconds", "gauge", "When the rank was last heard", ("rank",), "rank"),
    Metric("trainer_phase", "gauge", "1 for the phase that the run is in, else 0", ("phase",)),
    Metric("trainer_step", "gauge", "Optimizer steps done"),
    Metric("trainer_total_steps", "gauge", "Optimizer steps of the whole run"),
    Metric("trainer_epoch", "gauge", "Passes over the training set done"),
    Metric("trainer_loss", "gauge", "Training loss over the last logged steps"),
    Metric("trainer_test_accuracy_ratio", "gauge", "Accuracy of the last evaluation"),
    Metric("trainer_world_size", "gauge", "Ranks of the run"),
    Metric("trainer_checkpoint_stall_seconds", "summary", "Time that training stood still for checkpoints, since the rank's start"),
    Metric("trainer_checkpoint_persist_seconds", "summary", "Time from snapshot to durable, since the rank's start"),
    Metric("trainer_snapshot_stall_seconds", "summary", "Time that training stood still for snapshots in memory, since the rank's start"),
    Metric("trainer_snapshot_last_step", "gauge", "Step of the newest snapshot in memory"),
    Metric("trainer_snapshot_every_steps", "gauge", "Steps from one snapshot in memory to the next; 0: only those that become durable"),
    Metric("trainer_checkpoint_last_durable_step", "gauge", "Step of the newest durable checkpoint"),
    Metric("trainer_checkpoint_last_durable_timestamp_seconds", "gauge", "When that checkpoint became durable"),
    Metric("trainer_checkpoint_last_durable_bytes", "gauge", "Size of that checkpoint"),
    Metric("trainer_checkpoint_verify_failures_total", "counter", "Checkpoints that failed verification and were set aside"),
    Metric("trainer_restarts_total", "counter", "Restarts of training", ("cause",)),
    Metric("trainer_lost_steps_total", "counter", "Steps that had to be done again after faults"),
    Metric("trainer_recovery_seconds", "gauge", "Duration of the last recovery, by part of it", ("phase",)),
    Metric("trainer_goodput_ratio", "gauge", "Part of the wall time in which new steps were made"),
)

Value = tuple[tuple[str, ...], Any]
"""Label values and the number (or, for histograms and summaries, what their family takes)."""


def render(facts: Sequence[Mapping[str, Any]], ledger: Ledger, progress: Progress | None) -> str:
    """The exposition text. Node 0 adds what is true of the run as a whole."""
    from prometheus_client import CollectorRegistry, generate_latest

    values = dict(_node_values(facts, ledger))
    if ledger.node == 0 and progress is not None:
        values |= _run_values(facts, ledger, progress)
    registry = CollectorRegistry()
    registry.register(_Collected([_family(metric, values[metric.name]) for metric in METRICS if values.get(metric.name)]))
    return generate_latest(registry).decode()


def _node_values(facts: Sequence[Mapping[str, Any]], ledger: Ledger) -> Iterator[tuple[str, list[Value]]]:
    by_age = sorted(facts, key=_time)
    ranked = [((rank,), fact) for rank, fact in {str(fact.get("rank", "?")): fact for fact in by_age}.items()]  # the newest of each rank
    yield "trainer_info", [((ledger.run, str(ledger.node)), 1)]
    yield "trainer_step_seconds", [(labels, fact["step_histogram"]) for labels, fact in ranked if _is_histogram(fact.get("step_histogram"))]
    for name, key in (
        ("trainer_samples_total", "samples_total"),
        ("trainer_data_wait_seconds_total", "data_seconds_total"),
        ("trainer_samples_per_second", "samples_per_second"),
        ("trainer_beat_timestamp_seconds", "updated_at"),
    ):
        yield name, [(labels, fact[key]) for labels, fact in ranked if isinstance(fact.get(key), int | float)]


def _run_values(facts: Sequence[Mapping[str, Any]], ledger: Ledger, progress: Progress) -> dict[str, list[Value]]:
    saved = progress.checkpoint
    lead = min(facts, key=lambda fact: fact.get("rank", 0), default={})
    totals = ledger.checkpoint_totals
    saves = totals.get("count", 0.0)
    single = {
        "trainer_step": progress.step,
        "trainer_total_steps": progress.total_steps,
        "trainer_epoch": progress.epoch,
        "trainer_loss": progress.loss,
        "trainer_test_accuracy_ratio": progress.test_accuracy,
        "trainer_world_size": progress.world_size,
        "trainer_checkpoint_stall_seconds": (saves, totals.get("stall_seconds", 0.0)),
        "trainer_checkpoint_persist_seconds": (saves, totals.get("persist_seconds", 0.0)),
        "trainer_snapshot_stall_seconds": (lead.get("snapshot_count_total", 0), lead.get("snapshot_stall_seconds_total", 0.0)),
        "trainer_snapshot_last_step": lead.get("snapshot_step"),
        "trainer_snapshot_every_steps": lead.get("snapshot_every_steps"),
        "trainer_checkpoint_last_durable_step": saved and saved.step,
        "trainer_checkpoint_last_durable_timestamp_seconds": saved and saved.saved_at,
        "trainer_checkpoint_last_durable_bytes": saved and saved.bytes,
        "trainer_checkpoint_verify_failures_total": ledger.verify_failures,
        "trainer_lost_steps_total": ledger.lost_steps,
        "trainer_goodput_ratio": ledger.goodput_ratio,
    }
    values: dict[str, list[Value]] = {name: [((), value)] for name, value in single.items() if value is not None}
    values["trainer_phase"] = [((phase,), int(phase == progress.phase)) for phase in PHASES]
    values["trainer_restarts_total"] = [((cause,), count) for cause, count in progress.restarts.model_dump().items()]
    values["trainer_recovery_seconds"] = [((part,), seconds) for part, seconds in ledger.recovery_seconds.items()]
    return values


def _time(fact: Mapping[str, Any]) -> float:
    beat = fact.get("updated_at")
    return beat if isinstance(beat, int | float) else 0.0


def _is_histogram(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value.get("counts", ())) == len(BUCKETS_SECONDS) + 1


def _family(metric: Metric, values: list[Value]) -> Any:
    from prometheus_client import core

    if metric.type == "histogram":
        histogram = core.HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        bounds = [*(repr(bound) for bound in BUCKETS_SECONDS), "+Inf"]
        for labels, value in values:
            histogram.add_metric(labels, list(zip(bounds, accumulate(value["counts"]), strict=True)), value["sum"])
        return histogram
    if metric.type == "summary":
        summary = core.SummaryMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for labels, (count, total) in values:
            summary.add_metric(labels, count, total)
        return summary
    plain = (core.CounterMetricFamily if metric.type == "counter" else core.GaugeMetricFamily)(
        metric.name, metric.meaning, labels=metric.labels
    )
    for labels, value in values:
        plain.add_metric(labels, value)
    return plain


class _Collected:
    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        return self._families
