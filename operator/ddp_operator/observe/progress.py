"""Asks node 0 of each training run how far it is.

What answers is a user's pod: it is asked rarely, with bounds on time and size, nothing of it is followed (redirects) or unpacked (gzip),
and one slow pod delays nobody else. A run whose node 0 does not run, or declares no port, costs nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import aiohttp

from ddp_operator.decide.facts import PodFacts, ProgressFacts, ProgressLook
from ddp_operator.observe import first_look
from ddp_operator.observe.clock_jumps import jump_seconds, with_times_moved
from ddp_operator.observe.document import MAX_BYTES, DocumentError, parse
from ddp_operator.observe.fields import text
from ddp_operator.observe.life import Life
from ddp_operator.observe.pace import stretched
from ddp_operator.observe.shelf import Key
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

AT_ONCE: Final = 50
"""Requests in flight: 1,000 runs each 10 s, of which some time out after 2 s, need about 30."""
FIRST_LOOK_SECONDS: Final = 3.0
"""New runs are first asked within this, not all at once."""
LONGEST_PAUSE_INTERVALS: Final = 3.0
"""A pod that does not answer in time is asked ever more rarely, down to this: on a lost node each request would wait for its timeout."""
COUNTED_PAUSES: Final = 2.0
"""Of the time between two looks, so many of the longest pauses may count as the run's silence."""
LOOK_AROUND_SECONDS: Final = 1.0
"""How soon a new run is noticed."""
NOTICE_SECONDS: Final = 0.25
"""How soon a run is asked whose pods have changed."""
FIRST_PAUSE_SECONDS: Final = 1.0
"""After that, it is asked again in so long, and in twice as long each time until that is the usual pause: whether training goes on is only
known once node 0 was heard after all pods ran, and for that nobody should have to wait the usual pause."""
NAME: Final = "progress scraper"
OK: Final = 200


class Unanswered(Exception):  # noqa: N818  the text says what failed
    """Why a request brought nothing."""

    def __init__(self, reason: str, *, was_slow: bool = False) -> None:
        super().__init__(reason)
        self.was_slow = was_slow


class ProgressScraper:
    """Keeps `world`'s looks at progress fresh. `clock` gives seconds since the epoch; `monotonic` is for the pauses."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        clock: Callable[[], float],
        life: Life | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._world = world
        self._settings = settings
        self._clock = clock
        self._life = life
        self._monotonic = monotonic
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  jitter is no secret
        self._due: list[tuple[float, Key]] = []
        """A row whose time is not the run's in `_scheduled` does not count any more."""
        self._scheduled: dict[Key, float] = {}
        self._eager: dict[Key, float] = {}
        """Runs whose pods have just changed: the next pause."""
        self._asked: dict[Key, tuple[str, int]] = {}
        """The uid of the pod that was asked last, and how often in a row it has not answered in time."""
        self._unproven: dict[Key, float] = {}
        """Runs that are said to hang, by an operator before this one, and have answered once: `updated_at` of that document."""
        self._asked_at = 0.0
        """When any pod was asked last."""
        self._jumps = 0
        """Jumps of the clock that were noticed between two requests."""
        self.requests = 0
        self.failures = 0

    @property
    def _interval_seconds(self) -> float:
        return stretched(self._settings.progress_seconds, self._world.asked_runs)

    @property
    def _counted_seconds(self) -> float:
        return COUNTED_PAUSES * LONGEST_PAUSE_INTERVALS * self._interval_seconds

    async def run(self) -> None:
        """Ask until cancelled."""
        if self._life is not None:
            self._life.expect(NAME, self._settings.watcher_stale_seconds)
        slots = asyncio.Semaphore(AT_ONCE)
        async with open_session(self._settings.progress_timeout_seconds) as session, asyncio.TaskGroup() as asking:
            looked_at = float("-inf")
            while True:
                if self._life is not None:
                    self._life.beat(NAME)
                # by the clock, not when all are asked: of a thousand pods that time out more get due than can be asked, which never ends
                if self._monotonic() - looked_at >= LOOK_AROUND_SECONDS:
                    looked_at = self._monotonic()
                    self._look_around()
                for key in self._world.take_gathering():
                    self._hasten(key)
                if not self._due or self._due[0][0] > self._monotonic():
                    await self._sleep(self._pause())
                    continue
                at, key = heapq.heappop(self._due)
                if self._scheduled.get(key) != at:
                    continue
                if self._world.node_zero(*key) is None:
                    self._asked.pop(key, None)
                    self._again(key)
                    continue
                await slots.acquire()  # for no longer than a request may take
                asking.create_task(self._ask_and_release(session, key, slots))

    async def ask(self, session: aiohttp.ClientSession, key: Key) -> None:
        """One look at one run, which never fails: what went wrong stands in the look."""
        pod = self._world.node_zero(*key)
        if pod is None:
            return
        asked_at = self._begin_to_ask()
        jumps = self._jumps
        self.requests += 1
        document, error, was_slow = None, "", False
        try:
            document = await fetch(session, pod, self._settings.progress_timeout_seconds)
        except Unanswered as why:
            self.failures += 1
            error, was_slow = str(why), why.was_slow
        if self._jumps != jumps:  # meanwhile, as another request has noticed, and moved all times but this one
            asked_at = self._clock()
        is_same = self._note_asked(key, pod.uid, was_slow=was_slow)
        # a time in which there was no pod to ask is long, and no jump of the clock
        longest = self._counted_seconds if is_same else float("inf")
        before = with_times_moved(self._world.look_of(*key), pod.uid, asked_at, longest)
        if document is None:
            since = before.unanswered_since if is_same else 0.0
            look = replace(before, asked_at=asked_at, error=error, unanswered_since=since or asked_at)
        else:
            # a jump that nobody has noticed yet is no part of it: all times of a look are moved by one jump, or by none
            now = asked_at + min(max(self._clock() - asked_at, 0.0), self._counted_seconds)
            heard_at = self._heard_at(key, pod, before, document, now)
            if heard_at is None:
                return
            look = ProgressLook(document=document, pod_uid=pod.uid, heard_at=heard_at, asked_at=asked_at, answered_at=now)
        self._world.put_progress(*key, look)

    def _begin_to_ask(self) -> float:
        """The clock. What it has jumped by since anybody was asked moves the newest times of all with it."""
        asked_at = self._clock()
        jump = jump_seconds(self._asked_at, asked_at, self._counted_seconds)
        self._asked_at = asked_at
        if jump:
            self._jumps += 1
            self._world.asked.move(jump)
            self._world.answered.move(jump)
        return asked_at

    def _heard_at(self, key: Key, pod: PodFacts, before: ProgressLook, document: ProgressFacts, now: float) -> float | None:
        """When training was last heard of; None: this first document proves nothing yet, the next one will."""
        if before.document is not None:
            return now if before.document.updated_at != document.updated_at else before.heard_at
        hung_since = first_look.hung_since(self._world.facts_of(*key), pod, document)
        seen = self._unproven.pop(key, None)
        if hung_since is None or seen not in {None, document.updated_at}:
            return now
        if seen is None:
            self._unproven[key] = document.updated_at
            return None
        return hung_since

    async def _ask_and_release(self, session: aiohttp.ClientSession, key: Key, slots: asyncio.Semaphore) -> None:
        try:
            await self.ask(session, key)
        finally:
            slots.release()
            self._again(key)

    def _look_around(self) -> None:
        """Schedule runs that are new, forget those that are gone."""
        self._world.asked_runs = len(self._asked)
        names = set(self._world.names())
        for key in sorted(names - self._scheduled.keys()):
            self._schedule(key, self._rng.uniform(0, FIRST_LOOK_SECONDS))
        gone = self._scheduled.keys() - names
        for key in gone:
            del self._scheduled[key]
            self._asked.pop(key, None)
            self._eager.pop(key, None)
            self._unproven.pop(key, None)
        if gone:
            self._due = [row for row in self._due if row[1] in names]
            heapq.heapify(self._due)

    def _schedule(self, key: Key, pause_seconds: float) -> None:
        self._scheduled[key] = at = self._monotonic() + pause_seconds
        heapq.heappush(self._due, (at, key))

    def _hasten(self, key: Key) -> None:
        """Ask at once, and soon again."""
        if key in self._scheduled:
            self._eager[key] = FIRST_PAUSE_SECONDS
            self._schedule(key, 0.0)

    def _again(self, key: Key) -> None:
        """Schedule the next look, with jitter, so that a thousand runs do not move in step."""
        if key not in self._scheduled:
            return
        intervals = min(2.0 ** min(self._asked.get(key, ("", 0))[1], 10), LONGEST_PAUSE_INTERVALS)
        usual = pause = self._interval_seconds * intervals
        if key in self._eager:
            pause = min(self._eager[key], usual)
            self._eager[key] *= 2.0
            if self._eager[key] >= usual:
                del self._eager[key]
        self._schedule(key, pause * self._rng.uniform(0.85, 1.15))

    def _pause(self) -> float:
        next_due = self._due[0][0] - self._monotonic() if self._due else LOOK_AROUND_SECONDS
        return min(max(next_due, 0.01), NOTICE_SECONDS)

    def _note_asked(self, key: Key, uid: str, *, was_slow: bool) -> bool:
        """Whether it is the pod that was asked before, with none and no time without one in between."""
        known_uid, times = self._asked.get(key, ("", 0))
        is_same = known_uid == uid
        self._asked[key] = (uid, (times if is_same else 0) + 1 if was_slow else 0)
        return is_same


def open_session(timeout_seconds: float) -> aiohttp.ClientSession:
    """A session that keeps nothing: no cookies, no connections, no proxy from the environment; nothing is unpacked."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        auto_decompress=False,
        trust_env=False,
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "ddp-operator"},
        read_bufsize=MAX_BYTES // 4,
    )


async def fetch(session: aiohttp.ClientSession, pod: PodFacts, timeout_seconds: float) -> ProgressFacts:
    """What the pod says.

    Raises:
        Unanswered: in one sentence, why there is nothing.
    """
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    url = f"http://{host}:{pod.progress_port}/progress"
    try:
        async with session.get(url, allow_redirects=False) as answer:
            refusal = _refusal(answer)
            if refusal:
                answer.close()
                raise Unanswered(f"{url} {refusal}")  # noqa: TRY301  told like every other failure
            body = bytearray()
            while len(body) <= MAX_BYTES and (chunk := await answer.content.read(MAX_BYTES + 1 - len(body))):
                body += chunk
            if len(body) > MAX_BYTES:
                answer.close()
            return parse(bytes(body))
    except DocumentError as error:
        raise Unanswered(f"{url} serves no progress document: {error}") from None
    except TimeoutError:
        raise Unanswered(f"{url} did not answer within {timeout_seconds:g} s", was_slow=True) from None
    except Unanswered:
        raise
    except aiohttp.ClientConnectorError as error:
        is_refused = isinstance(error.os_error, ConnectionRefusedError)
        why = "connection refused" if is_refused else text(str(error), 160)
        raise Unanswered(f"{url} cannot be read: {why}") from None
    except Exception as error:  # one user's pod must not end the operator, whatever it makes the HTTP library raise
        raise Unanswered(f"{url} cannot be read: {type(error).__name__}: {text(str(error), 160)}") from None


def _refusal(answer: aiohttp.ClientResponse) -> str:
    """Why an answer is not even read; "" if it is."""
    if answer.status != OK:
        return f"answered {answer.status}; is this port the trainer's telemetry?"
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        return "sent a packed answer, which is not unpacked here"
    return ""
