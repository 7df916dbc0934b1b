"""Numbers as people read them: short, with their unit, and a dash for what is not known. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

UNKNOWN = "–"  # noqa: RUF001 - an en dash is what a table shows for "nothing"
MINUTE, HOUR = 60, 3600


def duration(seconds: float | None) -> str:
    """`4.2 ms`, `420 ms`, `8.1 s`, `3 min 12 s`, `2 h 05 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds == 0 or (seconds == int(seconds) and seconds < MINUTE):
        return f"{int(seconds)} s"
    if seconds < 1:
        return f"{seconds * 1000:.{0 if round(seconds * 100) else 1}f} ms"
    if round(seconds, 1) < MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE} min" + (f" {whole % MINUTE:02d} s" if whole % MINUTE else "")
    return f"{whole // HOUR} h" + (f" {whole % HOUR // MINUTE:02d} min" if whole % HOUR >= MINUTE else "")


def percent(ratio: float | None, digits: int = 1) -> str:
    """`41.2 %`."""
    return UNKNOWN if ratio is None else f"{ratio * 100:.{digits}f} %"


def count(value: float | None) -> str:
    """`12,480`; `3.1` below ten where it is not whole."""
    if value is None:
        return UNKNOWN
    return f"{value:,.1f}" if abs(value) < 10 and value != int(value) else f"{value:,.0f}"  # noqa: PLR2004 - one digit more for small numbers


def size(value_bytes: float | None) -> str:
    """`94.3 MiB`."""
    if value_bytes is None:
        return UNKNOWN
    power = min(4, int(math.log(value_bytes, 1024))) if value_bytes >= 1 else 0
    return f"{value_bytes / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def moment(seconds_since_1970: float | None) -> str:
    """`2025-03-04 11:09:30 UTC`: the report may be read in another time zone than the run's."""
    try:
        return UNKNOWN if seconds_since_1970 is None else datetime.fromtimestamp(seconds_since_1970, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # a number that is no time
        return UNKNOWN
