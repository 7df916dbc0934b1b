"""What happens after a fault: a pure decision over the fault, what has happened before, and the policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import DIVERGED, HANG, NO_PROGRESS, PREEMPTED, RANK_CRASHED, USER_ERROR, Exit
from ddp_trainer.resilience.fault import FAILED_COLLECTIVE, Fault

IDENTICAL_ERRORS = 3
"""An exception that comes back this often at the same step with the same words is a bug in the code: more restarts only hide it."""
FINAL_CAUSES = frozenset({"config_error", "data_error", "diverged"})
"""The same again would fail the same way; but see `HOST_CAUSES`."""
HOST_CAUSES = frozenset({"config_error", "data_error"})
"""Of another node than node 0, in a run that has a checkpoint, they say that its host lacks something (a mount, a GPU): a crash there."""
COUNTED_CAUSES = frozenset({"crash", "user_error", "hang", FAILED_COLLECTIVE}) | HOST_CAUSES
"""What has a budget: for all of them restarts without a newer checkpoint, for dead ranks and for hangs also restarts in all."""


@dataclass(frozen=True)
class Record:
    """What the judge remembers of the faults so far. `durable_step` is the newest one when the last fault was judged."""

    crashes: int = 0
    without_progress: int = 0
    durable_step: int = -1
    last_error: tuple[int, str] = (-1, "")
    """Step and words of an exception, step and cause of a hang or a failed collective."""
    identical_errors: int = 0
    hangs: int = 0
    skips: int = 0


@dataclass(frozen=True)
class Verdict:
    """Restart the ranks (`leave` is None), or end all agents with this exit, for this reason."""

    leave: Exit | None
    reason: str
    record: Record


def judge(fault: Fault, durable_step: int, record: Record, policy: FaultToleranceSection) -> Verdict:
    """Decide on one fault. Lost nodes are not counted against the run: their bound is the wait for the node."""
    if fault.cause == DIVERGED.cause and policy.on_divergence == "skip" and record.skips < policy.max_skips:
        return Verdict(None, fault.sentence, replace(record, skips=record.skips + 1))
    if fault.cause == PREEMPTED.cause and policy.on_preemption == "leave":
        return Verdict(PREEMPTED, fault.sentence, record)
    if _is_final(fault, durable_step, record):
        return Verdict(fault.leaves_with, fault.sentence, record)
    if fault.cause not in COUNTED_CAUSES:
        return Verdict(None, fault.sentence, record)
    progressed = durable_step > record.durable_step
    is_exception, is_hang = fault.cause == "user_error", fault.cause == "hang"
    is_crash = is_exception or fault.cause == "crash" or fault.cause in HOST_CAUSES
    error = (fault.step, fault.message if is_exception else fault.cause)
    counted = replace(
        record,
        crashes=record.crashes + is_crash,
        hangs=record.hangs + is_hang,
        without_progress=1 if progressed else record.without_progress + 1,
        durable_step=durable_step,
        last_error=(-1, "") if fault.cause == "crash" else error,
        identical_errors=record.identical_errors + 1 if error == record.last_error else 1,
    )
    if is_exception and counted.identical_errors >= IDENTICAL_ERRORS:
        return Verdict(USER_ERROR, f"{fault.sentence} (the same error {counted.identical_errors} times)", counted)
    if counted.without_progress > policy.no_progress_restarts:
        reason = f"{fault.sentence} ({policy.no_progress_restarts} restarts without a newer checkpoint)"
        return Verdict(_without_progress(fault, counted, policy), reason, counted)
    if is_crash and counted.crashes > policy.max_restarts:
        leave = USER_ERROR if is_exception else RANK_CRASHED
        return Verdict(leave, f"{fault.sentence} (all {policy.max_restarts} restarts used up)", counted)
    if is_hang and counted.hangs > policy.max_hangs:
        return Verdict(HANG, f"{fault.sentence} (all {policy.max_hangs} restarts after hangs used up)", counted)
    return Verdict(None, fault.sentence, counted)


def _is_final(fault: Fault, durable_step: int, record: Record) -> bool:
    """Whether more restarts cannot help: one bad replacement must not end a run that has come far with the same configuration and data.

    The fault's own step says little: memory for snapshots, for one, is first missed after some steps, and then by all nodes.
    """
    has_trained = max(durable_step, record.durable_step) > 0
    return fault.cause in FINAL_CAUSES and not (fault.cause in HOST_CAUSES and has_trained and fault.node != 0)


def _without_progress(fault: Fault, counted: Record, policy: FaultToleranceSection) -> Exit:
    """How to leave when restarts here have brought no newer checkpoint: what may be the machines' is tried on others first."""
    enough = 2 * (policy.no_progress_restarts + 1)
    if fault.cause in HOST_CAUSES:
        return fault.leaves_with if counted.without_progress >= enough else RANK_CRASHED
    # of a hang or a failed collective only as many again at the same step are a bug
    return NO_PROGRESS if fault.cause == "crash" or counted.identical_errors >= enough else fault.leaves_with
