"""A clock that jumps between two looks at a run: a host that slept, or a clock that was set. That is no silence of the run.

Else one look after it would restart a healthy gang; and after a clock that was set back a hang would not be seen until it is there again.
"""

from __future__ import annotations

from dataclasses import replace

from ddp_operator.decide.facts import ProgressLook

TIMES = ("heard_at", "answered_at", "unanswered_since")


def jump_seconds(before: float, asked_at: float, longest_seconds: float) -> float:
    """What the clock went back between two requests, or ahead by more than any pause between them; 0.0 if there was none before.

    Args:
        before: when the last one began; 0: never.
        asked_at: when the next one begins.
        longest_seconds: so much of the time between may count as the silence of who is asked.
    """
    passed = asked_at - before
    return passed - min(max(passed, 0.0), longest_seconds) if before else 0.0


def with_times_moved(look: ProgressLook, pod_uid: str, asked_at: float, longest_seconds: float) -> ProgressLook:
    """The last look, its times moved by what the clock has jumped since then.

    What was heard of a pod before this one does not come nearer: it would count as heard of this one.
    """
    moved = jump_seconds(look.asked_at, asked_at, longest_seconds)
    if not moved:
        return look
    names = TIMES if moved < 0 or look.pod_uid == pod_uid else ("unanswered_since",)
    return replace(look, **{name: at + moved for name in names if (at := getattr(look, name))})
