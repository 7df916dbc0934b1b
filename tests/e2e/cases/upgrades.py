"""Changes of a live release: a new job that resumes, never two world sizes in one; and what stays when a release goes."""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable, Iterator

from cluster import CONTEXT, CaseError, until
from inside import HOLD_LOCK
from release import MOUNT, Release
from table import Row

from cases.steps import PREEMPTED, install, left, nothing_left, uninstall

CHANGE_SECONDS = 240.0


def upgrade(release: Release) -> Iterator[Row]:
    """4 -> 8 replicas resumes; rollback; uninstalling leaves the claim alone; reinstalling resumes; keep=false leaves nothing."""
    yield from install(release, "replicas=4")
    release.follow()
    release.wait_step(25)
    yield changed(release, "upgrade 4 -> 8 replicas", 4, 8, lambda: release.upgrade("replicas=8"))
    release.wait_steps(12)
    yield changed(release, "rollback to 4", 8, 4, lambda: release.do_helm("rollback", "1"))
    release.end_fault()
    durable = max(release.durable_steps())
    yield uninstall(release)
    started = time.time()
    yield from install(release, "replicas=4", what="reinstall -> first step")
    release.follow()
    resumed = release.wait_event("resume", started)
    said = f"resumed at {resumed['step']}, {resumed['lost_steps']} steps lost"
    yield Row("reinstall", f"resumes from the claim, at >= {durable}", said, good=resumed["step"] >= durable)
    release.upgrade("checkpoint.keep=false")
    release.stop_following()
    release.do_helm("uninstall")
    started = time.time()
    nothing_left(release)
    yield Row("uninstall with checkpoint.keep=false", "nothing left", " ".join(left(release)) or "nothing", time.time() - started)


def changed(release: Release, case: str, old: int, new: int, change: Callable[[], str]) -> Row:
    """A change of the world size: it goes on from what was saved, old generations are followed by new ones, no pod differs from its job."""
    durable = max(release.durable_steps())
    sums: dict[str, int] = {}
    wrong = set(release.mixed_world(sums))
    fault = release.begin(case)
    change()
    seen = release.recovery(
        fault.started, seconds=CHANGE_SECONDS, world_size=new, meanwhile=lambda: wrong.update(release.mixed_world(sums))
    )
    release.end_fault()
    sizes = [event["world_size"] for event in release.diary.of("form", fault.started)]
    in_order = new in sizes and set(sizes[: sizes.index(new)]) <= {old} and set(sizes[sizes.index(new) :]) == {new}
    words = f"resumed at {seen.resumed}, {seen.lost} steps lost; world sizes formed {sizes}; exit codes {fault.words(release.diary.exits)}"
    if wrong:
        words += f"; {'; '.join(sorted(wrong))}"
    expected = f"resumes at >= {durable} with {new} ranks, never mixed"
    return Row(case, expected, words, seen.time - fault.started, seen.resumed >= durable and in_order and not wrong)


def overtaken(release: Release) -> Iterator[Row]:
    """An upgrade that comes while the one before waits for the run's lock: the job in between leaves at once and never trains."""
    yield from install(release, "replicas=4")
    release.follow()
    release.wait_step(15)
    durable = max(release.durable_steps())
    inside = ("python", "-u", "-c", HOLD_LOCK, f"{MOUNT}/{release.name}/lock")
    command = ["kubectl", "--context", CONTEXT, "-n", release.namespace, "exec", "-i", release.reader, "--", *inside]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _hears(holder, "waiting", 30)  # it queues in the kernel, so it is before the next master, which asks five times a second
        fault = release.begin("two upgrades in a row")
        release.upgrade("replicas=8")
        _hears(holder, "held", 150)
        between = release.job
        until("the master waits for the lock", 90, lambda: "is in use" in release.log("master-0"), pause=0.5)
        overtaken_at = time.time()
        release.upgrade("replicas=2")
        end = until("the end of the master in between", 150, lambda: release.exits_of(between).get("master-0"))
        took = end.heard - overtaken_at
        yield Row(
            "upgrade while the one before waits",
            f"it leaves with {PREEMPTED}",
            f"{end.code}: {end.message[:120]}",
            took,
            end.code == PREEMPTED,
        )
    finally:
        _let_go(holder)
    seen = release.recovery(fault.started, seconds=CHANGE_SECONDS, world_size=2)
    sizes = [event["world_size"] for event in release.diary.of("form", fault.started)]
    words = f"resumed at {seen.resumed}, {seen.lost} steps lost; world sizes formed {sizes}"
    good = seen.resumed >= durable and 8 not in sizes
    yield Row("the last upgrade wins", f"resumes at >= {durable} with 2 ranks, 8 never formed", words, seen.time - fault.started, good)


def _hears(process: subprocess.Popen[str], word: str, seconds: float) -> None:
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    if not ready or process.stdout.readline().strip() != word:
        raise CaseError(f"the holder of the lock did not say {word!r} within {seconds:.0f} s")


def _let_go(process: subprocess.Popen[str]) -> None:
    """The end of its input ends the process inside the pod, and the lock goes with that."""
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
