"""Kubernetes events on TrainingRuns, so that `kubectl describe` tells what happened. They are for people: nothing is decided from them.

An event is named after what it tells, so it is there once, also if its answer was lost, or another leader has posted it. The same reason
with the same message is not posted again for five minutes: a state that flaps must not fill the cluster's event store.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ddp_operator.act.status import CONFLICT
from ddp_operator.api.trainingrun import GROUP, KIND, VERSION
from ddp_operator.decide.decision import Event
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe.api import Api, ApiError, Json

REPEAT_SECONDS = 300.0
REMEMBERED = 4096
"""Events that are remembered, for all runs together; older ones are forgotten first, and may then be posted again."""
MESSAGE_CHARACTERS = 1024
"""The API's own limit for messages of the old event kind."""
NAME_CHARACTERS = 253


class Events:
    """Posts events, and remembers what it has posted."""

    def __init__(self, api: Api, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._identity = identity
        self._clock = clock
        self._posted: dict[tuple[str, str, str], float] = {}
        self.held_back = 0
        """Repetitions that were not posted."""

    async def post(self, run: RunFacts, event: Event, *, timeout_seconds: float) -> bool:
        """Post one; False: it is a repetition, or there already.

        Raises:
            ApiError: it was not posted, and may be tried again.
        """
        key = (run.uid, event.reason.value, event.message)
        now = self._clock()
        if now - self._posted.get(key, now - REPEAT_SECONDS) < REPEAT_SECONDS:
            self.held_back += 1
            return False
        body, is_new = event_body(run, event, self._identity), True
        try:
            await self._api.request("POST", f"/api/v1/namespaces/{run.namespace}/events", body=body, timeout_seconds=timeout_seconds)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            is_new = False
        self._posted.pop(key, None)  # to the end of the order
        self._posted[key] = now
        while len(self._posted) > REMEMBERED:
            del self._posted[next(iter(self._posted))]
        return is_new


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
