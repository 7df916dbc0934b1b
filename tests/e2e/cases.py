"""The end-to-end cases: each is a function of a fresh namespace that yields rows of the table. What a case promises is its docstring."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import CONTEXT, IMAGE, KILL_RANK, ROOT, CaseError, Release, run, until

VALUES = str(ROOT / "tests/e2e/training.yaml")
FIRST_STEP_SECONDS, WORKER_SECONDS, MASTER_SECONDS, RANK_SECONDS = 20.0, 12.0, 15.0, 5.0
"""Targets, with the image present on the node, on a machine with nothing else to do."""
EVENT_SECONDS = 60.0
GPUS_WANTED = 4
OWN_MODEL = """from torch import nn
from ddp_trainer.tasks.cifar10 import Cifar10

class Small(Cifar10):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
"""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    case: str
    expected: str
    seen: str
    seconds: float | None = None
    good: bool = True
    slow: bool = False
    """Right, but not within its bound: a failure of the full form, only said by the short one, whose machine may be any."""


def short(release: Release) -> Iterator[Row]:
    """One install, one pod killed, one uninstall: what every change must pass."""
    yield from _install(release, "--set", "replicas=2")
    release.follow()
    release.wait_step(12)
    yield _delete_pod(release, "worker-0", WORKER_SECONDS)
    yield from _uninstall(release)


def train(release: Release) -> Iterator[Row]:
    """4 pods on 2 nodes: trained to the end through a lost worker, a lost master and a killed rank; a second start ends at once."""
    yield from _install(release, "--set", "replicas=4")
    nodes = {pod["spec"]["nodeName"] for pod in release.pods()}
    yield Row("pods", "4 on 2 nodes", f"{len(release.pods())} on {len(nodes)}", good=len(release.pods()) == 4 and len(nodes) == 2)
    release.follow()
    release.wait_step(15)
    yield _kill_rank(release)
    release.wait_step(release.progress[-1].step + 12)
    yield _delete_pod(release, "worker-1", WORKER_SECONDS)
    release.wait_step(release.progress[-1].step + 12)
    yield _delete_pod(release, "master-0", MASTER_SECONDS)
    started = time.time()
    release.wait_condition("Succeeded", 600)
    yield Row(
        "finished",
        "Succeeded, step 300 durable",
        f"Succeeded, steps {release.durable_steps()}",
        time.time() - started,
        300 in release.durable_steps(),
    )
    yield from _again(release)


def _again(release: Release) -> Iterator[Row]:
    """A finished run that is applied again ends at once with 0."""
    started = time.time()
    release.do_helm("upgrade", "-f", VALUES, "--set", "replicas=4", "--set", "podLabels.again=yes")
    release.wait_condition("Succeeded", 120)
    steps = [event for event in release.events() if event["kind"] == "checkpoint" and event["time"] > started]
    yield Row(
        "finished run applied again", "Succeeded, no step trained", f"Succeeded, {len(steps)} checkpoints", time.time() - started, not steps
    )


def upgrade(release: Release) -> Iterator[Row]:
    """4 -> 8 replicas resumes; rollback; uninstalling leaves the claim alone; reinstalling resumes; keep=false leaves nothing."""
    yield from _install(release, "--set", "replicas=4")
    release.follow()
    release.wait_step(25)
    yield _change(release, "upgrade to 8 replicas", 8, lambda: release.do_helm("upgrade", "-f", VALUES, "--set", "replicas=8"))
    yield _change(release, "rollback to 4", 4, lambda: release.do_helm("rollback", "1"))
    yield from _uninstall(release)
    release.progress.clear()
    yield from _install(release, "--set", "replicas=4", what="reinstall -> first step")
    release.follow()
    resumed = [event for event in release.events() if event["kind"] == "resume"]
    yield Row("reinstall", "resumes from the claim", f"resumed at step {resumed[-1]['step']}", good=resumed[-1]["step"] > 0)
    release.do_helm("upgrade", "-f", VALUES, "--set", "replicas=4", "--set", "checkpoint.keep=false")
    release.stop_following()
    release.do_helm("uninstall")
    started = time.time()
    left = until("nothing left", 150, lambda: "nothing" if not _left(release) else None)
    yield Row("uninstall with checkpoint.keep=false", "nothing left", left, time.time() - started)


def _change(release: Release, case: str, world: int, change: Callable[[], str]) -> Row:
    durable = max(release.durable_steps())
    release.exits.clear()
    started = time.time()
    change()
    seen = until(
        f"world size {world}",
        240,
        lambda: next(
            (s for s in release.progress if s.time > started and s.world_size == world and s.phase == "training" and s.step > durable), None
        ),
    )
    resumed = [event for event in release.events() if event["kind"] == "resume" and event["time"] > started]
    mixed = {s.world_size for s in release.progress if s.time > seen.time} - {world}
    said = f"resumed at {resumed[-1]['step'] if resumed else 'none'}, world size {seen.world_size}; exit codes {release.exit_codes()}"
    return Row(
        case,
        f"resumes at >= {durable}, world size {world}",
        said,
        seen.time - started,
        bool(resumed) and resumed[-1]["step"] >= durable and not mixed,
    )


def restricted(release: Release) -> Iterator[Row]:
    """topology=workers in a namespace that enforces Pod Security restricted."""
    arguments = (
        "--set",
        "replicas=2",
        "--set",
        "topology=workers",
        "--set",
        "podSecurity.level=restricted",
        "--set",
        "config.optim.max_steps=40",
    )
    yield from _install(release, *arguments)
    release.wait_condition("Succeeded")
    yield Row("topology=workers, restricted", "Succeeded", "Succeeded")


def helm3(release: Release) -> Iterator[Row]:
    """The same with Helm 3."""
    release.helm = "helm3"
    yield from _install(release, "--set", "replicas=2", "--set", "config.optim.max_steps=40")
    release.wait_condition("Succeeded")
    release.do_helm("uninstall")
    yield _only_claim(release)
    yield from _install(
        release, "--set", "replicas=2", "--set", "config.optim.max_steps=40", what="reinstall over the kept claim", trains=False
    )
    release.wait_condition("Succeeded")
    yield Row("Helm 3, reinstalled", "Succeeded", "Succeeded")


def manifests(release: Release) -> Iterator[Row]:
    """The plain YAML of manifests/, with kustomize."""
    yaml = run("kubectl", "kustomize", str(ROOT / "manifests/overlays/cpu"))
    for long, brief in (("resnet50", "resnet18"), (r'"epochs": \d+', '"max_steps": 20')):
        yaml = re.sub(long, brief, yaml)  # the demo's own length is for a demo
    started = time.time()
    release.kubectl("apply", "-f", "-", stdin=yaml)
    release.wait_condition("Succeeded")
    yield Row("kubectl apply -k manifests/overlays/cpu", "Succeeded", "Succeeded", time.time() - started)


def drain(release: Release) -> Iterator[Row]:
    """Drain the node that does not hold the claim: its pods come back elsewhere and training goes on."""
    yield from _install(release, "--set", "replicas=4")
    release.follow()
    release.wait_step(15)
    pods = {pod["metadata"]["name"].split("-", 3)[3]: pod["spec"]["nodeName"] for pod in release.pods()}
    node = next(name for pod, name in pods.items() if name != pods["master-0"])
    started = time.time()
    try:
        run(
            "kubectl",
            "--context",
            CONTEXT,
            "drain",
            node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=120s",
            timeout=150,
        )
        seen = release.next_step(started, 180)
    finally:
        run("kubectl", "--context", CONTEXT, "uncordon", node)
    yield Row(
        f"drain {node}",
        "training goes on, no code 1",
        f"step {seen.step}; exit codes {release.exit_codes()}",
        seen.time - started,
        _no_code_1(release),
    )


def network(release: Release) -> Iterator[Row]:
    """Another pod reaches neither the rendezvous nor the ranks; a scraper does reach the metrics."""
    yield from _install(release, "--set", "replicas=2")
    release.follow()
    release.wait_step(3)
    address = next(pod["status"]["podIP"] for pod in release.pods() if "master" in pod["metadata"]["name"])
    found = {port: _reaches(release, address, port) for port in (23456, 9400)}
    yield Row("another pod -> rendezvous 23456, telemetry 9400", "neither", f"{found}", good=not any(found.values()))
    release.kubectl("label", "pod", "reader", "app.kubernetes.io/name=prometheus")
    scraped = until("the scrape", 20, lambda: _reaches(release, address, 9400) or None)
    yield Row(
        "a scraper -> 9400, 23456",
        "only 9400",
        f"9400 {scraped}, 23456 {_reaches(release, address, 23456)}",
        good=not _reaches(release, address, 23456),
    )


def gpu(release: Release) -> Iterator[Row]:
    """Real allocations by NVIDIA's plugin, over a mock driver, so pods compute on the CPU: 4 x 1 GPU, and 2 x 2 with 2 ranks each."""
    free = run("kubectl", "--context", CONTEXT, "get", "nodes", "-o", "jsonpath={.items[*].status.allocatable['nvidia\\.com/gpu']}").split()
    if sum(map(int, free)) < GPUS_WANTED:
        offer = sum(map(int, free))
        raise CaseError(f"the nodes offer {offer} nvidia.com/gpu, {GPUS_WANTED} are needed; run kind-up.sh with NVIDIA_PLUGIN_IMAGE")
    on_cpu = ("--set", "config.distributed.device=cpu", "--set", "config.distributed.backend=gloo", "--set", "config.optim.max_steps=20")
    yield from _install(release, *on_cpu, "--set", "replicas=4", "--set", "gpusPerReplica=1")
    uuids = {name: _gpus_of(release, name) for name in (pod["metadata"]["name"] for pod in release.pods())}
    distinct = {uuid for found in uuids.values() for uuid in found}
    yield Row("4 pods x 1 GPU", "4 different GPUs", f"{len(distinct)} in {len(uuids)} pods", good=len(distinct) == len(uuids) == 4)
    release.wait_condition("Succeeded")
    release.do_helm(
        "upgrade", "-f", VALUES, *on_cpu, "--set", "replicas=2", "--set", "gpusPerReplica=2", "--set", "config.optim.max_steps=40"
    )
    release.wait_condition("Succeeded")
    yield Row("2 pods x 2 GPUs, 2 ranks each", "Succeeded", "Succeeded")
    release.do_helm("upgrade", "-f", VALUES, *on_cpu, "--set", "replicas=8", "--set", "gpusPerReplica=1")
    started = time.time()
    said = until("an event that names the GPUs", 60, lambda: _warning(release, "Insufficient nvidia.com/gpu"))
    yield Row("more GPUs than there are", "an event says it", said, time.time() - started)


def _gpus_of(release: Release, pod: str) -> list[str]:
    return release.kubectl("exec", pod, "-c", "pytorch", "--", "printenv", "NVIDIA_VISIBLE_DEVICES").strip().split(",")


def model(release: Release) -> Iterator[Row]:
    """A user's own model in an image of three lines."""
    image, cluster = "ddp-e2e-mine:1", CONTEXT.removeprefix("kind-")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mine.py").write_text(OWN_MODEL, encoding="utf-8")
        Path(folder, "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY mine.py /opt/mine/\nENV PYTHONPATH=/opt/mine\n", encoding="utf-8")
        run("docker", "build", "-q", "-t", image, folder, timeout=120)
    nodes = ",".join(name for name in run("kind", "get", "nodes", "--name", cluster).split() if "control-plane" not in name)
    run("kind", "load", "docker-image", image, "--name", cluster, "--nodes", nodes, timeout=400)
    mine = ("--set", "image.repository=ddp-e2e-mine", "--set-string", "image.tag=1", "--set", "config.task.name=mine:Small")
    yield from _install(release, "--set", "replicas=2", *mine, "--set", "config.optim.max_steps=30")
    release.wait_condition("Succeeded")
    yield Row("a user's own model", "Succeeded", "Succeeded")


def bad(release: Release) -> Iterator[Row]:
    """What only a cluster can refuse says why within a minute, and what the chart can refuse never reaches it."""
    wrong = {
        "image that does not exist": (
            ("--set", "image.tag=none"),
            ("Failed to pull image", "ErrImagePull", "ErrImageNeverPull", "ImagePullBackOff"),
        ),
        "wrong storage class": (("--set", "checkpoint.storageClass=none"), ('storageclass.storage.k8s.io "none" not found',)),
        "more CPU than there is": (("--set", "resources.requests.cpu=500"), ("Insufficient cpu",)),
    }
    for case, (arguments, words) in wrong.items():
        started = time.time()
        release.do_helm("install", "-f", VALUES, "--set", "replicas=2", "--set", "checkpoint.keep=false", *arguments)
        said = until(
            f"an event for: {case}", 90, lambda words=words: next((found for word in words if (found := _warning(release, word))), None)
        )
        yield Row(case, "an event within 60 s", said, time.time() - started, time.time() - started < EVENT_SECONDS)
        release.do_helm("uninstall")
        until("nothing left", 150, lambda: None if _left(release) else "nothing")
        release.kubectl("delete", "events", "--all")
    said = release.do_helm("install", "-f", VALUES, "--set", "replicas=3", check=False)
    yield Row("replicas that do not fit", "refused at render", said.strip()[-160:].replace("\n", " "), good="cannot share" in said)


def _warning(release: Release, words: str) -> str | None:
    messages = [event["message"] for event in release.json("events", "--field-selector=type=Warning")]
    return next((message[:140] for message in messages if words in message), None)


def five(release: Release) -> Iterator[Row]:
    """Five installs in a row, each trained to its end."""
    for number in range(1, 6):
        yield from _install(
            release,
            "--set",
            "replicas=4",
            "--set",
            "checkpoint.keep=false",
            "--set",
            "config.optim.max_steps=10",
            what=f"install {number} of 5",
        )
        release.wait_condition("Succeeded")
        release.do_helm("uninstall")
        until("nothing left", 150, lambda: None if _left(release) else "nothing")


def _reaches(release: Release, address: str, port: int) -> bool:
    probe = f"import socket; socket.create_connection(('{address}', {port}), 2).close(); print('open')"
    return "open" in release.kubectl("exec", "reader", "--", "python", "-c", probe, check=False)


# --- parts that several cases share --------------------------------------------------------------------------------------------------


def _install(release: Release, *arguments: str, what: str = "install -> first step", trains: bool = True) -> Iterator[Row]:
    started = time.time()
    release.do_helm("install", "-f", VALUES, *arguments)
    if trains:
        took = release.first_step() - started
        yield Row(what, f"< {FIRST_STEP_SECONDS:.0f} s", "trains", took, slow=took >= FIRST_STEP_SECONDS)


def _delete_pod(release: Release, which: str, bound: float) -> Row:
    before = release.progress[-1]
    release.exits.clear()
    started = time.time()
    release.kubectl("delete", "pod", f"{release.job}-{which}", "--wait=false")
    return _recovered(release, f"delete {which}", started, before.step, bound)


def _kill_rank(release: Release) -> Row:
    before = release.progress[-1]
    release.exits.clear()
    started = time.time()
    release.kubectl("exec", f"{release.job}-worker-0", "-c", "pytorch", "--", "python", "-c", KILL_RANK)
    return _recovered(release, "SIGKILL a rank of worker-0", started, before.step, RANK_SECONDS)


def _recovered(release: Release, case: str, started: float, step: int, bound: float) -> Row:
    seen = release.next_step(started)
    resumed = [event for event in release.events() if event["kind"] == "resume" and event["time"] > started]
    lost = max(0, step - resumed[-1]["step"]) if resumed else 0
    took = seen.time - started
    said = f"goes on at {seen.step}, {lost} steps lost; exit codes {release.exit_codes()}"
    return Row(case, f"next step < {bound:.0f} s, no code 1", said, took, _no_code_1(release), slow=took >= bound)


def _no_code_1(release: Release) -> bool:
    return all(1 not in codes for codes in release.exits.values())


def _uninstall(release: Release) -> Iterator[Row]:
    release.stop_following()
    release.do_helm("uninstall")
    yield _only_claim(release)


def _only_claim(release: Release) -> Row:
    started = time.time()
    claim = [f"persistentvolumeclaim/{release.name}-checkpoints"]
    left = until("only the claim left", 150, lambda: _left(release) if _left(release) == claim else None)
    return Row("uninstall", "only the claim stays", " ".join(left), time.time() - started)


def _left(release: Release) -> list[str]:
    kinds = "pytorchjobs,pods,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims,networkpolicies"
    names = release.kubectl("get", kinds, "-o", "name").split()
    own = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    return [name for name in names if name not in own]


CASES = {case.__name__: case for case in (short, train, upgrade, restricted, helm3, manifests, drain, network, model, bad, gpu, five)}
