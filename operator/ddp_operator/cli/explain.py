"""`ddp explain RUN`: what happened, in order, and what to do next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ddp_operator.api.advice import Advice, advise, pod_to_look_at
from ddp_operator.api.words import Phase
from ddp_operator.cli.cluster import at, events_of, get_run, own_namespace, pods_of, sentences, text, with_cluster
from ddp_operator.cli.runs import COLOURS, seconds_at
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import PodFacts
from ddp_operator.observe.api import Api, Json

MOMENTS = 80
"""The newest that are shown."""
BAD_EVENTS = frozenset({"Warning"})


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened. `at` in seconds since the epoch; `tone` is good, bad, warn or ""."""

    at: float
    what: str
    text: str
    tone: str = ""


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The name of a TrainingRun; see `ddp runs`.")],
    namespace: Annotated[str | None, typer.Option("-n", "--namespace", help="Where it is.", show_default="that of the context")] = None,
) -> None:
    """Tell what happened to a training run, in order, and what to do next."""

    async def show(api: Api) -> None:
        place = namespace or await own_namespace()
        body = await get_run(api, place, run)
        pods = await pods_of(api, place, text(body, "spec", "jobRef", "name"))
        _print(body, story(body, await events_of(api, place, run)), advice_for(body, pods), time.time())

    with sentences():
        with_cluster(show)


def story(body: Json, events: list[Json]) -> list[Moment]:
    """Everything that the status and the events tell, oldest first. Odd entries are left out."""
    status = at(body, "status")
    found = [*_incidents(status), *_milestones(body, status), *_conditions(status), *_events(events)]
    return sorted(found, key=lambda moment: moment.at)[-MOMENTS:]  # of the same second: the cause before its effects


def _milestones(body: Json, status: Any) -> Iterator[Moment]:
    stamps = (
        (text(body, "metadata", "creationTimestamp"), "created", "", ""),
        (text(status, "timing", "startedAt"), "first pod ran", "", ""),
        (text(status, "timing", "runningAt"), "first step", "", "good"),
        (text(status, "timing", "suspendedAt"), "suspended", "", "warn"),
        (text(status, "timing", "finishedAt"), "ended", _reason(status), "good" if text(status, "phase") == Phase.SUCCEEDED else "bad"),
        (text(status, "checkpoint", "savedAt"), "newest durable step", text(status, "checkpoint", "step"), "good"),
        (text(status, "phaseSince"), f"phase {text(status, 'phase')}", _reason(status), ""),
    )
    for stamp, what, words, tone in stamps:
        if (moment := seconds_at(stamp)) is not None:
            yield Moment(moment, what, words, tone)


def _incidents(status: Any) -> Iterator[Moment]:
    for entry in _objects(status, "ledger"):
        moment = seconds_at(text(entry, "at"))
        if moment is None:
            continue
        exit_code, node, action = text(entry, "exitCode"), text(entry, "node"), text(entry, "action")
        parts = [
            text(entry, "pod") + (f" on {node}" if node else ""),
            f"exit {exit_code}" if exit_code else "",
            f"at step {text(entry, 'step') or '?'}, durable {text(entry, 'durableStep') or '0'}",
            f"the operator did: {action}" if action not in ("", "None") else "",
            text(entry, "message"),
        ]
        yield Moment(moment, text(entry, "cause") or "Unknown", "; ".join(filter(None, parts)), "bad")
        recovered = seconds_at(text(entry, "recoveredAt"))
        if recovered is not None:
            lost = text(entry, "lostSteps")
            words = f"after {spoken(recovered - moment)}" + (f", {lost} steps lost" if lost else "")
            yield Moment(recovered, "trained again", words, "good")


def _conditions(status: Any) -> Iterator[Moment]:
    for condition in _objects(status, "conditions"):
        moment = seconds_at(text(condition, "lastTransitionTime"))
        if moment is not None:
            words = ": ".join(filter(None, (text(condition, "reason"), text(condition, "message"))))
            yield Moment(moment, f"{text(condition, 'type')} is {text(condition, 'status')}", words)


def _events(events: list[Json]) -> Iterator[Moment]:
    for event in events:
        stamps = (text(event, key) for key in ("lastTimestamp", "eventTime", "firstTimestamp"))
        moment = next((found for stamp in stamps if (found := seconds_at(stamp)) is not None), None)
        if moment is not None:
            times = text(event, "count")
            words = text(event, "message") + (f" ({times} times)" if times not in ("", "1") else "")
            yield Moment(moment, text(event, "reason"), words, "warn" if text(event, "type") in BAD_EVENTS else "")


def advice_for(body: Json, pods: Sequence[PodFacts] | None = None) -> Advice:
    """What to do next, from the status as it is stored, and the pods as they are (None: they cannot be read)."""
    status = at(body, "status")
    phase = Phase.PENDING
    with suppress(ValueError):
        phase = Phase(text(status, "phase"))
    ledger, claims = _objects(status, "ledger"), _objects(status, "claims")
    job = text(body, "spec", "jobRef", "name")
    lost = text(ledger[-1], "pod") if ledger and not text(ledger[-1], "recoveredAt") else ""
    return advise(
        phase,
        text(status, "reason"),
        namespace=text(body, "metadata", "namespace"),
        run=text(body, "metadata", "name"),
        job=job,
        pod=pod_to_look_at(phase, lost, None if pods is None else [(pod.name, pod.phase) for pod in sorted(pods, key=_place)]),
        claim=text(body, "spec", "checkpoint", "claimName") or (text(claims[0], "name") if claims else ""),
        conditions={text(c, "type"): (text(c, "status"), text(c, "reason")) for c in _objects(status, "conditions")},
        overdue=text(status, "overdue"),
        has_pods=pods is None or bool(pods),
    )


def _place(pod: PodFacts) -> tuple[str, int, str]:
    """Masters before workers, by index."""
    return pod.replica.rstrip("0123456789"), len(pod.replica), pod.replica


def _objects(status: Any, key: str) -> list[Json]:
    found = at(status, key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _reason(status: Any) -> str:
    return ": ".join(filter(None, (text(status, "reason"), text(status, "message"))))


def _print(body: Json, moments: list[Moment], advice: Advice, now: float) -> None:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tones = {"good": "green", "bad": "red", "warn": "yellow"}
    status, console = at(body, "status"), Console()
    phase = text(status, "phase") or "Pending"
    head = Text.assemble((text(body, "metadata", "name"), "bold"), " is ", (phase, COLOURS.get(phase, "")))
    since = seconds_at(text(status, "phaseSince"))
    head.append(f" for {spoken(now - since)}" if since is not None else "")
    head.append(f" ({why})" if (why := _reason(status)) else "")
    step, total = text(status, "progress", "step"), text(status, "progress", "totalSteps")
    console.print(head, soft_wrap=True)
    if step:
        console.print(Text(f"step {step} of {total or '?'}, durable {text(status, 'checkpoint', 'step') or 'none'}"), soft_wrap=True)
    console.print()
    shown = Table(box=None, pad_edge=False, show_header=False)
    for moment in moments:
        when = datetime.fromtimestamp(moment.at).astimezone().strftime("%m-%d %H:%M:%S")
        shown.add_row(Text(when, "bright_black"), Text(moment.what, tones.get(moment.tone, "")), Text(moment.text))
    console.print(shown)
    console.print()
    console.print(Text.assemble(("What to do: ", "bold"), advice.sentence), soft_wrap=True)
    if advice.command:
        console.print(Text(f"  {advice.command}", "cyan"), soft_wrap=True)
