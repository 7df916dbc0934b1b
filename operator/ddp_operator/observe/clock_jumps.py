"""A clock that jumps between two looks at a run: a host that slept, or a clock that was set. That is no silence of the run.

Else one look after it would restart a healthy gang; and after a clock that was set back a hang would not be seen until it is there again.
"""

from __future__ import annotations

from dataclasses import replace

from ddp_operator.decide.facts import ProgressLook

TIMES = ("heard_at", "answered_at", "unanswered_since")


def with_times_moved(look: ProgressLook, asked_at: float, longest_seconds: float) -> ProgressLook:
    """The last look, its times moved by what the clock went back since then, or ahead by more than any pause between two looks.

    Args:
        look: the last one.
        asked_at: when the next one begins.
        longest_seconds: so much of the time between may count as the run's silence.
    """
    passed = asked_at - look.asked_at
    moved = passed - min(max(passed, 0.0), longest_seconds)
    if not moved or not look.asked_at:
        return look
    return replace(look, **{name: at + moved for name in TIMES if (at := getattr(look, name))})
