"""All pods of PyTorchJobs, by a list and a watch of our own.

kopf lists whole and takes every pod of the cluster. This one asks for pods with the training operator's label only, page by page, keeps
facts instead of objects, lists again in each sweep so that a lost deletion is noticed, and never gives up: whatever fails is tried again
after a delay that is bounded, and a silent connection is cut. Until a list is complete, what was known stays.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Final

from ddp_operator.backoff import Backoff
from ddp_operator.observe import slim
from ddp_operator.observe.api import Api, ApiError, Query
from ddp_operator.observe.fields import at, name, number, text, version, word
from ddp_operator.observe.life import Life
from ddp_operator.observe.listing import GONE, list_pages
from ddp_operator.observe.shelf import Key
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

WATCH_RATIO: Final = 0.6
"""Of `watcher_stale_seconds`: then the server ends a watch, so that even that of an empty namespace gives signs of life (30 s of 50 s)."""
SILENCE_RATIO: Final = 0.8
"""Of the same: longer than a watch, so only a dead connection is silent for so long; shorter than a watcher may be stale (40 s)."""
SHORT_SECONDS: Final = 1.0
"""A watch that ends sooner is a failure, also if it ended well: else a proxy that closes at once has us ask without a pause."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Scope:
    """One list and watch. `namespace` "" is the whole cluster."""

    namespace: str
    since: str = ""
    """The resourceVersion to watch from; "": list first."""
    sweep_at: float = inf
    """When to list again; infinity while that is under way."""

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" if self.namespace else "/api/v1/pods"

    @property
    def called(self) -> str:
        """Its name among the signs of life."""
        return f"pod watch of {self.namespace or 'all namespaces'}"


class PodWatch:
    """Keeps the pods of `world` true, in the whole cluster or in the given namespaces. `clock` gives monotonic seconds."""

    def __init__(
        self,
        api: Api,
        world: World,
        namespaces: Collection[str],
        life: Life,
        clock: Callable[[], float],
        settings: Settings | None = None,
        *,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._world = world
        self._scopes = [_Scope(namespace) for namespace in tuple(namespaces) or ("",)]
        self._life = life
        self._clock = clock
        self._settings = settings or Settings()
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  jitter is no secret
        self.errors: dict[str, str] = {}
        """Which watch cannot see now, and why. Empty: all is well."""
        self.lists = 0
        """Complete lists made."""

    async def run(self) -> None:
        """Watch until cancelled: one task for each namespace. A bug in one ends them all, loudly."""
        async with asyncio.TaskGroup() as tasks:
            for scope in self._scopes:
                self._life.expect(scope.called, self._settings.watcher_stale_seconds)
                tasks.create_task(self._keep(scope, tasks), name=scope.called)

    async def _keep(self, scope: _Scope, tasks: asyncio.TaskGroup) -> None:
        backoff, failures = Backoff(rng=self._rng), 0
        while True:
            # An API server that cannot be reached is no reason to start this process anew: trying again is a sign of life.
            self._life.beat(scope.called)
            try:
                if not scope.since:
                    scope.since = await self._list(scope, lambda: self._life.beat(scope.called))
                    self._note(scope, "")
                await self._watch(scope, tasks)
            except ApiError as error:
                self._note(scope, f"{scope.path}: {error}")
                if error.status == GONE:
                    scope.since = ""
                failures += 1
                await self._sleep(backoff.after(failures, error.retry_after_seconds))
            else:
                self._note(scope, "")
                failures = 0

    async def _sweep(self, scope: _Scope) -> None:
        """List beside the watch: of thousands of pods that takes seconds, in which what happens to one must not wait."""
        backoff, failures = Backoff(rng=self._rng), 0
        while True:
            try:
                await self._list(scope, lambda: None)  # signs of life are the watch's alone
            except ApiError as error:
                log.info("The sweep beside the %s failed: %s; it tries again", scope.called, error)
                failures += 1
                await self._sleep(backoff.after(failures, error.retry_after_seconds))
            else:
                return

    async def _list(self, scope: _Scope, on_page: Callable[[], None]) -> str:
        """Take a complete list; its version. What the watch brings in the meantime is newer, and stays: see `shelf`."""
        names: set[Key] = set()

        def keep(body: Any) -> None:
            if (key := self._world.put("pod", body)) is not None:
                names.add(key)

        since = await list_pages(self._api, scope.path, {"labelSelector": slim.JOB_LABEL}, keep, on_page)
        self._world.retain("pod", (scope.namespace,) if scope.namespace else (), names, version(since))
        scope.sweep_at = self._clock() + self._settings.sweep_seconds * self._rng.uniform(0.8, 1.2)
        self.lists += 1
        return since

    def _sweep_if_due(self, scope: _Scope, tasks: asyncio.TaskGroup) -> None:
        if self._clock() >= scope.sweep_at:
            scope.sweep_at = inf
            tasks.create_task(self._sweep(scope), name=f"sweep beside the {scope.called}")

    async def _watch(self, scope: _Scope, tasks: asyncio.TaskGroup) -> None:
        """Take events until the server ends the watch, which it does before the next sweep is due.

        Raises:
            ApiError: the watch broke, was silent for too long, or ended as soon as it began.
        """
        began = self._clock()
        self._sweep_if_due(scope, tasks)
        seconds = max(2, ceil(min(self._settings.watcher_stale_seconds * WATCH_RATIO, scope.sweep_at - began)))
        query: Query = {
            "watch": True,
            "allowWatchBookmarks": True,
            "labelSelector": slim.JOB_LABEL,
            "resourceVersion": scope.since,
            "timeoutSeconds": seconds,
        }
        events = self._api.stream(scope.path, query=query, read_timeout_seconds=self._settings.watcher_stale_seconds * SILENCE_RATIO)
        try:
            async for event in events:
                self._life.beat(scope.called)
                self._take(scope, event)
                self._sweep_if_due(scope, tasks)  # a server that does not keep to timeoutSeconds must not cost the sweep
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        if self._clock() - began < SHORT_SECONDS:
            raise ApiError(0, "the watch ended as soon as it began")

    def _take(self, scope: _Scope, event: Any) -> None:
        kind, body = word(at(event, "type")), at(event, "object")
        if kind == "ERROR":
            scope.since = ""  # what the server knows may not be what we know: list
            raise ApiError(number(at(body, "code"), 500), text(at(body, "message"), 256) or "the watch broke off with an error")
        if kind in {"ADDED", "MODIFIED"}:
            self._world.put("pod", body)
        elif kind == "DELETED":
            self._world.drop_pod(
                name(at(body, "metadata", "namespace")), name(at(body, "metadata", "name")), text(at(body, "metadata", "uid"), 64)
            )
        scope.since = text(at(body, "metadata", "resourceVersion"), 64) or scope.since

    def _note(self, scope: _Scope, error: str) -> None:
        """Remember what is wrong, and say it once."""
        if error and self.errors.get(scope.called) != error:
            log.warning("The %s cannot see: %s; it tries again", scope.called, error)
        elif not error and scope.called in self.errors:
            log.info("The %s sees again", scope.called)
        if error:
            self.errors[scope.called] = error
        else:
            self.errors.pop(scope.called, None)
