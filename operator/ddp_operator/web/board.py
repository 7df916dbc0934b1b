"""The overview: facts of all runs -> rows and filters, texts ready to print. Pure; templates only lay it out."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from ddp_operator.api.trainingrun import ProgressStatus
from ddp_operator.api.words import ConditionType, Phase
from ddp_operator.decide.facts import ClaimFacts, RunFacts
from ddp_operator.web.drawing import curve
from ddp_operator.web.history import History
from ddp_operator.web.texts import NONE, age, ago, clock, count, or_none, size

ROWS = 100
"""A page of the overview."""
SPARK = (96.0, 22.0)
"""Width and height of a row's curve."""

TONES: dict[Phase, str] = {
    Phase.HUNG: "bad",
    Phase.FAILED: "bad",
    Phase.RESTARTING: "warn",
    Phase.PENDING: "idle",
    Phase.STARTING: "accent",
    Phase.SAVING: "good",
    Phase.RUNNING: "good",
    Phase.SUSPENDED: "idle",
    Phase.SUCCEEDED: "done",
}
"""The colour of each phase, and in this order rows are shown: what needs somebody stands on top."""
_ORDER = {phase: place for place, phase in enumerate(TONES)}


@dataclass(frozen=True, slots=True)
class Filter:
    """What the query parameters ask for. Unknown phases match nothing; odd pages are the first."""

    namespace: str = ""
    phase: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """Of a request. Values are cut: no name is longer."""
        page = query.get("page", "")
        return cls(
            query.get("namespace", "")[:253],
            query.get("phase", "")[:64],
            int(page) if re.fullmatch("[0-9]{1,5}", page) else 1,
        )

    def link(self, **changed: str | int) -> str:
        """The address of this page with some parameters changed; "" takes one away."""
        values = {"namespace": self.namespace, "phase": self.phase, **changed}
        return "/?" + urlencode({key: value for key, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class Row:
    """One run in the overview."""

    namespace: str
    name: str
    link: str
    phase: str
    tone: str
    reason: str
    message: str
    percent: int | None
    steps: str
    loss: str
    spark: str
    rate: str
    eta: str
    checkpoint: str
    checkpoint_age: str
    is_stale: bool
    is_verified: bool
    restarts: str
    restarts_title: str
    age: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A filter that can be clicked."""

    text: str
    count: int
    link: str
    tone: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """A claim of a run that is gone, and how to be rid of it."""

    namespace: str
    name: str
    phase: str
    size: str
    command: str


@dataclass(frozen=True, slots=True)
class RunsPage:
    """The overview."""

    rows: tuple[Row, ...]
    phases: tuple[Choice, ...]
    namespaces: tuple[str, ...]
    wanted: Filter
    total: int
    matching: int
    page: int
    pages: int
    made_at: str
    orphans: tuple[Orphan, ...] = ()


@dataclass(frozen=True, slots=True)
class Glance:
    """As much of a run as the overview needs of those that it has no row for."""

    phase: Phase
    namespace: str
    name: str

    @classmethod
    def of(cls, run: RunFacts) -> Glance:
        """What is kept of a run."""
        return cls(run.status.phase, run.namespace, run.name)


def runs_page(
    glances: Sequence[Glance],
    find: Callable[[str, str], RunFacts | None],
    history: History,
    wanted: Filter,
    now: float,
    orphans: Sequence[tuple[str, ClaimFacts]] = (),
) -> RunsPage:
    """The overview: only the runs that a page has rows for are found and laid out, so that a thousand runs cost little."""
    here = [run for run in glances if wanted.namespace in ("", run.namespace)]
    counts = Counter(run.phase for run in here)
    matching = sorted((run for run in here if wanted.phase in ("", run.phase)), key=_place)
    pages = max(1, -(-len(matching) // ROWS))
    page = min(max(1, wanted.page), pages)
    shown = [find(run.namespace, run.name) for run in matching[(page - 1) * ROWS : page * ROWS]]
    every = [Choice("All", len(here), wanted.link(phase=""), "plain", wanted.phase == "")]
    phases = [
        Choice(p, counts[p], wanted.link(phase=p), tone, wanted.phase == p) for p, tone in TONES.items() if counts[p] or wanted.phase == p
    ]
    return RunsPage(
        rows=tuple(_row(run, history, now) for run in shown if run is not None),
        phases=tuple(every + phases),
        namespaces=tuple(sorted({run.namespace for run in glances})),
        wanted=wanted,
        total=len(glances),
        matching=len(matching),
        page=page,
        pages=pages,
        made_at=clock(now),
        orphans=tuple(_orphan(*orphan) for orphan in orphans if wanted.namespace in ("", orphan[0]))[:ROWS],
    )


def _orphan(namespace: str, claim: ClaimFacts) -> Orphan:
    held = size(claim.capacity_bytes or claim.requested_bytes)
    return Orphan(namespace, claim.name, claim.phase, held, f"kubectl -n {shlex.quote(namespace)} delete pvc {shlex.quote(claim.name)}")


def _place(run: Glance) -> tuple[int, str, str]:
    return (_ORDER[run.phase], run.namespace, run.name)


def _row(run: RunFacts, history: History, now: float) -> Row:
    status, progress, saved = run.status, run.status.progress or ProgressStatus(), run.status.checkpoint
    return Row(
        namespace=run.namespace,
        name=run.name,
        link=_link(run),
        phase=status.phase,
        tone=TONES[status.phase],
        reason=status.reason,
        message=status.message,
        percent=min(100, progress.percent) if progress.total_steps else None,
        steps=steps_of(run),
        loss=or_none(progress.loss),
        spark=curve(history.losses(run.namespace, run.name), *SPARK),
        rate=or_none(progress.samples_per_second),
        eta=or_none(progress.eta),
        checkpoint=count(saved.step) if saved else NONE,
        checkpoint_age=ago(saved.saved_at, now) if saved else "",
        is_stale=condition_of(run, ConditionType.CHECKPOINT_FRESH) == "False",
        is_verified=bool(saved and saved.verified),
        restarts=f"{status.restarts.failures}/{run.spec.policy.max_restarts}",
        restarts_title=f"{status.restarts.failures} failures of {run.spec.policy.max_restarts} allowed, "
        f"{status.restarts.preemptions} preemptions of {run.spec.policy.max_preemptions}, {status.restarts.in_process} without a lost pod",
        age=age(run.created_at, now),
    )


def condition_of(run: RunFacts, type_: ConditionType) -> str:
    """True, False or Unknown."""
    return next((condition.status for condition in run.status.conditions if condition.type == type_), "Unknown")


def _link(run: RunFacts) -> str:
    return f"/runs/{quote(run.namespace, safe='')}/{quote(run.name, safe='')}"


def steps_of(run: RunFacts) -> str:
    """Like 1,200 / 4,000; a dash when nobody knows."""
    progress = run.status.progress
    if progress is None or not progress.total_steps:
        return count(progress.step) if progress and progress.step else NONE
    return f"{count(progress.step)} / {count(progress.total_steps)}"
