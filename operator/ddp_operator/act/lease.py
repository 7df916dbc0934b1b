"""Leader election by a Lease: of all operators that share its name, at most one acts.

No two clocks are compared. A rival judges the holder dead when the record has not *changed* for the lease's whole time on the rival's own
clock; the holder stops acting when two thirds of it have passed, on its own clock, since it *sent* the last renewal that was confirmed.
So the last third is what a write that is already on its way may take, and what the two clocks may differ in speed.

The record's own times are only for people. `kubernetes.aio.leaderelection` was not taken: it goes on leading through a renewal that hangs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ddp_operator.act.status import GONE
from ddp_operator.observe.api import Api, ApiError, Json

ACTING_SHARE: Final = 2 / 3
RENEWALS_PER_LEASE: Final = 3
LOOKS_PER_LEASE: Final = 10
"""How often a rival looks: with 15 s, a holder that dies is noticed after 16.5 s at the latest."""
LONGEST_LEASE_SECONDS: Final = 300.0
"""What is believed of a record's leaseDurationSeconds: a damaged record must not lock everybody out."""
RELEASE_SECONDS: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Record:
    """The Lease as it was last seen to change."""

    body: Json
    seen_at: float
    """On our clock."""

    @property
    def version(self) -> str:
        metadata = self.body.get("metadata")
        return str(metadata.get("resourceVersion", "")) if isinstance(metadata, dict) else ""

    @property
    def spec(self) -> Json:
        spec = self.body.get("spec")
        return spec if isinstance(spec, dict) else {}

    @property
    def holder(self) -> str:
        holder = self.spec.get("holderIdentity")
        return holder if isinstance(holder, str) else ""

    def number(self, key: str) -> int:
        found = self.spec.get(key)
        return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else 0


class Lease:
    """One contender."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._name = name
        # a name that two processes share by mistake, or one after the other, must not make both of them the holder
        self.identity = f"{identity[:200]}_{secrets.token_hex(4)}"
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._sleep = sleep
        self._record: _Record | None = None
        self._missing_since = float("inf")
        """When it was first seen to be gone; inf: it is there."""
        self._acts_until = float("-inf")
        self._is_stopping = False
        self._led = False
        self.transitions = 0
        """How often this process became the leader."""
        self.trouble = ""
        """Why the last look or renewal failed; "" if it did not."""

    def is_leader(self) -> bool:
        """Whether this process may act now. Ask before each write: it turns False by time alone."""
        leads = not self._is_stopping and self._clock() < self._acts_until
        if self._led and not leads:
            self._led = False
            _log.warning("No longer the leader: %s. Another operator may take over.", self.trouble or "the lease was not renewed in time")
        return leads

    @property
    def holder(self) -> str:
        """Who holds the lease, as far as is known."""
        return self._record.holder if self._record else ""

    async def run(self) -> None:
        """Contend, lead and renew, for ever."""
        while True:
            await self.step()
            await self._sleep(self._pause())

    async def step(self) -> None:
        """Look once, and take or renew the lease if that is right. Raises nothing of the API's."""
        try:
            async with asyncio.timeout(self._lease_seconds / RENEWALS_PER_LEASE):
                await self._step()
            self.trouble = ""
        except ApiError as error:  # 409 too: somebody was quicker, and the next look shows who
            self.trouble = error.reason
            self._missing_since = float("inf")  # what was not seen may have been made and deleted again
            _log.debug("The lease %s/%s could not be read or renewed: %s", self._namespace, self._name, error)
        except TimeoutError:
            self.trouble = "the API server does not answer"
            self._missing_since = float("inf")

    async def release(self) -> None:
        """Stop acting at once, and give the lease away, so that the next takes over without waiting. Bounded by `RELEASE_SECONDS`."""
        self._is_stopping = True
        record = self._record
        if record is None or record.holder != self.identity:
            return
        spec = {**record.spec, "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _stamp()}
        try:
            await self._put(record, spec, RELEASE_SECONDS)
        except ApiError as error:
            _log.warning("The lease was not given back (%s): the next operator waits %g s for it.", error.reason, self._lease_seconds)

    # --- one step

    async def _step(self) -> None:
        sent_at = self._clock()
        acted = sent_at < self._acts_until
        exists = await self._look()
        record = self._record
        if record is None or not exists:
            # deleted under everybody's feet: whoever holds it may not know yet, and acts for a while (without a memory of it, it is a
            # first start)
            if record is not None and not acted and self._clock() < self._missing_since + self._longest_seconds(record):
                return
            body = {**self._head(), "spec": self._spec(transitions=record.number("leaseTransitions") + 1 if record else 0)}
            answer = await self._api.request("POST", self._path, body=body, timeout_seconds=self._timeout())
        elif record.holder == self.identity:
            spec = {**record.spec, "renewTime": _stamp(), "leaseDurationSeconds": self._whole_seconds()}
            answer = await self._put(record, spec, self._timeout())
        elif not record.holder or self._clock() >= record.seen_at + self._longest_seconds(record):
            answer = await self._put(record, self._spec(transitions=record.number("leaseTransitions") + 1), self._timeout())
        else:
            return
        self._won(answer, sent_at)

    async def _look(self) -> bool:
        """Read the record; False: there is none (any more). Whoever is not its holder does not act, whatever was confirmed before."""
        try:
            body = await self._api.request("GET", f"{self._path}/{self._name}", timeout_seconds=self._timeout())
        except ApiError as error:
            if error.status != GONE:
                raise
            self._acts_until = float("-inf")
            if self._missing_since == float("inf"):
                self._missing_since = self._clock()
            return False
        self._missing_since = float("inf")
        seen = _Record(body, self._clock())
        if self._record is None or seen.version != self._record.version:
            self._record = seen
        if seen.holder != self.identity:
            self._acts_until = float("-inf")
        return True

    async def _put(self, record: _Record, spec: Json, timeout_seconds: float) -> Json:
        body = {**self._head(), "spec": spec}
        body["metadata"]["resourceVersion"] = record.version
        return await self._api.request("PUT", f"{self._path}/{self._name}", body=body, timeout_seconds=timeout_seconds)

    def _won(self, body: Json, sent_at: float) -> None:
        self._record = _Record(body, self._clock())
        self._acts_until = sent_at + self._lease_seconds * ACTING_SHARE
        if not self._led:
            self._led = True
            self.transitions += 1
            _log.info("The leader now is this process, %s.", self.identity)

    def _pause(self) -> float:
        if self._led and not self.trouble:
            return self._lease_seconds / RENEWALS_PER_LEASE * random.uniform(0.9, 1.0)  # noqa: S311  # spreads load, hides nothing
        look = self._lease_seconds / LOOKS_PER_LEASE
        if self._record is not None and self._record.holder:
            look = min(look, max(self._record.seen_at + self._longest_seconds(self._record) - self._clock(), look / 10))
        return look * random.uniform(0.9, 1.0)  # noqa: S311

    def _longest_seconds(self, record: _Record) -> float:
        """How long a holder that we hear nothing of may believe in its lease."""
        return min(max(float(record.number("leaseDurationSeconds")), self._lease_seconds), LONGEST_LEASE_SECONDS)

    def _timeout(self) -> float:
        return self._lease_seconds / RENEWALS_PER_LEASE

    def _whole_seconds(self) -> int:
        return max(1, round(self._lease_seconds))

    def _head(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
        }

    def _spec(self, transitions: int) -> Json:
        now = _stamp()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._whole_seconds(),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
