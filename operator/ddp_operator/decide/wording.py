"""Foreign texts and times made fit for a status: one line, no control characters, not longer than the API takes, never out of range."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

MESSAGE_CHARS = 1024
"""Of a condition's or a phase's message."""
REASON_CHARS = 64
LEDGER_CHARS = 256
"""Of a ledger entry's message."""
MAX_COUNT = 2**53
"""The largest whole number that every JSON reader keeps."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_EARLIEST_SECONDS = 0.0
_LATEST_SECONDS = 253_402_300_799.0
"""The last second of the year 9999: later ones no `datetime` holds."""


def cut(text: object, limit: int = MESSAGE_CHARS) -> str:
    """Any value as one clean line of at most `limit` characters; what is left out shows as an ellipsis.

    Surrogates are replaced: JSON may carry half a pair, which no UTF-8 can, and then no status could be written again.
    """
    line = str(text)
    if len(line) <= limit and line.isascii() and line.isprintable():  # nearly all are
        return line.strip()
    line = _CONTROL.sub(" ", line[: 4 * limit].encode(errors="replace").decode()).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def count(value: float) -> int:
    """A number as the API's counts are: 0 to 2**53, and 0 for what is none."""
    return int(min(max(value, 0), MAX_COUNT)) if value == value else 0  # noqa: PLR0124 (no NaN; isnan() refuses huge integers)


def moment(seconds: float) -> datetime:
    """Seconds since the epoch, whatever they are, as a time to the second."""
    sane = _EARLIEST_SECONDS if math.isnan(seconds) else min(max(seconds, _EARLIEST_SECONDS), _LATEST_SECONDS)
    return datetime.fromtimestamp(math.floor(sane), UTC)


def stamp(at: datetime) -> str:
    """For sentences: 2026-08-01T12:00:00Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at.year > 1 else "long ago"
