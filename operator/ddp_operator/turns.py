"""Whose turn it is: two queues, each in the order of its coming: runs that have changed, and those that time, or mere numbers, make due.

Each queue has workers of its own, so that neither starves the other: a thousand renewals, each of which a slow server takes a second for,
do not hold up a change.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from typing import Final

Key = tuple[str, str]
"""Namespace and name."""

RENEWAL_SPREAD: Final = 1.3
"""Numbers are renewed after one to so many times the shortest pause: after a start all runs are looked at together, and would stay so."""


class Turns:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._changed: dict[Key, float] = {}
        """Since when; the oldest first."""
        self._timed: dict[Key, float] = {}
        """The same of those whose time has come."""
        self._numbers_at: dict[Key, float] = {}
        """When the numbers of a run may be looked at again."""
        self.due: dict[Key, float] = {}
        """When time alone, or the end of a pause, gives a run its turn."""

    def clear(self) -> None:
        """Nobody waits, for nothing."""
        for table in (self._changed, self._timed, self._numbers_at, self.due):
            table.clear()

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._numbers_at.pop(key, None)

    def change(self, key: Key, now: float) -> None:
        """It has changed."""
        self._changed.setdefault(key, self._timed.pop(key, now))

    def move(self, key: Key, now: float) -> None:
        """Only its numbers have."""
        self.due[key] = min(max(now, self._numbers_at.get(key, now)), self.due.get(key, float("inf")))

    def looked_at(self, key: Key, now: float, look_again_seconds: float, renewal_seconds: float) -> None:
        """It was; when to look again without being called, and how soon at the earliest for the sake of its numbers."""
        self.due[key] = now + look_again_seconds
        self._numbers_at[key] = now + renewal_seconds * random.uniform(1.0, RENEWAL_SPREAD)  # noqa: S311

    def wait_until(self, key: Key, at: float) -> None:
        """It has failed: whatever gave it a turn meanwhile, it has none before that, or a round that takes long would cost the pause."""
        self._changed.pop(key, None)
        self._timed.pop(key, None)
        self.due[key] = at

    def pass_on(self, now: float, failed: Collection[Key] = ()) -> None:
        """Let time pass: what is due by now waits for its turn. What has `failed` may have been a change, and counts as one."""
        for key in [key for key, at in self.due.items() if at <= now]:
            del self.due[key]
            if key in failed:
                self.change(key, now)
            elif key not in self._changed:
                self._timed.setdefault(key, now)

    def take_changed(self, busy: Collection[Key]) -> tuple[Key, float] | None:
        """The next run that has changed and is not busy, and since when it waits; None: nobody."""
        return self._take(self._changed, busy)

    def take_timed(self, busy: Collection[Key]) -> tuple[Key, float] | None:
        """The same of those that are only due."""
        return self._take(self._timed, busy)

    def _take(self, queue: dict[Key, float], busy: Collection[Key]) -> tuple[Key, float] | None:
        key = next((key for key in queue if key not in busy), None)
        if key is None:
            return None
        self.due.pop(key, None)
        return key, queue.pop(key)

    def since(self, but: Collection[Key]) -> Iterable[float]:
        """Since when runs wait for their turn, but for these."""
        return (at for queue in (self._changed, self._timed) for key, at in queue.items() if key not in but)

    def pause_seconds(self, now: float) -> float:
        """Until the next is due; infinity: none is."""
        return max(0.0, min(self.due.values(), default=float("inf")) - now)
