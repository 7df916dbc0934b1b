"""Progress as people read it: rounded where it is put down, so that what looks the same is the same and is not written again."""

from __future__ import annotations

import math

from ddp_operator.api.trainingrun import CheckpointStatus, ProgressStatus
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import ProgressFacts
from ddp_operator.decide.timing import sane
from ddp_operator.decide.wording import REASON_CHARS, count, cut, moment

LOSS_DIGITS = 4
RATE_DIGITS = 3
NOTE_CHARS = 256
MOST = 1e12
"""Numbers beyond are no epochs, rates or times of any training."""


def progress_status(document: ProgressFacts, now: float, heard_at: float | None = None) -> ProgressStatus:
    """How far it is. `heard_at` is when something about training was last heard, on our clock; without it the pod's word is taken."""
    return ProgressStatus(
        step=count(document.step),
        total_steps=count(document.total_steps),
        percent=percent(document.step, document.total_steps),
        epoch=epoch(document.epoch, document.epochs),
        loss=significant(document.loss, LOSS_DIGITS),
        accuracy=f"{100 * document.accuracy:.1f}%" if document.accuracy is not None and 0 <= document.accuracy <= 1 else "",
        samples_per_second=rate(document.samples_per_second),
        eta=spoken(document.eta_seconds) if document.eta_seconds is not None and 0 <= document.eta_seconds < MOST else "",
        world_size=count(document.world_size),
        attempt=count(document.attempt),
        note=cut(document.note, NOTE_CHARS),
        updated_at=moment(sane(heard_at or document.updated_at, now)),
    )


def checkpoint_status(document: ProgressFacts, now: float) -> CheckpointStatus | None:
    """The newest durable step; None: there is none, or nobody knows. A time that lies ahead is a wrong clock's: it becomes now."""
    if document.checkpoint_step is None:
        return None
    return CheckpointStatus(
        step=count(document.checkpoint_step),
        saved_at=moment(sane(document.checkpoint_saved_at, now)),
        bytes=count(document.checkpoint_bytes),
        verified=document.checkpoint_verified,
    )


def percent(done: int, total: int) -> int:
    """Whole percents, rounded down: 100 only when all is done; 0 where the total is not known."""
    return min(max(done, 0) * 100 // total, 100) if total > 0 else 0


def epoch(done: float, total: float) -> str:
    """As "1.2/4": rounded down, since 4.0/4 is the end; "" where neither is known."""
    if not (0 <= done < MOST and 0 <= total < MOST) or not (done or total):
        return ""
    reached = f"{math.floor(done * 10 + 1e-6) / 10:.1f}"
    return cut(f"{reached}/{round(total, 1):g}" if total else reached, REASON_CHARS)


def significant(value: float | None, digits: int) -> str:
    """So many significant digits, "" for what is none: 0.5123, 1.235e+05."""
    return f"{value:.{digits}g}" if value is not None and math.isfinite(value) else ""


def rate(value: float | None) -> str:
    """Samples per second, three digits of it that count: "12300", "97.2", "0.51"."""
    if value is None or not 0 <= value < MOST:
        return ""
    rounded = float(f"{value:.{RATE_DIGITS}g}")
    return f"{rounded:.0f}" if rounded >= 10 ** (RATE_DIGITS - 1) else f"{rounded:g}"
