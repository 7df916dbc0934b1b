"""A node's telemetry, driven by its agent: read the ranks' facts, serve them, and on node 0 keep `progress.json`.

`tick` is called from the agent's monitor loop and must not hold it up: it reads shared memory and composes a small document, and
everything that can block (GPU driver, file system) is done in threads of its own, whose newest result it uses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddp_trainer.errors import DdpError
from ddp_trainer.telemetry.document import Progress, parse
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.hardware import GpuReading, Gpus, Processes, ProcessReading, Readings, Sampler, StorageReading, read_storage
from ddp_trainer.telemetry.progress import Ledger, compose
from ddp_trainer.telemetry.server import StatusServer

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
COMPOSE_SECONDS = 0.2
"""As often as ranks publish; a changed ledger is shown at the next tick."""
CLOSE_SECONDS = 2.0
"""How long the last `progress.json` may take before the agent goes without it."""
LOW_STORAGE_RATIO = 0.05
"""Below this part of the volume free, a note is recorded: the next checkpoints may not fit."""


class NodeTelemetry:
    """One per agent. `run_dir` and `event_log` are given on node 0 only; `server` may be shared with nobody else."""

    def __init__(
        self, page: FactsPage, slots: int, server: StatusServer | None, run_dir: Path | None = None, event_log: EventLog | None = None
    ) -> None:
        self.progress: Progress | None = None
        """The newest document; None before the first tick."""
        self._page = page
        self._slots = slots
        self._run_dir = run_dir
        self._events = event_log
        self._document: bytes | None = None
        self._facts: list[dict[str, Any]] = []
        self._ledger: Ledger | None = None
        self._composed_at = float("-inf")
        self._counted: Ledger | None = None
        self._to_write: bytes | None = None
        self._storage_is_low = False
        self._pids: tuple[int, ...] = ()
        self._gpus, self._processes = Gpus(), Processes()
        self._machine: Sampler[tuple[tuple[GpuReading, ...], dict[int, ProcessReading]]] = Sampler("hardware", self._read_machine, ((), {}))
        self._disk: Sampler[StorageReading | None] = Sampler("disk", self._visit_disk, None)
        self._started = False
        if server is not None:
            server.progress = lambda: self._document
            server.metrics = self._render

    def tick(self, ledger: Ledger, now: float) -> None:
        """Look at the ranks and refresh what is served. Does not block; well under a millisecond for eight ranks."""
        if not self._started:
            self._start(ledger.run)
        # The agent's clocks run on by themselves; everything else in its ledger is news.
        counted = replace(ledger, training_seconds=0.0, wall_seconds=0.0)
        self._ledger = ledger
        if counted != self._counted or not 0 <= now - self._composed_at < COMPOSE_SECONDS:
            self._compose(ledger, counted, now)

    def close(self) -> None:
        """Write the last document and end the threads; waits at most twice `CLOSE_SECONDS`. The page and the server stay."""
        if self._started:
            if self._ledger and self._counted:  # what ranks said since the last look: a run that ends at once would stay in "training"
                self._compose(self._ledger, self._counted, time.time())
            self._machine.stop(CLOSE_SECONDS)
            if not self._disk.stop(CLOSE_SECONDS, work_once_more=True):
                logger.warning("%s did not take %s within %g s; going on without", self._run_dir, PROGRESS_FILE, CLOSE_SECONDS)
            self._started = False

    def _start(self, run: str) -> None:
        self._started = True
        if self._run_dir is not None:
            self.progress = last_known(self._run_dir, run)
        self._machine.start()
        self._disk.start()

    def _compose(self, ledger: Ledger, counted: Ledger, now: float) -> None:
        self._composed_at = now
        facts = [facts for slot in range(self._slots) if (facts := self._page.read(slot)) is not None]
        is_news = counted != self._counted or facts != self._facts
        self._counted, self._facts = counted, facts
        self._pids = tuple(fact["pid"] for fact in facts if isinstance(fact.get("pid"), int))
        gpus, processes = self._machine.latest
        self.progress = compose(facts, ledger, self.progress, now, Readings(gpus, processes, self._disk.latest))
        self._document = self.progress.to_bytes()
        if is_news:
            self._to_write = self._document

    def _render(self) -> str:
        from ddp_trainer.telemetry.metrics import render  # prometheus_client is loaded by the first scrape, if there is one

        return "" if self._ledger is None else render(self._facts, self._ledger, self.progress)

    def _read_machine(self) -> tuple[tuple[GpuReading, ...], dict[int, ProcessReading]]:
        return self._gpus.read(), self._processes.read(self._pids)

    def _visit_disk(self) -> StorageReading | None:
        if self._run_dir is None:
            return None
        document, self._to_write = self._to_write, None
        if document is not None:
            write_progress(self._run_dir, document)
        volume = read_storage(self._run_dir)
        is_low = volume is not None and volume.free_bytes < volume.total_bytes * LOW_STORAGE_RATIO
        if is_low and not self._storage_is_low and self._events and volume:
            self._events.append(
                "note", message=f"only {volume.free_bytes / 1e9:.1f} GB are free under {self._run_dir}; make room for checkpoints"
            )
        self._storage_is_low = is_low
        return volume


def last_known(run_dir: Path, run: str) -> Progress | None:
    """What an earlier agent of this run last knew, checkpoint included; None where that cannot be read, or is another run's."""
    with contextlib.suppress(OSError, DdpError):
        before = parse((run_dir / PROGRESS_FILE).read_bytes())
        return before if before.run == run else None
    return None


def write_progress(run_dir: Path, document: bytes) -> None:
    """Replace `progress.json` in one move; what cannot be written is warned of. May block with the file system."""
    draft = run_dir / f".{PROGRESS_FILE}.{os.getpid()}"
    try:
        draft.write_bytes(document)
        draft.replace(run_dir / PROGRESS_FILE)
    except OSError as error:
        logger.warning("cannot write %s: %s; /progress still serves it", run_dir / PROGRESS_FILE, error.strerror)
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
