"""A real cluster as the end-to-end cases see it: kubectl, helm, and what a run leaves on its claim. Every wait has a bound."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = os.environ.get("CLUSTER", "ddp-e2e")
CONTEXT = f"kind-{CLUSTER}"
IMAGE = os.environ.get("TRAINER_IMAGE", "ddp-trainer:0.1.0")
MOUNT = "/checkpoints"
T = TypeVar("T")

FOLLOW = """
import json, sys, time
last = None
while True:
    try:
        p = json.load(open(sys.argv[1]))
        seen = [p["attempt"], p["step"], p["phase"], p["world_size"], (p["checkpoint"] or {}).get("step", -1)]
    except (OSError, ValueError):
        seen = None
    if seen and seen != last:
        print(json.dumps([time.time(), *seen]), flush=True)
    last = seen
    time.sleep(0.05)
"""
"""Runs in the reader pod: a line for each change of progress.json."""

KILL_RANK = """
import os, pathlib, signal
parent = {int(p.name): int((p / "stat").read_text().rpartition(")")[2].split()[1]) for p in pathlib.Path("/proc").glob("[0-9]*")}
ranks = [pid for pid, up in parent.items() if parent.get(up) == 1]
os.kill(ranks[0], signal.SIGKILL)
print(ranks[0])
"""
"""Runs in a trainer's pod: ranks are the grandchildren of the agent, which is process 1."""


class CaseError(Exception):
    """What was expected did not happen; the sentence goes into the table."""


def run(*command: str, check: bool = True, stdin: str | None = None, timeout: float = 120) -> str:
    """A command's output; with check=False its error output is part of it."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, timeout=timeout)
    if check and done.returncode:
        raise CaseError(f"{' '.join(command[:6])} ...: {done.stderr.strip()[-400:]}")
    return done.stdout if check else done.stdout + done.stderr


def until(what: str, seconds: float, look: Callable[[], T | None], pause: float = 0.2) -> T:
    """Look until there is something, at most so long."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(CaseError):
            if (found := look()) is not None and found is not False:
                return found
        if time.monotonic() > deadline:
            raise CaseError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


@dataclass(frozen=True)
class Seen:
    """One look at progress.json."""

    time: float
    attempt: int
    step: int
    phase: str
    world_size: int
    durable: int


@dataclass
class Release:
    """A release in a namespace of its own, and the run it makes."""

    namespace: str
    name: str = "ddp-demo"
    helm: str = "helm"
    progress: list[Seen] = field(default_factory=list)
    exits: dict[str, list[int]] = field(default_factory=dict)
    _watchers: list[subprocess.Popen[str]] = field(default_factory=list)

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """kubectl in this namespace."""
        return run("kubectl", "--context", CONTEXT, "-n", self.namespace, *arguments, **options)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of `kubectl get`."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]

    def create_namespace(self, **labels: str) -> None:
        """Make it; `pod_security="restricted"` makes it enforce that."""
        self.kubectl("create", "namespace", self.namespace)
        for level in labels.values():
            self.kubectl("label", "namespace", self.namespace, f"pod-security.kubernetes.io/enforce={level}")

    def do_helm(self, verb: str, *arguments: str, **options: Any) -> str:
        """install or upgrade, of the chart; uninstall or rollback, of the release."""
        chart = [str(ROOT / "helm")] if verb in {"install", "upgrade", "template"} else []
        place = ["--kube-context", CONTEXT, "-n", self.namespace]
        return run(self.helm, verb, self.name, *chart, *place, *arguments, **options)

    @property
    def job(self) -> str:
        """Name of the newest PyTorchJob."""
        jobs = sorted(self.json("pytorchjobs"), key=lambda item: item["metadata"]["creationTimestamp"])
        if not jobs:
            raise CaseError("there is no PyTorchJob")
        return str(jobs[-1]["metadata"]["name"])

    def pods(self) -> list[dict[str, Any]]:
        """The trainer's pods."""
        return self.json("pods", "-l", "app.kubernetes.io/name=ddp-trainer,training.kubeflow.org/job-name")

    def follow(self) -> None:
        """Start the reader pod beside the claim, and watch progress and exit codes from now on."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "reader", "namespace": self.namespace},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "reader",
                        "image": IMAGE,
                        "command": ["sleep", "infinity"],
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "claim", "mountPath": MOUNT}],
                    }
                ],
                "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": f"{self.name}-checkpoints"}}],
            },
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
        self.kubectl("wait", "--for=condition=Ready", "pod/reader", "--timeout=60s")
        self._watch(self._saw, "exec", "reader", "--", "python", "-u", "-c", FOLLOW, f"{MOUNT}/{self.name}/progress.json")
        code = '{.status.containerStatuses[?(@.name=="pytorch")].state.terminated.exitCode}'
        fields = "{.metadata.name} {.metadata.uid} " + code + '{"\\n"}'
        self._watch(self._ended, "get", "pods", "-l", "training.kubeflow.org/job-name", "-w", "-o", f"jsonpath={fields}")

    def _watch(self, take: Callable[[str], None], *arguments: str) -> None:
        command = ["kubectl", "--context", CONTEXT, "-n", self.namespace, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._watchers.append(process)

        def pump() -> None:
            assert process.stdout
            for line in process.stdout:
                take(line)

        threading.Thread(target=pump, daemon=True).start()

    def _saw(self, line: str) -> None:
        self.progress.append(Seen(*json.loads(line)))

    def _ended(self, line: str) -> None:
        words = line.split()
        if len(words) == 3:  # name, uid, exit code
            codes = self.exits.setdefault(f"{words[0]} {words[1]}", [])
            if int(words[2]) not in codes:
                codes.append(int(words[2]))

    def stop_following(self) -> None:
        """End the watches, and the reader, which holds the claim."""
        for process in self._watchers:
            process.kill()
            process.wait()
        self._watchers.clear()
        self.kubectl("delete", "pod", "reader", "--ignore-not-found", "--wait=false")

    def exit_codes(self) -> str:
        """`worker-1: 143, ...` of all pods that ended since `follow`."""
        short = [(key.split()[0].removeprefix(f"{self.name}-").split("-", 1)[-1], codes) for key, codes in self.exits.items()]
        return ", ".join(f"{name}: {'+'.join(map(str, codes))}" for name, codes in short) or "none"

    def events(self) -> list[dict[str, Any]]:
        """The run's own events, read from the claim."""
        text = self.kubectl("exec", "reader", "--", "cat", f"{MOUNT}/{self.name}/events.jsonl")
        return [json.loads(line) for line in text.splitlines()]

    def first_step(self, seconds: float = 120) -> float:
        """Wait until the run trains; gives the wall-clock time of the first step, by the master's own log."""
        job = self.job
        has_master = self.kubectl("get", "pytorchjob", job, "-o", "jsonpath={.spec.pytorchReplicaSpecs.Master.replicas}")
        first = "master" if has_master else "worker"

        def look() -> float | None:
            for line in self.kubectl("logs", f"{job}-{first}-0", "-c", "pytorch", "--timestamps").splitlines():
                if " rank 0 step " in line:
                    return _unix(line.split()[0])
            return None

        return until("a first step", seconds, look, pause=0.5)

    def next_step(self, after: float, seconds: float = 120) -> Seen:
        """The first step of a newer attempt than the one that ran at the time `after`."""
        before = max((seen.attempt for seen in self.progress if seen.time <= after), default=0)

        def look() -> Seen | None:
            newer = [
                seen for seen in self.progress if seen.attempt > before and seen.phase in {"training", "saving", "evaluating", "finished"}
            ]
            return next((seen for seen in newer if seen.step > newer[0].step or seen.phase == "finished"), None)

        return until(f"a step of an attempt after {before}", seconds, look)

    def wait_step(self, step: int, seconds: float = 180) -> Seen:
        """Wait until the run has done so many steps."""
        return until(f"step {step}", seconds, lambda: next((seen for seen in reversed(self.progress) if seen.step >= step), None))

    def wait_condition(self, kind: str, seconds: float = 300) -> None:
        """Wait for a condition of the newest job."""
        self.kubectl("wait", f"--for=condition={kind}", f"pytorchjob/{self.job}", f"--timeout={seconds:.0f}s", timeout=seconds + 20)

    def durable_steps(self) -> list[int]:
        """Steps whose checkpoint folders are on the claim."""
        text = self.kubectl("exec", "reader", "--", "ls", f"{MOUNT}/{self.name}/checkpoints")
        return sorted(int(name.removeprefix("step-")) for name in text.split() if name.startswith("step-"))

    def delete(self) -> None:
        """Everything, the claim too."""
        self.stop_following()
        self.do_helm("uninstall", check=False)
        run("kubectl", "--context", CONTEXT, "delete", "namespace", self.namespace, "--ignore-not-found", timeout=240)


def _unix(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()
