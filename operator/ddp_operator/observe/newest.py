"""The newest of the times that many have, and the newest of anybody else's."""

from __future__ import annotations

from ddp_operator.observe.shelf import Key


class Newest:
    """The newest time that anybody has, and the newest of anybody else: enough to ask for the newest but one's own."""

    def __init__(self) -> None:
        self._first: tuple[float, Key | None] = (0.0, None)
        self._second: tuple[float, Key | None] = (0.0, None)

    def note(self, key: Key, at: float) -> None:
        """Somebody's time; it may stand still, and an older one than before changes nothing."""
        if at > self._first[0]:
            if self._first[1] != key:
                self._second = self._first
            self._first = (at, key)
        elif key != self._first[1] and at > self._second[0]:
            self._second = (at, key)

    def move(self, seconds: float) -> None:
        """All times so far, by what the clock has jumped."""
        self._first, self._second = ((at + seconds if key else at, key) for at, key in (self._first, self._second))

    def of_others(self, key: Key) -> float:
        """The newest of all but this one; 0: nobody else has any."""
        return (self._second if self._first[1] == key else self._first)[0]
