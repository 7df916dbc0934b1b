"""Lists everything from time to time, so that what a watcher lost costs no more than one sweep.

kopf's watchers can die, and a deletion missed while one was away is never told again. So TrainingRuns, PyTorchJobs and claims are listed
here, whatever kopf does; pods are swept by their own watch. Each kind is swept by itself: trouble with one does not make the others blind.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from ddp_operator.api.trainingrun import GROUP, PLURAL, VERSION
from ddp_operator.backoff import LONGEST_RETRY_AFTER_SECONDS, Backoff
from ddp_operator.observe.api import Api, ApiError
from ddp_operator.observe.fields import version
from ddp_operator.observe.life import Life
from ddp_operator.observe.listing import PAGE_TIMEOUT_SECONDS, list_pages
from ddp_operator.observe.shelf import Key
from ddp_operator.observe.world import Kind, World
from ddp_operator.settings import Settings

RESOURCES: Final[dict[Kind, tuple[str, str]]] = {
    "run": (f"/apis/{GROUP}/{VERSION}", PLURAL),
    "job": ("/apis/kubeflow.org/v1", "pytorchjobs"),
    "claim": ("/api/v1", "persistentvolumeclaims"),
}
NOT_FOUND: Final = 404
NOT_YET: Final = "not listed yet"
MISSING: Final = "missing"
"""The API server does not know the kind: its CRD is not installed."""
SWEEPS_TO_BELIEVE_MISSING: Final = 3
"""An API server that has just started answers 404 before it has read its CRDs; objects that are known are dropped only after so many."""

log = logging.getLogger(__name__)


class Sweep:
    """Keeps runs, jobs and claims of `world` true to within `sweep_seconds`. `clock` gives monotonic seconds."""

    def __init__(
        self,
        api: Api,
        world: World,
        namespaces: Collection[str],
        life: Life,
        settings: Settings,
        clock: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._world = world
        self._namespaces = tuple(namespaces)
        self._life = life
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  jitter is no secret
        self._missing: dict[tuple[Kind, str], int] = {}
        self.state: dict[Kind, str] = dict.fromkeys(RESOURCES, NOT_YET)
        """By kind: "ok", MISSING, NOT_YET, or why the last sweep of it failed."""
        self.swept_at: dict[Kind, float] = {}
        """By kind: when it was last listed completely."""

    async def run(self) -> None:
        """Sweep until cancelled: one task for each kind. A bug in one ends them all, loudly."""
        async with asyncio.TaskGroup() as tasks:
            for kind in RESOURCES:
                tasks.create_task(self._keep(kind), name=_called(kind))

    async def _keep(self, kind: Kind) -> None:
        backoff, failures = Backoff(rng=self._rng), 0
        longest_pause = max(self._settings.sweep_seconds * 1.2, LONGEST_RETRY_AFTER_SECONDS)
        self._life.expect(_called(kind), longest_pause + PAGE_TIMEOUT_SECONDS + self._settings.watcher_stale_seconds)
        while True:
            self._life.beat(_called(kind))
            try:
                self._note(kind, await self._sweep(kind))
            except ApiError as error:
                self._note(kind, f"{_path(kind, '')}: {error}")
                failures += 1
                await self._sleep(backoff.after(failures, error.retry_after_seconds))
            else:
                failures = 0
                await self._sleep(self._settings.sweep_seconds * self._rng.uniform(0.8, 1.2))

    async def _sweep(self, kind: Kind) -> str:
        """List one kind everywhere; what its state is then.

        Raises:
            ApiError: some namespace could not be listed; the others were.
        """
        failed: ApiError | None = None
        missing = False
        for namespace in self._namespaces or ("",):
            try:
                missing |= not await self._list(kind, namespace)
            except ApiError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        self.swept_at[kind] = self._clock()
        return MISSING if missing else "ok"

    async def _list(self, kind: Kind, namespace: str) -> bool:
        """Whether the API server knows the kind."""
        names: set[Key] = set()

        def keep(body: Any) -> None:
            if (key := self._world.put(kind, body)) is not None:
                names.add(key)

        scope = (namespace,) if namespace else ()
        try:
            since = await list_pages(self._api, _path(kind, namespace), {}, keep, lambda: self._life.beat(_called(kind)))
        except ApiError as error:
            if error.status != NOT_FOUND or kind == "claim":
                raise
            times = self._missing[kind, namespace] = self._missing.get((kind, namespace), 0) + 1
            if times >= SWEEPS_TO_BELIEVE_MISSING or not self._world.is_listed(kind, namespace):
                self._world.retain(kind, scope, ())
            return False
        self._missing.pop((kind, namespace), None)
        self._world.retain(kind, scope, names, version(since))
        return True

    def _note(self, kind: Kind, state: str) -> None:
        """Remember the state, and say it when it changes."""
        before, self.state[kind] = self.state[kind], state
        if state == before:
            return
        if state == MISSING:
            log.warning("The API server does not know %s: is the CRD installed? It is asked again in each sweep", _path(kind, ""))
        elif state != "ok":
            log.warning("The sweep of %s; it tries again", state)
        elif before != NOT_YET:
            log.info("The sweep of %s works again", _path(kind, ""))


def _path(kind: Kind, namespace: str) -> str:
    group, plural = RESOURCES[kind]
    return f"{group}/namespaces/{namespace}/{plural}" if namespace else f"{group}/{plural}"


def _called(kind: Kind) -> str:
    """Its name among the signs of life."""
    return f"sweep of {RESOURCES[kind][1]}"
