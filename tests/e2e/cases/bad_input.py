"""Bad input: the render, Helm, the API server, an event or a pod's last words say what is wrong within a minute, and nothing is lost."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial

from cluster import CHART, CLUSTER, in_node, kubectl, run, until, workers
from release import Release
from table import Row

from cases.steps import finish, install, nothing_left, uninstall, warning

EVENT_SECONDS = 60.0
WRONG = {
    "image that does not exist": (("image.tag=none",), ("Failed to pull image", "ErrImagePull", "ErrImageNeverPull", "ImagePullBackOff")),
    "wrong storage class": (("checkpoint.storageClass=none",), ('storageclass.storage.k8s.io "none" not found',)),
    "more CPU than there is": (("resources.requests.cpu=500",), ("Insufficient cpu",)),
}
"""What only a cluster can refuse: values, and the words of the event."""
TINY, TINY_MEGABYTES = "e2e-tiny", 150
"""A volume that holds one checkpoint of a ResNet-18 (90 MB) and not a second: of two, the older one would make room for a third."""
TINY_PATH = f"/mnt/{TINY}"


def bad(release: Release) -> Iterator[Row]:
    """What only a cluster can refuse says why within a minute, and what the chart can refuse never reaches it."""
    for case, (pairs, words) in WRONG.items():
        started = time.time()
        release.install("replicas=2", "checkpoint.keep=false", *pairs)
        said = until(f"an event for: {case}", 90, partial(warning, release, *words))
        took = time.time() - started
        yield Row(case, f"an event within {EVENT_SECONDS:.0f} s", said, took, took < EVENT_SECONDS)
        release.do_helm("uninstall")
        nothing_left(release)
        release.kubectl("delete", "events", "--all")
    said = release.do_helm("install", "--set", "replicas=3", "--set", "gpusPerReplica=0", check=False)
    yield Row("replicas that do not fit", "refused at render", said.strip()[-200:], good="cannot share" in said)


def config(release: Release) -> Iterator[Row]:
    """A configuration that only the trainer can refuse: the job fails with 2, and the pod's last words name the key."""
    release.watch_exits()
    started = time.time()
    release.install("replicas=2", "extraEnv[0].name=DDP__OPTIM__MOMENTUM", more=("--set-string", "extraEnv[0].value=0"))
    release.wait_end("Failed", 120)
    took = time.time() - started
    code = release.wait_exit("master-0", started, 30).code
    words = release.last_words("master-0")
    good = code == 2 and "nesterov" in words and took < EVENT_SECONDS
    yield Row("nesterov without momentum", "Failed, 2, last words that name the key", f"Failed, {code}: {words[-200:]}", took, good)


def names(release: Release) -> Iterator[Row]:
    """A release's name of 54 characters is refused by Helm; one of 53 is cut where a pod's name needs room, and trains."""
    said = Release(release.namespace, name="n" * 54).do_helm("install", "--set", "gpusPerReplica=0", check=False)
    yield Row("a name of 54 characters", "refused with a sentence", said.strip()[-200:], good="53" in said)
    longest = Release(release.namespace, name="n" * 53)
    yield from install(longest, "replicas=2", what="a name of 53 characters -> first step")
    pods = [pod["metadata"]["name"] for pod in longest.pods()]
    yield Row("its pods", "2, at most 63 characters", ", ".join(pods), good=len(pods) == 2 and max(map(len, pods)) <= 63)
    yield uninstall(longest)


def full(release: Release) -> Iterator[Row]:
    """The claim is full: an alarm, training goes on, and at the end 3 with a sentence; what was saved is there when room has been made."""
    node = workers()[0]
    _make_tiny_volume(release, node)
    release.claim = TINY
    yield from install(release, "replicas=2", f"checkpoint.existingClaim={TINY}", "config.checkpoint.keep=2")
    release.follow()
    alarm = until("an alarm in the master's log", 180, lambda: _line(release, "cannot be written"), pause=1)
    seen, kept = release.wait_steps(12), release.durable_steps()
    words = f"step {seen.step}, steps {kept} on the claim; {alarm[-160:]}"
    yield Row("claim full while it trains", "an alarm, training goes on", words, good=bool(kept) and seen.phase in {"training", "saving"})
    release.upgrade(f"config.optim.max_steps={seen.step + 20}")
    started = time.time()
    release.wait_end("Failed", 300)
    job = release.job
    end = until("the master's exit code", 60, lambda: release.exits_of(job).get("master-0"))
    codes = {place: found.code for place, found in release.exits_of(job).items()}
    words = f"Failed, {codes}: {end.message[:240]}"
    good = end.code == 3 and "cannot be written" in end.message and 1 not in codes.values()
    yield Row("claim full at the end", "Failed, 3, last words that say why", words, time.time() - started, good)
    in_node(node, f"mount -o remount,size=2g {TINY_PATH}")
    started = time.time()
    yield finish(release, "room was made, and the run applied again")
    resumed = release.diary.of("resume", started)
    step = resumed[-1]["step"] if resumed else 0
    yield Row("what was saved before", f"it goes on from step {max(kept)}", f"from step {step}", good=step == max(kept))


def _make_tiny_volume(release: Release, node: str) -> None:
    """A claim on a file system in a node's memory, and how to be rid of it."""
    forget = f"umount -l {TINY_PATH} 2>/dev/null; true"

    def remove() -> None:
        kubectl("delete", "persistentvolume", TINY, "--ignore-not-found", "--timeout=60s", check=False)
        in_node(node, forget, check=False)

    remove()  # what an interrupted case left
    release.afterwards.append(remove)
    in_node(node, f"mkdir -p {TINY_PATH} && mount -t tmpfs -o size={TINY_MEGABYTES}m,mode=1777 tmpfs {TINY_PATH}")
    size = {"storage": f"{TINY_MEGABYTES}Mi"}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume = {
        "capacity": size,
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": TINY,
        "local": {"path": TINY_PATH},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": TINY, "volumeName": TINY, "resources": {"requests": size}}
    release.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": TINY}, "spec": volume})
    release.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": TINY}, "spec": claim})


def _line(release: Release, words: str) -> str | None:
    return next((line for line in release.log("master-0").splitlines() if words in line), None)


def no_operator(release: Release) -> Iterator[Row]:
    """The training operator's CRD is missing: Helm says so. In a throw-away cluster of one node."""
    bare, image = f"{CLUSTER}-bare", os.environ.get("KIND_NODE_IMAGE")
    with tempfile.TemporaryDirectory() as folder:
        place = ("--name", bare, "--kubeconfig", f"{folder}/kubeconfig")
        try:
            run("kind", "create", "cluster", *place, *(["--image", image] if image else []), "--wait", "120s", timeout=300)
            command = ("helm", "--kubeconfig", f"{folder}/kubeconfig", "install", "ddp-demo", CHART, "--set", "gpusPerReplica=0")
            said = run(*command, check=False).strip()
        finally:
            run("kind", "delete", "cluster", *place, check=False)
    good = "PyTorchJob" in said and ("no matches for kind" in said or "training operator" in said)
    yield Row("the training operator is missing", "Helm names what is missing", said[-300:], good=good)
