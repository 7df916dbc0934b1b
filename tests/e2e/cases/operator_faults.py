"""The operator is hit itself: killed at random moments, its leader killed, in the middle of what it does."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster import CaseError, until
from kernel import freeze, kill
from release import Release
from table import Row

from cases.operator_acts import HUNG_AFTER_SECONDS
from cases.operator_steps import (
    KNOWN_SECONDS,
    TRAINS_SECONDS,
    Story,
    generation,
    leader,
    operators,
    set_policy,
    status_of,
    suspend,
    suspended,
    trains,
)
from cases.steps import GONE_SECONDS

KILLS = 50
SEED = 6
LONGEST_LIFE_SECONDS = 9.0
"""Of an operator between two kills; with a lease of 3 s about half of them get to lead."""
LEASE_SECONDS = 3
LEFT_ALONE_SECONDS = 40.0
"""For so long a user's pause must last, while operators come and go."""
TAKEOVER_SECONDS = 20.0


def kills(release: Release) -> Iterator[Row]:
    """50 random kills of the operator while two runs lose a pod, hang, and are paused by a user: nothing is done twice, lost or undone."""
    other = Release(release.namespace, name="ddp-other")
    started, short = time.time(), "job.terminationGracePeriodSeconds=15"
    lease = ("operator.extraEnv[0].name=DDP_OPERATOR__LEASE_SECONDS", f"operator.extraEnv[0].value={LEASE_SECONDS}")
    text = tuple(word for pair in lease for word in ("--set-string", pair))
    release.install("replicas=2", short, more=text)
    other.install("replicas=2", short, "operator.enabled=false", "trainingRun.enabled=true")
    with Story(release) as first, Story(other) as second:
        yield trains(first, "the first run", started)
        yield trains(second, "the second run", started)
        for story in (first, second):
            story.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0)
        for one in (release, other):
            set_policy(one, hungAfter=f"{HUNG_AFTER_SECONDS}s")
        before = {one.name: generation(one) for one in (release, other)}
        ledgers = {one.name: Ledger(one) for one in (release, other)}
        killer = Killer(release)
        try:
            yield from _trouble(release, other, first, second, killer)
            until(f"{KILLS} kills", 300, lambda: killer.count >= KILLS or None, pause=1)
        finally:
            killer.stop()
            for ledger in ledgers.values():
                ledger.stop()
        yield Row("kills", f"{KILLS}, each of a living operator", killer.words, good=killer.count >= KILLS)
        at = time.time()
        for story in (first, second):
            story.wait("Running, with a step", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=at)
        for one, pauses in ((release, 1), (other, 2)):  # a gang restart; and one more of the user's
            yield _after(one, before[one.name], pauses, ledgers[one.name])


def _trouble(release: Release, other: Release, first: Story, second: Story, killer: Killer) -> Iterator[Row]:
    """While operators die: a worker is deleted, a user pauses and resumes, and both gangs stand still for once."""
    at = time.time()
    release.kubectl("delete", "pod", f"{release.job}-worker-0", "--wait=false")
    paused = suspend(other, wish=True)
    until("the deletion in the ledger", 4 * KNOWN_SECONDS, lambda: status_of(release).get("ledger"))
    second.wait_phase("Suspended", KNOWN_SECONDS + GONE_SECONDS, since=paused)
    undone = 0
    while time.time() < paused + LEFT_ALONE_SECONDS:
        undone += not suspended(other)
        time.sleep(0.5)
    yield Row("a user's pause", f"lasts {LEFT_ALONE_SECONDS:.0f} s", f"undone in {undone} looks", time.time() - paused, not undone)
    resumed = suspend(other, wish=False)
    for story, since in ((first, at), (second, resumed)):
        story.wait("Running", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=since)
    at = time.time()
    for one in (release, other):
        killer.holds = True  # a hang is known by node 0's silence towards one operator, for the whole bound
        for pod in one.pods():
            freeze(pod)
        until(f"an intent for {one.name}", HUNG_AFTER_SECONDS + 4 * KNOWN_SECONDS, partial(_is_meant, one))
        killer.holds = False
        until(f"the restart of {one.name}, done", 300, partial(_restarted, one), pause=1)
    yield Row("each gang is frozen once", "restarted, by operators that die", f"{first.words(at)}; {second.words(at)}", time.time() - at)


def _after(release: Release, before: int, pauses: int, ledger: Ledger) -> Row:
    """What must be true of a run: as many pauses as there were reasons, no open intent, and a ledger that only grew."""
    status = status_of(release)
    entries = [f"{entry['cause']} {entry.get('action', '')}".strip() for entry in status["ledger"]]
    restarts, pairs = status["restarts"]["byOperator"], generation(release) - before
    good = restarts == 1 and pairs == 2 * pauses and "intent" not in status and not suspended(release)
    good = good and sum(entry.endswith("GangRestart") for entry in entries) == 1 and not ledger.broken
    words = f"{restarts} by the operator, generation +{pairs}, ledger {entries}, in {ledger.looks} looks {ledger.broken or 'it only grew'}"
    return Row(f"{release.name} afterwards", f"1 restart, generation +{2 * pauses}, ledger intact, not suspended", words, good=good)


def leader_killed(release: Release) -> Iterator[Row]:
    """Two operators: the leader's pod is killed while it restarts a gang; the other leads within 20 s, and finishes it, once."""
    started = time.time()
    release.install("replicas=2", "operator.replicas=2", "job.terminationGracePeriodSeconds=15")
    with Story(release) as story:
        yield trains(story, "before", started)
        story.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0)
        until("two operators that are ready", 60, lambda: len([pod for pod in operators(release) if _ready(pod)]) == 2)
        set_policy(release, hungAfter=f"{HUNG_AFTER_SECONDS}s")
        before, durable = generation(release), story.last.durable
        for pod in release.pods():
            freeze(pod)
        until("a job that the operator has paused", 2 * HUNG_AFTER_SECONDS + 5 * KNOWN_SECONDS, lambda: suspended(release))
        at, old = time.time(), leader(release)
        kill(next(pod for pod in operators(release) if old.startswith(pod["metadata"]["name"])), "ddp-operator")
        release.kubectl("delete", "pod", old.rpartition("_")[0] or old, "--grace-period=0", "--force")
        new = until("another leader", 2 * TAKEOVER_SECONDS, lambda: name if (name := leader(release)) != old else None)
        took = time.time() - at
        expected = f"another leads in < {TAKEOVER_SECONDS:.0f} s"
        yield Row("the leader is killed", expected, f"{old} -> {new}", took, slow=took >= TAKEOVER_SECONDS)
        story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step >= durable, since=at)
        status, pairs = status_of(release), generation(release) - before
        good = status["restarts"]["byOperator"] == 1 and pairs == 2 and not suspended(release)
        words = f"{story.words(at)}; {status['restarts']['byOperator']} restart, generation +{pairs}"
        yield Row("its restart", "finished once: generation +2", words, time.time() - at, good)


def _is_meant(release: Release) -> bool:
    return "intent" in status_of(release)


def _restarted(release: Release) -> bool:
    return bool(status_of(release)["restarts"]["byOperator"])


def _ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


class Background:
    """Something that is done again and again beside a case, until `stop`."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.trouble = ""
        self._step = step
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; waits for the step at work."""
        self._stopped.set()
        self._thread.join(60)

    def pause(self, seconds: float) -> None:
        """Within a step; shorter at the end."""
        self._stopped.wait(seconds)

    def _go_on(self) -> None:
        while not self._stopped.is_set():
            try:
                self._step()
            except CaseError as error:
                self.trouble = str(error)
                self._stopped.wait(0.5)


class Ledger:
    """Looks at a run's ledger twice a second: an entry that was there stays, with its time and its cause."""

    def __init__(self, release: Release) -> None:
        self.looks, self.broken = 0, ""
        self._release = release
        self._before: list[tuple[str, str]] = []
        self._background = Background(self._look)

    def stop(self) -> None:
        """No more looks."""
        self._background.stop()

    def _look(self) -> None:
        now = [(entry["at"], entry.get("pod", "")) for entry in status_of(self._release).get("ledger", [])]
        if now[: len(self._before)] != self._before:
            self.broken = self.broken or f"{self._before} became {now}"
        self._before, self.looks = now, self.looks + 1
        self._background.pause(0.5)


@dataclass
class Killer:
    """Kills the operator at random moments of its life, by turns as a node's kernel and as a hasty person do it."""

    release: Release
    count: int = 0
    leaders: int = 0
    by: dict[str, int] = field(default_factory=dict)
    holds: bool = False
    """Kills nobody while it is set."""

    def __post_init__(self) -> None:
        self._dice = random.Random(SEED)
        self._background = Background(self._kill)

    def stop(self) -> None:
        """No more kills."""
        self._background.stop()

    @property
    def words(self) -> str:
        """How many, and how."""
        return f"{self.count}: {self.by}, {self.leaders} of a leader; {self._background.trouble or 'no trouble'}"

    def _kill(self) -> None:
        if self.holds or self.count >= KILLS:
            self._background.pause(0.2)
            return
        pod = until("an operator that runs", 60, self._living)
        self._background.pause(self._dice.uniform(0, LONGEST_LIFE_SECONDS))
        if self.holds:
            return
        name, was_leader = pod["metadata"]["name"], self._leads(pod)
        # the kubelet makes a container that was killed wait longer each time, a new pod begins anew
        if pod["status"]["containerStatuses"][0]["restartCount"] == 0 and self._dice.random() < 0.5:
            how = "SIGKILL"
            kill(pod, "ddp-operator")
        else:
            how = "delete --force"
            self.release.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        self.count, self.leaders = self.count + 1, self.leaders + was_leader
        self.by[how] = self.by.get(how, 0) + 1

    def _living(self) -> dict[str, Any] | None:
        for pod in operators(self.release):
            states = pod["status"].get("containerStatuses", [])
            if states and "running" in states[0]["state"] and "deletionTimestamp" not in pod["metadata"]:
                return pod
        return None

    def _leads(self, pod: dict[str, Any]) -> bool:
        try:
            return leader(self.release).startswith(pod["metadata"]["name"])
        except CaseError:
            return False
