"""What cases of the operator do: follow a TrainingRun, and wait for what its status says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from cluster import CONTEXT, CaseError, until
from release import Release
from table import Row
from watching import Watcher

KNOWN_SECONDS = 30.0
"""From a fact until the status says it, on a machine that is busy with training; 2 s are meant."""
TRAINS_SECONDS = 180.0
STATUS = "{.status.phase}|{.status.reason}|{.status.progress.step}|{.status.checkpoint.step}|{.status.restarts.total}|{.status.message}"


@dataclass(frozen=True)
class Look:
    """What a status said."""

    time: float
    phase: str
    reason: str
    step: int
    durable: int
    restarts: int
    message: str

    @property
    def word(self) -> str:
        """`Restarting (PodDeleted)`."""
        return f"{self.phase} ({self.reason})" if self.reason else self.phase


class Story:
    """Every status of a TrainingRun from now on, in order, as `kubectl get -w` sees it."""

    def __init__(self, release: Release, name: str = "") -> None:
        self.looks: list[Look] = []
        self._name = name or release.name
        field = f'jsonpath={STATUS}{{"\\n"}}'
        command = ["kubectl", "--context", CONTEXT, "-n", release.namespace, "get", "trainingrun", self._name, "-w", "-o", field]
        self._watcher = Watcher(command, self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.stop()

    def _take(self, line: str) -> None:
        phase, reason, *numbers, message = line.rstrip("\n").split("|", 5)
        step, durable, restarts = (int(text or 0) for text in numbers)
        self.looks.append(Look(time.time(), phase, reason, step, durable, restarts, message))

    @property
    def last(self) -> Look:
        """The newest."""
        if not self.looks:
            raise CaseError(f"TrainingRun {self._name} has said nothing yet; {self._watcher.trouble}")
        return self.looks[-1]

    def since(self, started: float) -> list[Look]:
        """Those after a time."""
        return [look for look in list(self.looks) if look.time >= started]

    def wait(self, what: str, seconds: float, holds: Callable[[Look], bool], *, since: float = 0.0) -> Look:
        """The first look after a time for which it holds."""

        def find() -> Look | None:
            return next((look for look in self.since(since) if holds(look)), None)

        try:
            return until(f"a TrainingRun that is {what}", seconds, find)
        except CaseError as error:
            raise CaseError(f"{error}; it went {self.words(since)}") from None

    def wait_phase(self, phase: str, seconds: float, *, since: float = 0.0) -> Look:
        """The first look in a phase."""
        return self.wait(phase, seconds, lambda look: look.phase == phase, since=since)

    def words(self, since: float = 0.0) -> str:
        """`Pending (Unschedulable) -> Running`, each once in a row."""
        words = [look.word for look in self.since(since)]
        return " -> ".join(word for number, word in enumerate(words) if not number or words[number - 1] != word) or "nowhere"


def status_of(release: Release, name: str = "") -> dict[str, Any]:
    """The whole status."""
    found: dict[str, Any] = json.loads(release.kubectl("get", "trainingrun", name or release.name, "-o", "json")).get("status", {})
    return found


def line_of(release: Release) -> str:
    """As `kubectl get trainingruns` prints it."""
    return " ".join(release.kubectl("get", "trainingruns", release.name, "--no-headers").split())


def suspended(release: Release, job: str = "") -> bool:
    """Whether the newest job is, or the one of that name."""
    return release.kubectl("get", "pytorchjob", job or release.job, "-o", "jsonpath={.spec.runPolicy.suspend}") == "true"


def generation(release: Release, job: str = "") -> int:
    """How often the wish of the newest job, or of the one of that name, was changed: 1 is never."""
    return int(release.kubectl("get", "pytorchjob", job or release.job, "-o", "jsonpath={.metadata.generation}"))


def suspend(release: Release, job: str = "", *, wish: bool) -> float:
    """As a user does it, or Kueue; gives the time."""
    patch = json.dumps({"spec": {"runPolicy": {"suspend": wish}}})
    release.kubectl("patch", "pytorchjob", job or release.job, "--type=merge", "-p", patch)
    return time.time()


def set_policy(release: Release, run: str = "", **policy: Any) -> None:
    """Change some fields of a TrainingRun's policy."""
    patch = json.dumps({"spec": {"policy": policy}})
    release.kubectl("patch", "trainingrun", run or release.name, "--type=merge", "-p", patch)


def ledger_of(release: Release, run: str = "") -> list[str]:
    """Cause and action of each entry: `Hang GangRestart`."""
    entries = status_of(release, run).get("ledger", [])
    return [" ".join(word for word in (entry["cause"], entry.get("action", "")) if word not in {"", "None"}) for entry in entries]


def trains(story: Story, what: str, started: float) -> Row:
    """Running, with a step."""
    look = story.wait("Running, with a step", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=started)
    return Row(what, "Running, with a step", f"{story.words(started)}, step {look.step}", look.time - started)


def operators(release: Release) -> list[dict[str, Any]]:
    """The pods of its operator."""
    return release.items("pods", "-l", f"ddp-operator.io/operator-of={release.name}")


def leader(release: Release) -> str:
    """Who holds the lease of the namespace's operators.

    Raises:
        CaseError: nobody does.
    """
    found = json.loads(release.kubectl("get", "lease", "ddp-operator", "-o", "json"))
    if not (holder := found["spec"].get("holderIdentity")):
        raise CaseError("nobody holds the lease")
    return str(holder)
