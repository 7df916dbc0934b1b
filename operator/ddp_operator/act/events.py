"""Kubernetes events on TrainingRuns, so that `kubectl describe` tells what happened.

They are for people: nothing is decided from them, and nothing waits for them. Each namespace has a queue of its own, posted one by one
beside everything else.

An event is named after what it tells, so it is there once, also if its answer was lost, or another leader has posted it. The same reason
with the same message is not posted again for five minutes: a state that flaps must not fill the cluster's event store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from ddp_operator.act.status import CONFLICT, INVALID
from ddp_operator.api.trainingrun import GROUP, KIND, VERSION
from ddp_operator.backoff import Backoff
from ddp_operator.decide.decision import Event
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe.api import Api, ApiError, Json

REPEAT_SECONDS: Final = 300.0
REMEMBERED = 4096
"""Events that are remembered, for all runs together; older ones are forgotten first, and may then be posted again."""
WAITING = 2048
"""Events of a namespace that may wait to be posted."""
KEPT_SECONDS: Final = 600.0
"""For so long one that cannot be posted is tried: older news helps nobody."""
POST_SECONDS: Final = 10.0
BACKOFF: Final = Backoff(longest_seconds=60.0)
MESSAGE_CHARACTERS: Final = 1024
"""The API's own limit for messages of the old event kind."""
NAME_CHARACTERS: Final = 253
MALFORMED: Final = (400, INVALID)
"""Answers that are about one event, and not about its namespace or the store."""
FORBIDDEN: Final = 403
REFUSED_AT_ONCE: Final = 3
"""So many are tried before a pause: the operator may have no right to post any, or a webhook may only dislike that one."""
TERMINATING: Final = "because it is being terminated"
"""The API server's words where the namespace is about to go, and all that is in it."""
TASK_NAME: Final = "events of "

_log = logging.getLogger(__name__)


class Events:
    """What is to be told, by namespace. Only the leader posts; one that leads again goes on, for what it alone knows."""

    def __init__(self, api: Api, identity: str, is_leader: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._identity = identity
        self._is_leader = is_leader
        self._clock = clock
        self._told: dict[_Words, float] = {}
        self._queues: dict[str, _Queue] = {}
        self.posted = 0
        self.held_back = 0
        """Repetitions that were not posted."""
        self.lost = 0
        """Those that could not be posted."""

    def tell(self, run: RunFacts, event: Event) -> bool:
        """Post it as soon as may be, unless it is a repetition. Never blocks; False: there is no room, and nothing is done."""
        words, now = (run.uid, event.reason.value, event.message), self._clock()
        if now - self._told.get(words, now - REPEAT_SECONDS) < REPEAT_SECONDS:
            self.held_back += 1
            return True
        queue = self._queues.setdefault(run.namespace, _Queue())
        if len(queue.waiting) >= WAITING:
            self.lost += 1
            return False
        self._told.pop(words, None)  # to the end of the order
        self._told[words] = now
        while len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        body = event_body(run, event, self._identity)
        queue.waiting.setdefault(body["metadata"]["name"], _Waiting(body, words, now))
        self._start(run.namespace, queue)
        return True

    def look(self) -> None:
        """Go on with those whose pause is over. Never blocks."""
        for namespace, queue in list(self._queues.items()):
            if queue.waiting:
                self._start(namespace, queue)
            elif queue.task is None:
                del self._queues[namespace]

    def tasks(self) -> list[asyncio.Task[None]]:
        """Posts under way."""
        return [queue.task for queue in self._queues.values() if queue.task]

    def _start(self, namespace: str, queue: _Queue) -> None:
        if queue.task is None and queue.due_at <= self._clock():
            queue.task = asyncio.create_task(self._post_all(namespace, queue), name=f"{TASK_NAME}{namespace}")

    async def _post_all(self, namespace: str, queue: _Queue) -> None:
        path, refused = f"/api/v1/namespaces/{namespace}/events", 0
        try:
            while queue.waiting and self._is_leader():
                name, letter = next(iter(queue.waiting.items()))
                if self._clock() - letter.since >= KEPT_SECONDS:
                    self._drop(queue, name)
                    continue
                try:
                    await self._api.request("POST", path, body=letter.body, timeout_seconds=POST_SECONDS)
                    self.posted += 1
                except ApiError as error:
                    if error.status == FORBIDDEN and TERMINATING in error.reason:
                        self._drop(queue, name)
                        continue
                    if error.status in MALFORMED:
                        _log.warning("Event %s was not posted: %s", letter.body["reason"], error.reason, extra=letter.about)
                        self._drop(queue, name)
                        continue
                    if error.status != CONFLICT:
                        refused += 1
                        if error.status == FORBIDDEN and refused < min(REFUSED_AT_ONCE, len(queue.waiting)):
                            queue.waiting[name] = queue.waiting.pop(name)  # to the end: the others may be taken
                            continue
                        self._put_off(queue, letter, error)
                        return
                except Exception:  # a bug of ours: without this it would be met again with each look
                    _log.exception("Event %s was not posted; please report this.", letter.body["reason"], extra=letter.about)
                    self._drop(queue, name)
                    continue
                queue.failures = 0
                queue.waiting.pop(name)
        finally:
            queue.task = None

    def _put_off(self, queue: _Queue, letter: _Waiting, error: ApiError) -> None:
        queue.failures += 1
        queue.due_at = self._clock() + BACKOFF.after(queue.failures, error.retry_after_seconds)
        if queue.failures == 1:
            text = "Events are not posted, and are tried again for %.0f minutes each: %s"
            _log.warning(text, KEPT_SECONDS / 60, error.reason, extra=letter.about)

    def _drop(self, queue: _Queue, name: str) -> None:
        self.lost += 1
        self._told.pop(queue.waiting.pop(name).words, None)  # it was not told, so that telling it is no repetition


_Words = tuple[str, str, str]
"""Whose, reason and message: what makes an event a repetition."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    body: Json
    words: _Words
    since: float

    @property
    def about(self) -> dict[str, str]:
        """Whom it is about, for the log."""
        run = self.body["involvedObject"]
        return {"namespace": run["namespace"], "run": run["name"]}


@dataclass(slots=True)
class _Queue:
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    """By the event's name; the oldest first."""
    task: asyncio.Task[None] | None = None
    failures: int = 0
    """In a row."""
    due_at: float = float("-inf")


def event_body(run: RunFacts, event: Event, identity: str) -> Json:
    """The event as the API wants it."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # what no status tells is the same only as long as nothing was written since
    fact = event.fact or f"{run.resource_version}/{event.message}"
    unique = f".{hashlib.sha256(f'{run.uid}/{event.reason}/{fact}'.encode()).hexdigest()[:16]}"
    message = event.message if len(event.message) <= MESSAGE_CHARACTERS else event.message[: MESSAGE_CHARACTERS - 3] + "..."
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": run.name[: NAME_CHARACTERS - len(unique)] + unique, "namespace": run.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": run.name,
            "namespace": run.namespace,
            "uid": run.uid,
        },
        "reason": event.reason.value,
        "message": message,
        "type": "Warning" if event.is_warning else "Normal",
        "source": {"component": "ddp-operator"},
        "reportingComponent": "ddp-operator",
        "reportingInstance": identity[:128],
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
