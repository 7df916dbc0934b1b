"""The operator's web server: the dashboard, /metrics, /healthz and /readyz. It only reads, and only answers GET and HEAD.

All that is shown comes from the cluster and is hostile: Jinja2 escapes it, and a strict policy (no script but our own, by nonce; nothing
from another host) stands behind that. There is no session, cookie, body or write here. Who may read it is the network's business.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ddp_operator.decide.facts import ClaimFacts, ProgressFacts, RunFacts
from ddp_operator.web.board import Filter, Glance, runs_page
from ddp_operator.web.history import History
from ddp_operator.web.metrics import Metrics, Numbers
from ddp_operator.web.pages import Pages
from ddp_operator.web.run_board import run_page

SAMPLE_SECONDS = 10.0
"""How often losses and checkpoints are noted for the sparklines: as often as the runs are asked."""
CHUNK_RUNS = 50
"""So many runs are read at a time (10 to 50 ms); in between the event loop does its work."""
OVERVIEW_SECONDS = 2.0
"""How old the overview's counts and order may be, however many look at it. Its rows are of now."""
METRICS_SECONDS = 5.0
"""How old metrics may be: more than one Prometheus may scrape."""
LINE_BYTES = 8190
"""Of one line or header field of a request: a dashboard needs no more, and nobody fills our memory."""
KEEP_ALIVE_SECONDS = 15.0
"""Of a connection that asks nothing: more than a refresh, less than a crowd of sleepers needs."""
STOP_SECONDS = 2.0
"""What a slow reader gets when the operator ends."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Made = TypeVar("Made")

_log = logging.getLogger(__name__)
_nonce: ContextVar[str] = ContextVar("nonce")
"""Of the request that is answered: what its page's script and style carry, and its policy names."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the pages' facts come from. All are called in the event loop, and must not block."""

    runs: Callable[[], Iterable[RunFacts]]
    """All runs. Lazily, since each takes a moment: they are taken `CHUNK_RUNS` at a time."""
    run: Callable[[str, str], RunFacts | None]
    """One run, by namespace and name."""
    documents: Callable[[], Iterable[tuple[str, str, ProgressFacts | None]]] = tuple
    """Namespace, name and last progress of all runs; cheap, since it is asked each `SAMPLE_SECONDS`."""
    orphans: Callable[[], Sequence[tuple[str, ClaimFacts]]] = tuple
    """Namespace and claim: made for a run that is gone."""
    numbers: Callable[[], Numbers] = Numbers
    health: Callable[[], list[str]] = list
    """What is wrong, as sentences; empty: alive and well."""
    ready: Callable[[], list[str]] = list
    """What is still awaited, as sentences; empty: ready."""
    clock: Callable[[], float] = time.time


async def serve(port: int, sources: Sources, host: str | None = None) -> web.AppRunner:
    """Listen on `port` (0: any free one, see `runner.addresses`), on all addresses unless `host` is given.

    Returns at once; `await runner.cleanup()` ends it within `STOP_SECONDS`. An OSError says that the port is taken.
    """
    runner = web.AppRunner(
        build(sources),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=STOP_SECONDS,
        max_line_size=LINE_BYTES,
        max_field_size=LINE_BYTES,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


def build(sources: Sources) -> web.Application:
    """The application, not yet listening."""
    history, pages, metrics = History(), Pages(), Metrics()

    async def scrape() -> bytes:
        runs = [run async for run in _in_chunks(sources.runs())]
        # in a thread: the text of thousands of series takes a moment, and the loop has pods to watch; facts are frozen
        return await asyncio.to_thread(metrics.text, runs, sources.numbers(), sources.clock(), sources.orphans())

    async def glance() -> Sequence[Glance]:
        return [Glance.of(run) async for run in _in_chunks(sources.runs())]

    glances, text = _Kept(glance), _Kept(scrape)  # one at a time: metrics remember ledgers from scrape to scrape
    application = web.Application(middlewares=[_guard(pages)], client_max_size=1)

    async def overview(request: web.Request) -> web.Response:
        found = await glances.get(OVERVIEW_SECONDS)
        page = runs_page(found, sources.run, history, Filter.of(request.query), sources.clock(), sources.orphans())
        return _page(pages.overview(page, _nonce.get()))

    async def run(request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        if (facts := sources.run(namespace, name)) is not None:
            return _page(pages.run(run_page(facts, history, sources.clock()), _nonce.get()))
        raise web.HTTPNotFound(text=f"There is no run {name} in namespace {namespace}: it was deleted, or its name is spelled differently.")

    async def numbers(_: web.Request) -> web.Response:
        return web.Response(body=await text.get(METRICS_SECONDS), headers={"Content-Type": METRICS_TYPE})

    application.router.add_get("/", overview)
    application.router.add_get("/runs/{namespace}/{name}", run)
    application.router.add_get("/metrics", numbers)
    application.router.add_get("/healthz", _probe(sources.health))
    application.router.add_get("/readyz", _probe(sources.ready))
    application.cleanup_ctx.append(_sampling(sources, history))
    return application


class _Kept(Generic[Made]):
    """Something dear that is made for all who ask at once, and kept for a moment."""

    def __init__(self, make: Callable[[], Awaitable[Made]]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made: tuple[float, Made] | None = None

    async def get(self, seconds: float) -> Made:
        """At most so old."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] >= seconds:
                self._made = None  # two at once would double the peak of memory
                self._made = (time.monotonic(), await self._make())
            return self._made[1]


async def _in_chunks(runs: Iterable[RunFacts]) -> AsyncIterator[RunFacts]:
    for number, run in enumerate(runs, start=1):
        yield run
        if number % CHUNK_RUNS == 0:
            await asyncio.sleep(0)


def _page(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html")


def _probe(complaints: Callable[[], list[str]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        found = complaints()
        return web.Response(text="".join(f"{sentence}\n" for sentence in found) or "ok\n", status=503 if found else 200)

    return answer


def _sampling(sources: Sources, history: History) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(_: web.Application) -> AsyncIterator[None]:
        async def sample() -> None:
            while True:
                try:
                    history.note(sources.documents())
                except Exception:  # the edge of a task: one bad run must not end everybody's curves
                    _log.exception("The losses could not be noted; the dashboard's curves lack a point.")
                await asyncio.sleep(SAMPLE_SECONDS)

        task = asyncio.create_task(sample(), name="web-history")
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return context


def _guard(pages: Pages) -> Middleware:
    """Every answer gets the same headers, and every error is a page with a sentence."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonce = secrets.token_urlsafe(16)
        _nonce.set(nonce)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _sentence(pages, error.status, _explain(request, error), nonce)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:  # the edge of the process: one page that fails must not end the operator's server
            _log.exception("A page could not be made: %s", request.path[:200])
            response = _sentence(pages, 500, "This page could not be made; the operator's log says why. Please report it.", nonce)
        response.headers.update(_headers(nonce))
        return response

    return guard


def _explain(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"This page only answers GET and HEAD, not {request.method[:16]}: the dashboard changes nothing; use kubectl."
    if isinstance(error, web.HTTPNotFound) and request.match_info.route.name is None and request.match_info.get("name") is None:
        return "There is no such page: all runs are at /, one run at /runs/NAMESPACE/NAME."
    return error.text or HTTPStatus(error.status).phrase


def _sentence(pages: Pages, status: int, sentence: str, nonce: str) -> web.Response:
    return web.Response(text=pages.error(status, sentence[:600], nonce), status=status, content_type="text/html")


def _headers(nonce: str) -> Mapping[str, str]:
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Server": "ddp-operator",
    }
