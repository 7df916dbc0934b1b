"""Numbers and times of the pages as texts. Pure; nothing here raises for odd values."""

from __future__ import annotations

from datetime import UTC, datetime

from ddp_operator.decide.durations import spoken

NONE = "-"
"""In place of what is not known."""


def seconds_of(moment: datetime) -> float:
    """Since the epoch. A status that somebody else wrote may lack the zone: it is read as UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def ago(moment: datetime | None, now: float) -> str:
    """How long ago: "5m"; "" if it never was. The future, by another clock, is "0s"."""
    return spoken(now - seconds_of(moment)) if moment else ""


def age(since: float, now: float) -> str:
    """The same for seconds since the epoch, of which 0 means that nobody knows."""
    return spoken(now - since) if since else NONE


def stamp(moment: datetime) -> str:
    """For tables, in UTC: 11-25 10:32:34."""
    return (moment.astimezone(UTC) if moment.tzinfo and 1 < moment.year < 9999 else moment).strftime("%m-%d %H:%M:%S")  # noqa: PLR2004  # the ends of the calendar


def clock(now: float) -> str:
    """The time of day in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%H:%M:%S UTC")


def count(number: int) -> str:
    """12,345."""
    return f"{number:,}"


def or_none(text: str | None) -> str:
    """The text, or a dash."""
    return text or NONE


def size(count: int) -> str:
    """Bytes as people write them: 512 B, 9.3 GiB."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:  # noqa: PLR2004  # the step between two units
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"  # noqa: PLR2004  # no exponents
        value /= 1024
    raise AssertionError
