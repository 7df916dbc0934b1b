"""The end of a run waits until its last state is on disk: else all that was trained since the checkpoint before is lost with the memory.

A full disk may be freed and a network volume may come back, so a write that fails is tried again until the time is over, however often
that is. It is said once, with what to do and until when. A write that gives no answer at all is the watchdog's business, which has the
same limit and calls it a hang: here each failed try is passed on as a sign of life.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ddp_trainer.errors import DataError, DivergedError
from ddp_trainer.telemetry.recorder import Recorder

WAIT_SECONDS = 0.02
"""Between two looks at what the writer says: what the end of a run may be late by."""


def await_durable(
    number: int,
    step: int,
    heard: Callable[[], Mapping[str, Any]],
    recorder: Recorder,
    limit_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return as soon as the background writer has served the request `number`, which is the state of `step`.

    Args:
        number: of the request.
        step: for people.
        heard: what the writer said last.
        recorder: is told what is waited for.
        limit_seconds: from now on; `fault_tolerance.save_limit_seconds`.
        clock: in seconds, that only goes forward.
        sleep: for so many seconds.

    Raises:
        DataError: it cannot be written, and the time is over.
        DivergedError: it is not finite, which no later try changes.
    """
    deadline, note, known = clock() + limit_seconds, "", 0
    while True:
        report = heard()
        if int(report.get("number", 0)) >= number:
            return
        failed = report.get("failed") or {}
        tries = int(failed["times"]) if failed.get("number") == number else 0
        if tries > known:  # not what was heard before: at the deadline a try may be under way that succeeds
            known = tries
            _assert_mends(failed, left_seconds=deadline - clock(), limit_seconds=limit_seconds)
            note = note or _tell(step, failed["message"], deadline - clock(), recorder)
        recorder.phase("saving", note, done=tries)
        sleep(WAIT_SECONDS)


def _assert_mends(failed: Mapping[str, Any], left_seconds: float, limit_seconds: float) -> None:
    if failed["cause"] == DivergedError.exit.cause:
        raise DivergedError(failed["message"])
    if left_seconds <= 0:
        raise DataError(f"not saved within {limit_seconds:g} s, at try {failed['times']}: {failed['message']}")


def _tell(step: int, reason: str, left_seconds: float, recorder: Recorder) -> str:
    """Say it in log and diary; returns the note for what is shown of the run."""
    until = time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + left_seconds))
    recorder.alarm(
        f"training is done, but the disk cannot take its last state (step {step}): {reason}; it is tried until {until}, "
        f"and if that fails, what was trained since the checkpoint before is lost"
    )
    remedy = reason.rpartition("; ")[2]  # where all of the writer's sentences have it
    return f"the disk cannot take the last checkpoint; {remedy}: tried until {until}"
