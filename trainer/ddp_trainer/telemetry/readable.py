"""Numbers as people read them: durations, ages, sizes, shares. Every function takes base units and returns plain ASCII."""

from __future__ import annotations

MINUTE_SECONDS = 60
HOUR_SECONDS = 3600


def duration(seconds: float | None) -> str:
    """`0:07`, `1:42`, `2:03:09`; a dash for None."""
    if seconds is None:
        return "-"
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, HOUR_SECONDS)
    return (
        f"{hours}:{rest // MINUTE_SECONDS:02d}:{rest % MINUTE_SECONDS:02d}"
        if hours
        else f"{rest // MINUTE_SECONDS}:{rest % MINUTE_SECONDS:02d}"
    )


def age(seconds: float) -> str:
    """`4 s`, `12 min`, `3 h`, `5 d`: one unit is enough to judge by. A clock that is ahead reads as now."""
    seconds = max(0.0, seconds)
    for name, size, limit in (("s", 1, 100), ("min", MINUTE_SECONDS, 100 * MINUTE_SECONDS), ("h", HOUR_SECONDS, 48 * HOUR_SECONDS)):
        if seconds < limit:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds / (24 * HOUR_SECONDS):.0f} d"


def size(count_bytes: int | None) -> str:
    """`812 KB`, `188 MB`, `1.2 GB` (decimal, as disks are sold); a dash for None."""
    if count_bytes is None:
        return "-"
    for name, unit in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count_bytes >= unit:
            value = count_bytes / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"  # noqa: PLR2004 (two digits either way)
    return f"{count_bytes} B"


def percent(ratio: float | None) -> str:
    """A ratio 0-1 as `41.2%`; a dash for None."""
    return "-" if ratio is None else f"{ratio * 100:.1f}%"


def rate(per_second: float | None) -> str:
    """`3.2`, `301`, `12,400`; a dash for None."""
    if per_second is None:
        return "-"
    return f"{per_second:.1f}" if per_second < 10 else f"{per_second:,.0f}"  # noqa: PLR2004 (two digits at least)


def counted(number: float, thing: str) -> str:
    """`1 step`, `1,234 steps`, `0.5 epochs`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing}" + ("" if number == 1 else "s")
