"""Scalars for TensorBoard, off the critical path.

Importing TensorBoard's writer takes from 0.3 to 2 s (torch.utils.tensorboard ten times that), so a thread of its own does it at the first
value, and writes from a queue. Without the package this is off, with one line in the log.

After a resume `purge(step)` opens a new file that begins with a session mark: TensorBoard then hides what earlier files say about that
step and later ones, so that curves do not overlap.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 10_000
"""Beyond this the disk is far behind, and values are dropped rather than kept in memory."""
CLOSE_SECONDS = 10.0
"""How long `close` waits for the disk."""


class TensorBoard:
    """Writes below `folder`; nothing is imported or created before the first value."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: queue.Queue[tuple[int, dict[str, float], float] | None] = queue.Queue(QUEUE_RECORDS)
        self._purge_step: int | None = None
        self._thread: threading.Thread | None = None

    def purge(self, step: int) -> None:
        """Called before the first value of a resumed run: what was written about `step` and later ones is void."""
        self._purge_step = step

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Queue some values; never blocks."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="tensorboard", daemon=True)
            self._thread.start()
        with contextlib.suppress(queue.Full):
            self._records.put_nowait((step, dict(values), wall_time))

    def close(self) -> None:
        """Write what is queued; waits at most `CLOSE_SECONDS`."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._records.put(None, timeout=CLOSE_SECONDS)
                self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _write_all(self) -> None:
        writer: Any = None
        try:
            writer = _Writer(self._folder, self._purge_step)
        except ImportError:
            logger.info("TensorBoard files are off: the package tensorboard is not installed")
        except OSError as error:
            logger.warning("TensorBoard files are off: cannot write to %s: %s", self._folder, error.strerror)
        while (record := self._records.get()) is not None:
            if writer is None:
                continue
            try:
                writer.add(*record)
                if self._records.empty():
                    writer.flush()
            except OSError as error:
                logger.warning("TensorBoard files end here: cannot write to %s: %s", self._folder, error.strerror)
                writer = None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


class _Writer:
    """One event file. Built on TensorBoard's record format and messages only: its file layer would import TensorFlow where it finds it."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self._event: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        records: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.0"
        self._records = records.RecordWriter((folder / name).open("xb"))
        self._put(self._event.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            mark = self._event.SessionLog(status=self._event.SessionLog.START)
            self._put(self._event.Event(wall_time=time.time(), step=purge_step, session_log=mark))

    def add(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._put(self._event.Event(wall_time=wall_time, step=step, summary=summary))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
