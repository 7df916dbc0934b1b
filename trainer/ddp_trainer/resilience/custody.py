"""The agent's care for its node's snapshots: they outlive the ranks, and on node 0 a process of their own makes them durable.

Ranks write into the memory and ask for durability there; the agent starts the writer, starts it again when it dies, reads its report,
and on the way out has the newest snapshot written, without the ranks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.config import RunConfig
from ddp_trainer.resilience.persister import END_SIGNAL, LASTING, MIRROR_SECONDS
from ddp_trainer.resilience.zygote import Death, Zygote, ZygoteError
from ddp_trainer.telemetry.facts import FactsPage

_log = logging.getLogger(__name__)

WRITER_TARGET = "ddp_trainer.resilience.persister:main"
LOOK_SECONDS = 0.05
END_SECONDS = MIRROR_SECONDS + 2.0
"""How long the writer may take to end before it is killed."""
KILL_SECONDS = 2.0
"""How long it may take to die of that, before it counts as stuck in a dead file system and is left behind."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
"""Before the third start of a writer that dies and dies again, and at most: without a pause it would be forked 20 times a second."""
HEALTHY_SECONDS = 60.0
"""A writer that lived so long, or wrote something, died for reasons of its own: it is replaced at once."""
ALARM_DEATHS = 3
"""So many in a row are said in the diary."""


def _no_alarm(message: str) -> None:
    """Nobody listens."""


def pause_seconds(deaths: int) -> float:
    """Before the next start, after so many deaths in a row: none after the first, then each time twice as long, up to the longest."""
    return 0.0 if deaths <= 1 else min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 2, 10))


class Custody:
    """One per agent. `config` is None on all nodes but the one that has the run directory; `alarm` is told of writers that keep dying."""

    def __init__(
        self,
        memory: SnapshotMemory,
        page: FactsPage,
        writer_slot: int,
        zygote: Zygote,
        config: RunConfig | None,
        environment: Mapping[str, str],
        log: Path | None,
        alarm: Callable[[str], None] = _no_alarm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory = memory
        self._page = page
        self._slot = writer_slot
        self._zygote = zygote
        self._config = config
        self._environment = environment
        self._log = log
        self._alarm = alarm
        self._clock = clock
        self._writer: int | None = None
        self._deaths_in_a_row = 0
        self._written = -1
        """How much had been written when the last writer died."""
        self._started_at = 0.0
        self._start_at = math.inf
        """When a dead writer is replaced."""

    def start_writer(self) -> None:
        """On node 0: the process that makes snapshots durable. Asks the zygote, so it returns when torch is imported."""
        if self._config is None or self._writer is not None:
            return
        arguments = {
            "memory": self.memory.descriptor,
            "config": self._config.model_dump(mode="json"),
            "page": str(self._page.path),
            "slot": self._slot,
        }
        self._started_at, self._start_at = self._clock(), math.inf
        self._writer = self._zygote.spawn(WRITER_TARGET, arguments, self._environment, self._log, "ddp-writer", is_deaf=True)

    def look(self) -> None:
        """Replace a writer that has died, when its pause is over."""
        if self._writer is None and self._clock() >= self._start_at:
            self.start_writer()

    def close(self, left_seconds: Callable[[], float] = lambda: END_SECONDS) -> None:
        """Have the writer end, its last copy to a second home made, and wait for that: it must not outlive the page that it reports to.

        `left_seconds()`: how long this may still take, asked again and again, since a signal may come meanwhile; at most `END_SECONDS`.
        """
        deadline = time.monotonic() + END_SECONDS
        with contextlib.suppress(ZygoteError):  # it has died with the zygote
            while self._writer is not None and time.monotonic() < deadline + KILL_SECONDS:
                is_late = time.monotonic() >= deadline or left_seconds() <= 0
                deadline = min(deadline, time.monotonic()) if is_late else deadline
                self._zygote.kill(self._writer, signal.SIGKILL if is_late else END_SIGNAL)
                if any(death.pid == self._writer for death in self._zygote.deaths(LOOK_SECONDS)):
                    self._writer = None

    def is_writers(self, death: Death) -> bool:
        """Whether it is the writer that has died; then there is a new one, which goes on with what was asked for.

        At once, or after a pause where one after the other dies without having written anything.
        """
        if death.pid != self._writer:
            return False
        self._writer = None
        written, lived_seconds = int(self.report().get("count", 0)), self._clock() - self._started_at
        in_a_row = written == self._written and lived_seconds < HEALTHY_SECONDS
        self._deaths_in_a_row, self._written = self._deaths_in_a_row + 1 if in_a_row else 1, written
        self._start_at = self._clock() + pause_seconds(self._deaths_in_a_row)
        if self._deaths_in_a_row == ALARM_DEATHS:
            how = f"by signal {-death.code}" if death.code < 0 else f"with exit code {death.code}"
            sentence = (
                f"the background writer has died {ALARM_DEATHS} times in a row without writing anything, the last time {how}; it is "
                f"started again at most every {LONGEST_PAUSE_SECONDS:.0f} s, and training goes on without new checkpoints; see writer.log"
            )
            _log.warning("%s", sentence)
            self._alarm(sentence)
        self.look()
        return True

    def report(self) -> dict[str, Any]:
        """What the writer said last: `checkpoint`, totals, and `failed` while the newest request cannot be served."""
        return self._page.read(self._slot) or {}

    def write_newest(self, bound_seconds: float, while_waiting: Callable[[], None]) -> bool:
        """Have the newest snapshot on disk, if it is not there; False if that did not work within the bound.

        A disk that was full a second ago may not be now, so that a failure ends this at once only if it is one of the `LASTING`; or, where
        there is a second home, if it is heard of when what is left is the time to copy there what did get to disk: not an older one, since
        the next try may be under way and succeed. The previous checkpoint stays intact, whatever happens.
        """
        newest = self.memory.newest()
        if self._config is None or newest is None:
            return True
        report = self.report()
        has_written = int(report.get("number", 0)) >= self.memory.wanted_number()  # not while this step's last metrics are on the way
        if has_written and int((report.get("checkpoint") or {}).get("step", -1)) >= newest.step:
            return True
        if self.memory.wanted_number() < newest.number:
            self.memory.want_durable(newest)
        deadline = time.monotonic() + bound_seconds
        to_copy_seconds = min(MIRROR_SECONDS, bound_seconds / 2) if self._config.checkpoint.mirror_url else 0.0
        known = 0
        while (now := time.monotonic()) < deadline:
            report = self.report()
            if int(report.get("number", 0)) >= newest.number:
                return True
            failed = report.get("failed") or {}
            tries = int(failed["times"]) if failed.get("number") == newest.number else 0
            if tries and (failed["cause"] in LASTING or (tries > known and now >= deadline - to_copy_seconds)):
                return False
            known = tries
            while_waiting()
            self.look()
            for death in self._zygote.deaths(LOOK_SECONDS):
                self.is_writers(death)  # which starts another
        return False
