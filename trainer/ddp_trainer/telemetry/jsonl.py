"""Files of one JSON object per line that several processes append to and any process may be killed while writing.

Promise: `append` writes a record with one `write` call on an O_APPEND descriptor, so lines of several writers never mix, and it never
raises and never fails a run: a full disk is warned of once and the record is lost. `read_lines` skips what a crash tore.

It does not sync: these files describe a run, they are not its state.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class JsonLines:
    """An append-only file; the file is opened, and its folder made, at the first record."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._mend = False  # the file may end in a torn line: begin with a line break
        self._warned = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. May block as long as the file system does; never raises for what the file system does."""
        line = (json.dumps(finite(record), separators=(",", ":"), default=str) + "\n").encode()
        try:
            if self._descriptor is None:
                self._open()
            data = b"\n" + line if self._mend else line
            assert self._descriptor is not None
            self._mend = os.write(self._descriptor, data) != len(data)
            if self._mend:
                raise OSError(errno.ENOSPC, "only part of a line could be written")  # noqa: TRY301 (one handler for all the ways a disk says no)
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("cannot write to %s: %s; the run goes on without this record, free space there", self.path, error.strerror)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._mend = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete records in file order; none if there is no file. Torn or foreign lines are skipped."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None: JSON has no word for them, and strict readers refuse Python's."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
