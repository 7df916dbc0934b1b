"""`ddp runs`: all training runs of a namespace or of the cluster, with kubectl's columns."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_operator.cli.cluster import at, list_runs, meaning, orphaned_claims, own_namespace, sentences, text, with_cluster
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import ClaimFacts
from ddp_operator.observe.api import Api, ApiError, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_SECONDS = 2.0
COLUMNS = ("NAME", "PHASE", "STEP", "EPOCH", "LOSS", "SAMPLES/S", "CKPT", "CKPT-AGE", "RESTARTS", "ETA", "AGE")
RIGHT = frozenset({"STEP", "LOSS", "SAMPLES/S", "CKPT", "CKPT-AGE", "RESTARTS", "ETA", "AGE"})
DISPENSABLE = ("SAMPLES/S", "EPOCH", "LOSS", "CKPT", "RESTARTS", "AGE", "CKPT-AGE")
"""Left out one after the other while the terminal is too narrow: a table with every cell cut says nothing."""
GAP = 2
ORPHANS_NAMED = 3
COLOURS = {
    "Running": "green",
    "Saving": "green",
    "Starting": "blue",
    "Pending": "bright_black",
    "Suspended": "bright_black",
    "Restarting": "yellow",
    "Hung": "bold red",
    "Failed": "red",
    "Succeeded": "magenta",
}


def runs(
    namespace: Annotated[str | None, typer.Option("-n", "--namespace", help="Where to look.", show_default="that of the context")] = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="In all namespaces.")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
) -> None:
    """List the training runs of a cluster: phase, progress, checkpoints, restarts; and name the claims that no run uses."""

    async def show(api: Api) -> None:
        place = None if everywhere else namespace or await own_namespace()
        if watch:
            await _watch(api, place)
        else:
            bodies = await list_runs(api, place)
            _print(bodies, place)
            if line := orphans_line(await orphaned_claims(api, place, bodies)):
                print(line, file=sys.stderr)  # noqa: T201  # not into a pipe: what reads the table reads nothing else

    with sentences():
        with_cluster(show)


def cells(body: Json, now: float) -> tuple[str, ...]:
    """One line of the table, in the order of `COLUMNS`; "" for what is not known."""
    status = at(body, "status")
    saved = text(status, "checkpoint", "savedAt")
    return (
        text(body, "metadata", "name"),
        text(status, "phase"),
        text(status, "progress", "step"),
        text(status, "progress", "epoch"),
        text(status, "progress", "loss"),
        text(status, "progress", "samplesPerSecond"),
        text(status, "checkpoint", "step"),
        age(saved, now),
        text(status, "restarts", "total"),
        text(status, "progress", "eta"),
        age(text(body, "metadata", "creationTimestamp"), now),
    )


def age(stamp: str, now: float) -> str:
    """How long ago an RFC 3339 time was; "" if it is none."""
    seconds = seconds_at(stamp)
    return "" if seconds is None else spoken(now - seconds)


def seconds_at(stamp: str) -> float | None:
    """An RFC 3339 time in seconds since the epoch; None if it is none."""
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(stamp)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def rows(bodies: Sequence[Json], namespace: str | None, now: float) -> list[tuple[str, ...]]:
    """Heading and lines; with a NAMESPACE column if they are of all namespaces."""
    lines = [cells(body, now) for body in bodies]
    if namespace is None:
        return [("NAMESPACE", *COLUMNS), *((text(body, "metadata", "namespace"), *line) for body, line in zip(bodies, lines, strict=True))]
    return [COLUMNS, *lines]


def orphans_line(claims: Sequence[tuple[str, ClaimFacts]]) -> str:
    """One line about claims that no run uses; "" if there are none."""
    if not claims:
        return ""
    named = ", ".join(f"{namespace}/{claim.name}" for namespace, claim in claims[:ORPHANS_NAMED])
    more = f" and {len(claims) - ORPHANS_NAMED} more" if len(claims) > ORPHANS_NAMED else ""
    first = f"kubectl -n {claims[0][0]} delete pvc {claims[0][1].name}"
    return f"Claims that no run uses: {named}{more}; to be rid of one, with its checkpoints: {first}"


def _print(bodies: Sequence[Json], namespace: str | None) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(table(bodies, namespace, time.time(), console.width))
        return
    lines = rows(bodies, namespace, time.time())
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        sys.stdout.write("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")


def table(bodies: Sequence[Json], namespace: str | None, now: float, width: int) -> RenderableType:
    """For a terminal of so many characters a line."""
    from rich.table import Table
    from rich.text import Text

    if not bodies:
        place = f"namespace {namespace}" if namespace else "the cluster"
        return Text(f"No training runs in {place}." + (" Look everywhere with -A." if namespace else ""))
    heading, *lines = narrowed(rows(bodies, namespace, now), width)
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bright_black")
    for title in heading:
        shown.add_column(title, justify="right" if title in RIGHT else "left", no_wrap=title not in ("NAME", "NAMESPACE"), overflow="fold")
    for line in lines:
        # Text: a name with brackets is no markup
        shown.add_row(*(Text(cell, _style(title, cell)) for title, cell in zip(heading, line, strict=True)))
    return shown


def narrowed(lines: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The table without as many of the dispensable columns as it takes to fit."""
    for title in DISPENSABLE:
        needed = sum(max(map(len, column)) + GAP for column in zip(*lines, strict=True)) - GAP
        if needed <= width:
            break
        place = lines[0].index(title)
        lines = [line[:place] + line[place + 1 :] for line in lines]
    return lines


def _style(title: str, cell: str) -> str:
    return COLOURS.get(cell, "") if title == "PHASE" else "bold" if title == "NAME" else ""


async def _watch(api: Api, namespace: str | None) -> None:
    """Until Ctrl-C. The first list must succeed; later failures stand below the last good table, and are tried again."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    bodies, trouble = await list_runs(api, namespace), ""
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            shown = table(bodies, namespace, time.time(), live.console.width)
            live.update(Group(shown, Text(trouble, "yellow")) if trouble else shown, refresh=True)
            await asyncio.sleep(WATCH_SECONDS)
            try:
                bodies, trouble = await list_runs(api, namespace), ""
            except ApiError as error:
                trouble = meaning(error)
