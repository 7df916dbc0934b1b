"""A release in a namespace of its own, and the run it makes: what cases do to it, wait for, and read of it. Every wait has a bound."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster import CHART, CONTEXT, IMAGE, CaseError, image_settings, kubectl, run, settings, until
from inside import FOLLOW
from watching import EXIT_FIELDS, Diary, Exit, Fault, Seen, Watcher, place_of

VALUES = "tests/e2e/training.yaml"
MOUNT = "/checkpoints"
RUN_LABEL = "ddp-operator.io/run"
JOB_LABEL = "training.kubeflow.org/job-name"


@dataclass(frozen=True)
class Recovery:
    """The first step after something happened, as the run's own events tell it."""

    time: float
    step: int
    attempt: int
    resumed: int
    lost: int


def _nothing() -> None:
    """A wait has nothing else to do."""


@dataclass
class Release:
    """One release of the chart."""

    namespace: str
    name: str = "ddp-demo"
    helm: str = "helm"
    claim: str = ""
    """An existing claim that the release was given; empty for its own."""
    diary: Diary = field(default_factory=Diary)
    faults: list[Fault] = field(default_factory=list)
    afterwards: list[Callable[[], object]] = field(default_factory=list)
    """What `delete` does last, when no pod is left: a case puts in what it made outside of its namespace."""
    _watchers: list[Watcher] = field(default_factory=list)

    # --- kubectl and helm ------------------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """kubectl in this namespace."""
        return kubectl("-n", self.namespace, *arguments, **options)

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of `kubectl get`."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return found

    def apply(self, document: dict[str, Any]) -> None:
        """`kubectl apply` of an object."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def python(self, pod: str, script: str, *arguments: str, **options: Any) -> str:
        """What a script prints inside a pod of the trainer's image."""
        return self.kubectl("exec", pod, "--", "python", "-c", script, *arguments, **options)

    def do_helm(self, verb: str, *arguments: str, **options: Any) -> str:
        """install or upgrade, of the chart; test, uninstall or rollback, of the release."""
        chart = [CHART] if verb in {"install", "upgrade"} else []
        return run(self.helm, verb, self.name, *chart, "--kube-context", CONTEXT, "-n", self.namespace, *arguments, **options)

    def install(self, *pairs: str, more: tuple[str, ...] = ()) -> str:
        """A small training on the CPU that goes on until it is told to stop, with these values."""
        return self.do_helm("install", "-f", VALUES, *image_settings(), *settings(*pairs), *more)

    def upgrade(self, *pairs: str) -> str:
        """The same values but for these."""
        return self.do_helm("upgrade", "--reuse-values", *settings(*pairs))

    @property
    def helm_version(self) -> str:
        """Of this release's Helm."""
        return f"{self.helm} {run(self.helm, 'version', '--short').strip()}"

    def create_namespace(self, *, restricted: bool = False) -> None:
        """Make it; `restricted` makes it enforce that level of Pod Security."""
        self.kubectl("create", "namespace", self.namespace)
        if restricted:
            self.kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")

    # --- jobs and pods ---------------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, Any]]:
        """Its PyTorchJobs, oldest first: two for a moment in an upgrade."""
        found = [job for job in self.items("pytorchjobs", "-l", f"{RUN_LABEL}={self.name}") if "deletionTimestamp" not in job["metadata"]]
        return sorted(found, key=lambda job: job["metadata"]["creationTimestamp"])

    @property
    def job(self) -> str:
        """Name of the newest PyTorchJob."""
        if not (jobs := self.jobs()):
            raise CaseError("there is no PyTorchJob")
        return str(jobs[-1]["metadata"]["name"])

    def pods(self) -> list[dict[str, Any]]:
        """The newest job's."""
        return self.items("pods", "-l", f"{JOB_LABEL}={self.job}")

    def pod_named(self, place: str) -> dict[str, Any]:
        """The newest job's pod at a place such as `worker-0`."""
        for pod in self.pods():
            if place_of(pod["metadata"]["name"]) == place:
                return pod
        raise CaseError(f"there is no pod {place}")

    def mixed_world(self, sums: dict[str, int]) -> list[str]:
        """Pods that were told another number of nodes than their own job has; `sums` remembers jobs that are gone by the next call."""
        for job in self.jobs():
            specs = job["spec"]["pytorchReplicaSpecs"].values()
            sums[job["metadata"]["name"]] = sum(spec["replicas"] for spec in specs)
        wrong = []
        for pod in self.items("pods", "-l", f"{RUN_LABEL}={self.name},{JOB_LABEL}"):
            container = next(c for c in pod["spec"]["containers"] if c["name"] == "pytorch")
            told = next((env["value"] for env in container["env"] if env["name"] == "PET_NNODES"), "nothing")
            job = pod["metadata"]["labels"][JOB_LABEL]
            if job in sums and told != str(sums[job]):  # a job that is made in this very moment is judged at the next look
                wrong.append(f"{pod['metadata']['name']} was told {told}, its job has {sums[job]}")
        return wrong

    def exits_of(self, job: str) -> dict[str, Exit]:
        """How pods of a job ended, by place, as far as it was watched."""
        return {end.place: end for end in list(self.diary.exits.values()) if end.pod.startswith(f"{job}-")}

    def last_words(self, place: str) -> str:
        """The termination message, whole, of the newest job's pod, which has ended and is still there."""
        field = '{.status.containerStatuses[?(@.name=="pytorch")].state.terminated.message}'
        return self.kubectl("get", "pod", f"{self.job}-{place}", "-o", f"jsonpath={field}").strip()

    def log(self, place: str) -> str:
        """Of the newest job's pod."""
        return self.kubectl("logs", f"{self.job}-{place}", "-c", "pytorch")

    # --- watching --------------------------------------------------------------------------------------------------------------------

    @property
    def reader(self) -> str:
        """The pod beside the claim; it is none of the run's, and no policy knows it."""
        return f"reader-of-{self.name}"

    def watch_exits(self) -> None:
        """Note how each of the run's pods ends, from now on."""
        selector = f"{RUN_LABEL}={self.name},{JOB_LABEL}"
        self._watch(self.diary.take_exit, "get", "pods", "-l", selector, "-w", "-o", f'jsonpath={EXIT_FIELDS}{{"\\n"}}')

    def follow(self) -> None:
        """Start the reader pod beside the claim, and watch progress, events and exits from now on."""
        claim = {"name": "claim", "persistentVolumeClaim": {"claimName": self.claim or f"{self.name}-checkpoints"}}
        self.apply(bystander(self.reader, ["sleep", "infinity"], volumes=[claim], mounts=[{"name": "claim", "mountPath": MOUNT}]))
        self.kubectl("wait", "--for=condition=Ready", f"pod/{self.reader}", "--timeout=120s", timeout=140)
        if not self._watchers:
            self.watch_exits()
        command = ("exec", self.reader, "--", "python", "-u", "-c", FOLLOW, f"{MOUNT}/{self.name}")
        self._watch(self.diary.take, *command)

    def _watch(self, take: Callable[[str], None], *arguments: str) -> None:
        self._watchers.append(Watcher(["kubectl", "--context", CONTEXT, "-n", self.namespace, *arguments], take))

    def stop_following(self) -> None:
        """End the watches, and the reader, which holds the claim."""
        for watcher in self._watchers:
            watcher.stop()
        self._watchers.clear()
        self.kubectl("delete", "pod", self.reader, "--ignore-not-found", "--wait=false", check=False)

    def trouble(self) -> str:
        """What the watches had to complain of, last."""
        return "; ".join(watcher.trouble for watcher in self._watchers if watcher.trouble)

    @property
    def last(self) -> Seen:
        """The newest look at the run's progress."""
        if not self.diary.seen:
            raise CaseError(f"nothing is known yet of the run's progress; {self.trouble()}")
        return self.diary.seen[-1]

    def begin(self, name: str, target: str = "", started: float | None = None) -> Fault:
        """Something is about to happen, or happened at `started`: exits belong to it from then on."""
        self.end_fault()
        places = tuple(sorted(place_of(pod["metadata"]["name"]) for pod in self.pods()))
        self.faults.append(Fault(name, target, started or time.time(), places))
        return self.faults[-1]

    def end_fault(self) -> None:
        """What ends from now on has another reason."""
        if self.faults:
            self.faults[-1].ended = min(self.faults[-1].ended, time.time())

    # --- waiting ---------------------------------------------------------------------------------------------------------------------

    def first_step(self, seconds: float = 120) -> float:
        """Wait until the run trains; gives the wall-clock time of the first step that it logs, by the pod's own log."""
        job = self.job
        has_master = self.kubectl("get", "pytorchjob", job, "-o", "jsonpath={.spec.pytorchReplicaSpecs.Master.replicas}")
        first = "master" if has_master else "worker"

        def look() -> float | None:
            for line in self.kubectl("logs", f"{job}-{first}-0", "-c", "pytorch", "--timestamps").splitlines():
                if " rank 0 step " in line:
                    return _unix(line.split()[0])
            return None

        return until("a first step", seconds, look, pause=0.5)

    def recovery(
        self, after: float, *, seconds: float = 120, world_size: int | None = None, meanwhile: Callable[[], object] = _nothing
    ) -> Recovery:
        """Wait for the first step of a newer attempt than the one that ran at the time `after`, of a given world size if that is given."""
        before = max((event["attempt"] for event in self.diary.of("form") if event["time"] <= after), default=0)
        reached = max((seen.step for seen in self.diary.seen if seen.time <= after), default=0)

        def look() -> dict[str, Any] | None:
            meanwhile()
            sizes = {event["attempt"]: event["world_size"] for event in self.diary.of("form")}
            steps = [event for event in self.diary.of("first_step") if event["attempt"] > before]
            return next((event for event in steps if world_size in {None, sizes.get(event["attempt"])}), None)

        what = f"a step of an attempt after {before}" + (f" with world size {world_size}" if world_size else "")
        first = until(what, seconds, look, pause=0.2 if meanwhile is _nothing else 1.0)
        resumed = [event for event in self.diary.of("resume") if event["attempt"] == first["attempt"]]
        if not resumed:  # there was no checkpoint yet: all is done again
            return Recovery(first["time"], first["step"], first["attempt"], 0, reached)
        lost = resumed[-1]["lost_steps"]
        return Recovery(
            first["time"], first["step"], first["attempt"], resumed[-1]["step"], reached - resumed[-1]["step"] if lost is None else lost
        )

    def wait_step(self, step: int, seconds: float = 180) -> Seen:
        """Wait until the run has done so many steps, however slow the machine is (within its bound)."""
        return until(f"step {step}", seconds, lambda: self.last if self.last.step >= step else None)

    def wait_steps(self, more: int, seconds: float = 180) -> Seen:
        """Wait for so many steps more than it has done now."""
        return self.wait_step(self.wait_step(0).step + more, seconds)

    def wait_event(self, kind: str, after: float, seconds: float = 60) -> dict[str, Any]:
        """Wait for the first event of a kind after a time."""
        return until(f"an event {kind}", seconds, lambda: next(iter(self.diary.of(kind, after)), None))

    def wait_exit(self, place: str, after: float, seconds: float) -> Exit:
        """Wait until it is known how the pod at a place ended."""

        def look() -> Exit | None:
            return next((e for e in list(self.diary.exits.values()) if e.place == place and e.heard >= after), None)

        return until(f"the exit code of {place}", seconds, look)

    def wait_end(self, kind: str, seconds: float = 300) -> None:
        """Wait until the newest job is Succeeded or Failed, which must be `kind`."""
        job = self.job

        def look() -> str | None:
            status = json.loads(self.kubectl("get", "pytorchjob", job, "-o", "json")).get("status", {})
            held = {condition["type"] for condition in status.get("conditions", []) if condition["status"] == "True"}
            return next(iter(held & {"Succeeded", "Failed"}), None)

        if (seen := until(f"{kind} of {job}", seconds, look, pause=0.5)) != kind:
            ends = [f"{place}: {end.code} {end.message[:200]}" for place, end in self.exits_of(job).items()]
            raise CaseError(f"{job} is {seen}, not {kind}; {'; '.join(ends)}")

    # --- what is on the claim --------------------------------------------------------------------------------------------------------

    def read(self, path: str) -> str:
        """A file of the run directory."""
        return self.kubectl("exec", self.reader, "--", "cat", f"{MOUNT}/{self.name}/{path}")

    def durable_steps(self) -> list[int]:
        """Steps whose checkpoint folders are on the claim."""
        text = self.kubectl("exec", self.reader, "--", "ls", f"{MOUNT}/{self.name}/checkpoints")
        return sorted(int(name.removeprefix("step-")) for name in text.split() if name.startswith("step-"))

    def delete(self) -> None:
        """Everything, the claim too, and what the case made elsewhere."""
        self.stop_following()
        self.do_helm("uninstall", check=False)
        kubectl("delete", "namespace", self.namespace, "--ignore-not-found", timeout=240)
        while self.afterwards:
            self.afterwards.pop()()


def bystander(
    name: str, command: list[str], *, volumes: list[Any] | None = None, mounts: list[Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A pod of the trainer's image that is none of the run's, fit for a namespace that enforces `restricted`; `more` goes into its spec."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": IMAGE, "command": command, "securityContext": security, "volumeMounts": mounts or []}
    spec = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes or [],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {**spec, **more}}


def _unix(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()
