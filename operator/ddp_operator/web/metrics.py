"""Prometheus metrics, computed from the state of now at every scrape: nothing is kept up to date by hand, so nothing goes stale.

Labels are bounded: names of runs and claims (at most `RUNS_WITH_SERIES` runs), and words of closed lists. Texts of users never
become labels. Counters go as far back as the status of the run does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ddp_operator.api.trainingrun import LedgerEntry
from ddp_operator.api.words import FINAL_PHASES, Phase
from ddp_operator.decide.facts import ClaimFacts, RunFacts
from ddp_operator.web.texts import seconds_of

RUNS_WITH_SERIES = 2000
"""About ten series each; more runs than that are counted by phase only, and `ddp_operator_runs_without_series` says how many."""
SETTLED_SECONDS = 120.0
"""The cause of a younger incident may still be corrected, and a counter must never go down."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the process knows of itself. Times in seconds, counts since its start."""

    is_leader: bool = False
    status_lag_seconds: float = 0.0
    """From a change in the cluster to the status that shows it: the longest of those that wait now."""
    api_requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(verb, code) to count; code "0": no answer."""
    watcher_silent_seconds: Mapping[str, float] = field(default_factory=dict)
    """Each watcher and how long ago it last gave a sign of life."""
    status_writes: int = 0
    status_conflicts: int = 0
    status_pruned: int = 0
    reconcile_errors: int = 0
    actions: Mapping[str, int] = field(default_factory=dict)
    """By name: SuspendJob, ResumeJob, DeletePod."""
    events: Mapping[str, int] = field(default_factory=dict)
    """By what became of them: posted, held_back (repetitions), lost."""


class IncidentCounts:
    """Incidents by cause, for each run. The ledger forgets its oldest entries; a counter must not, so they are kept here."""

    def __init__(self) -> None:
        self._last: dict[str, dict[float, str]] = {}
        self._forgotten: dict[str, Counter[str]] = {}

    def of(self, runs: Iterable[RunFacts], now: float) -> dict[str, Counter[str]]:
        """By uid of the run. Runs that are not given are forgotten."""
        last, forgotten, counts = {}, {}, {}
        for run in runs:
            settled = {seconds_of(entry.at): str(entry.cause) for entry in run.status.ledger if _is_settled(run, entry, now)}
            oldest = min(settled, default=None)
            gone = forgotten[run.uid] = self._forgotten.get(run.uid, Counter())
            gone.update(cause for at, cause in self._last.get(run.uid, {}).items() if at not in settled and (oldest is None or at < oldest))
            last[run.uid] = settled
            counts[run.uid] = Counter(settled.values()) + gone
        self._last, self._forgotten = last, forgotten
        return counts


def _is_settled(run: RunFacts, entry: LedgerEntry, now: float) -> bool:
    is_old = now - seconds_of(entry.at) > SETTLED_SECONDS
    return entry.recovered_at is not None or run.status.phase in FINAL_PHASES or is_old


class Metrics:
    """The text for Prometheus."""

    def __init__(self) -> None:
        self._incidents = IncidentCounts()
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def text(self, runs: Sequence[RunFacts], numbers: Numbers, now: float, orphans: Sequence[tuple[str, ClaimFacts]] = ()) -> bytes:
        """All of it, in the text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        shown = list(islice(runs, RUNS_WITH_SERIES))
        registry.register(
            _Families([*_operator(numbers), *_orphans(orphans), *_runs(runs, len(shown)), *_each(shown, self._incidents.of(shown, now))])
        )
        return generate_latest(registry) + generate_latest(self._process)


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _operator(numbers: Numbers) -> Iterable[Metric]:
    requests = CounterMetricFamily("ddp_operator_api_requests", "Requests to the API server by verb and answer.", labels=["verb", "code"])
    for (verb, code), count in sorted(numbers.api_requests.items()):
        requests.add_metric([verb, str(code)], count)
    silent = GaugeMetricFamily(
        "ddp_operator_watcher_silent_seconds", "How long ago a watcher last gave a sign of life.", labels=["watcher"]
    )
    for watcher, seconds in sorted(numbers.watcher_silent_seconds.items()):
        silent.add_metric([watcher], seconds)
    actions = CounterMetricFamily("ddp_operator_actions", "What was done to jobs and pods.", labels=["action"])
    for action, count in sorted(numbers.actions.items()):
        actions.add_metric([action], count)
    events = CounterMetricFamily("ddp_operator_events", "Events: posted, held back as repetitions, or lost.", labels=["result"])
    for result, count in sorted(numbers.events.items()):
        events.add_metric([result], count)
    yield GaugeMetricFamily("ddp_operator_is_leader", "Whether this process acts: 1 or 0.", value=float(numbers.is_leader))
    yield GaugeMetricFamily(
        "ddp_operator_status_lag_seconds", "How long the oldest change waits to be shown.", value=numbers.status_lag_seconds
    )
    yield CounterMetricFamily("ddp_operator_status_writes", "Statuses written.", value=numbers.status_writes)
    yield CounterMetricFamily("ddp_operator_status_conflicts", "Statuses that another writer had changed.", value=numbers.status_conflicts)
    yield CounterMetricFamily(
        "ddp_operator_status_pruned", "Statuses of which the server has not kept all: its CRD is old.", value=numbers.status_pruned
    )
    yield CounterMetricFamily("ddp_operator_reconcile_errors", "Runs whose round ended in an error.", value=numbers.reconcile_errors)
    yield from (requests, silent, actions, events)


def _orphans(claims: Sequence[tuple[str, ClaimFacts]]) -> Iterable[Metric]:
    yield GaugeMetricFamily("ddp_operator_orphaned_claims", "Claims made for runs that are gone.", value=len(claims))
    size = sum(claim.capacity_bytes or claim.requested_bytes for _, claim in claims)
    yield GaugeMetricFamily("ddp_operator_orphaned_claims_bytes", "What they hold on to.", value=size)


def _runs(runs: Sequence[RunFacts], shown: int) -> Iterable[Metric]:
    phases = GaugeMetricFamily("ddp_operator_runs", "TrainingRuns by phase.", labels=["phase"])
    counts = Counter(run.status.phase for run in runs)
    for phase in Phase:
        phases.add_metric([phase], counts[phase])
    yield phases
    yield GaugeMetricFamily(
        "ddp_operator_runs_without_series", f"Runs beyond the first {RUNS_WITH_SERIES}, which have no series.", value=len(runs) - shown
    )


def _each(runs: Sequence[RunFacts], incidents: Mapping[str, Counter[str]]) -> Iterable[Metric]:
    labels = ["namespace", "run"]
    progress = GaugeMetricFamily("ddp_run_progress_ratio", "Steps made of all steps, 0 to 1.", labels=labels)
    durable = GaugeMetricFamily("ddp_run_last_durable_step_timestamp_seconds", "When the newest durable step was saved.", labels=labels)
    step = GaugeMetricFamily("ddp_run_last_durable_step", "The newest durable step.", labels=labels)
    goodput = GaugeMetricFamily("ddp_run_goodput_ratio", "Time that went into steps that were kept, 0 to 1.", labels=labels)
    lost = CounterMetricFamily("ddp_run_lost_steps", "Steps made and lost again.", labels=labels)
    restarts = CounterMetricFamily("ddp_run_restarts", "Incidents that cost pods, by root cause.", labels=[*labels, "cause"])
    in_process = CounterMetricFamily("ddp_run_in_process_restarts", "Restarts of ranks by the trainer, no pod lost.", labels=labels)
    claims = GaugeMetricFamily(
        "ddp_claim_used_ratio", "Used part of the volume that a claim lies on, 0 to 1.", labels=["namespace", "claim"]
    )
    used: dict[tuple[str, str], float] = {}
    for run in runs:
        names, status = [run.namespace, run.name], run.status
        if status.progress is not None and status.progress.total_steps:
            progress.add_metric(names, min(1.0, status.progress.step / status.progress.total_steps))
        if status.checkpoint is not None:
            durable.add_metric(names, seconds_of(status.checkpoint.saved_at))
            step.add_metric(names, status.checkpoint.step)
        if (ratio := as_ratio(status.timing.goodput_ratio)) is not None:
            goodput.add_metric(names, ratio)
        lost.add_metric(names, status.timing.lost_steps)
        in_process.add_metric(names, status.restarts.in_process)
        for cause, count in sorted(incidents.get(run.uid, Counter()).items()):
            restarts.add_metric([*names, cause], count)
        for claim in status.claims:
            if claim.used_percent is not None:
                used[run.namespace, claim.name] = _used(claim.used_bytes, claim.volume_bytes, claim.used_percent)
    for (namespace, name), share in sorted(used.items()):
        claims.add_metric([namespace, name], share)  # once for each claim: a series that appears twice fails the whole scrape
    yield from (progress, durable, step, goodput, lost, restarts, in_process, claims)


def _used(used_bytes: int | None, volume_bytes: int | None, percent: int) -> float:
    return min(1.0, used_bytes / volume_bytes) if used_bytes is not None and volume_bytes else percent / 100


def as_ratio(text: str) -> float | None:
    """A ratio that the status holds as a text, "0.97" or "97%"; None if it holds none."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
