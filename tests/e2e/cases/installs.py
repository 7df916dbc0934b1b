"""Ways to install: as the README says it, with Helm 3, without Helm, restricted, one's own model, two side by side, again and again."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster import CLUSTER, IMAGE, CaseError, NotRunError, image_settings, run, settings, until, workers
from inside import OWN_MODEL
from release import RUN_LABEL, Release
from table import Row

from cases.steps import GONE_SECONDS, finish, install, nothing_left, uninstall

OWN_IMAGE, OWN_TASK = "ddp-e2e-mine", "mine:Small"
OWN_MODEL_BYTES = 5_000_000
"""Above the small model's checkpoint (0.1 MB), and far below a ResNet's."""
SHORTER = ((r"resnet50", "resnet18"), (r'"epochs": \d+', '"max_steps": 20'), (r"image: \S+", f"image: {IMAGE}"))
"""The manifests are the demo's, whose length is for a demo."""


def literal(release: Release) -> Iterator[Row]:
    """`helm install ddp-demo helm/ --set replicas=4`, the demo as it is (but for its length and the GPUs), and `helm test`."""
    started = time.time()
    release.do_helm("install", *settings("replicas=4", "gpusPerReplica=0", "config.optim.max_steps=20"), *image_settings())
    release.first_step(300)
    said = release.do_helm("test", "--timeout", "3m", timeout=200)
    yield Row("helm test", "Succeeded", said[-200:] if "Succeeded" not in said else "Succeeded", good="Succeeded" in said)
    release.wait_end("Succeeded", 600)
    took = time.time() - started
    release.follow()
    state = release.kubectl("get", "pytorchjobs", "--no-headers").split()[1]
    first = release.wait_event("first_step", started)["time"] - started
    words = f"{state}, first step after {first:.1f} s, steps {release.durable_steps()} on the claim"
    good = state == "Succeeded" and 20 in release.durable_steps()
    yield Row(f"the demo, 4 pods ({release.helm_version})", "Succeeded, step 20 durable", words, took, good)
    yield uninstall(release)


def helm3(release: Release) -> Iterator[Row]:
    """The same with Helm 3: install, uninstall, install over the claim that stayed, to the end."""
    major = run("helm", "version", "--short").strip().removeprefix("v").split(".")[0]
    if major != "4":
        yield Row("Helm 4", "all cases but this one", f"`helm` on PATH is version {major}", ran=False)
    release.helm = "helm" if major == "3" else "helm3"
    if not shutil.which(release.helm):
        raise NotRunError("there is no helm3 on PATH, and helm is not version 3")
    yield from install(release, "replicas=2")
    release.follow()
    release.wait_step(12)
    yield uninstall(release)
    yield from install(release, "replicas=2", what="reinstall over the kept claim -> first step")
    release.follow()
    yield finish(release, "Helm 3, reinstalled, brought to its end by an upgrade")


def restricted(release: Release) -> Iterator[Row]:
    """topology=workers in a namespace that enforces Pod Security restricted."""
    yield from install(release, "replicas=2", "topology=workers", "podSecurity.level=restricted")
    release.follow()
    yield finish(release, "topology=workers, restricted")


def manifests(release: Release) -> Iterator[Row]:
    """The plain YAML of manifests/, with kustomize."""
    yaml = run("kubectl", "kustomize", "manifests/overlays/cpu")
    for long, brief in SHORTER:
        yaml, count = re.subn(long, brief, yaml)
        if not count:
            raise CaseError(f"manifests/overlays/cpu has no {long!r}, which this case replaces")
    started = time.time()
    release.kubectl("apply", "-f", "-", stdin=yaml)
    release.wait_end("Succeeded", 600)
    yield Row("kubectl apply -k manifests/overlays/cpu", "Succeeded", "Succeeded", time.time() - started)


def model(release: Release) -> Iterator[Row]:
    """A user's own model in an image of three lines."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mine.py").write_text(OWN_MODEL, encoding="utf-8")
        Path(folder, "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY mine.py /opt/mine/\nENV PYTHONPATH=/opt/mine\n", encoding="utf-8")
        run("docker", "build", "-q", "-t", f"{OWN_IMAGE}:1", folder, timeout=180)
    run("kind", "load", "docker-image", f"{OWN_IMAGE}:1", "--name", CLUSTER, "--nodes", ",".join(workers()), timeout=400)
    image = (*settings(f"image.repository={OWN_IMAGE}", "image.digest=null"), "--set-string", "image.tag=1")
    release.install("replicas=2", f"config.task.name={OWN_TASK}", more=image)
    release.first_step()
    release.follow()
    yield finish(release, "a user's own model")
    task = json.loads(release.read("config.json"))["task"]["name"]
    size = release.diary.of("checkpoint")[-1]["bytes"]
    yield Row(
        "what was trained",
        f"{OWN_TASK}, a small model",
        f"{task}, checkpoint of {size} bytes",
        good=task == OWN_TASK and size < OWN_MODEL_BYTES,
    )


def two(release: Release) -> Iterator[Row]:
    """Two releases in one namespace: each has its own objects and claim, both train, and one goes without the other noticing."""
    other = Release(release.namespace, name="ddp-other")
    yield from install(release, "replicas=2")
    other.install("replicas=2")
    other.first_step()
    try:
        release.follow()
        other.follow()
        steps = release.wait_steps(5).step, other.wait_steps(5).step
        yield Row("two releases in one namespace", "both train", f"at steps {steps[0]} and {steps[1]}", good=release.job != other.job)
        attempt = release.last.attempt
        other.stop_following()
        other.do_helm("uninstall")
        until("its pods are gone", GONE_SECONDS, lambda: not release.items("pods", "-l", f"{RUN_LABEL}={other.name}"))
        seen = release.wait_steps(10)
        words = f"step {seen.step}, attempt {seen.attempt}"
        yield Row("one is uninstalled", "the other goes on, undisturbed", words, good=seen.attempt == attempt)
        claims = sorted(claim["metadata"]["name"] for claim in release.items("persistentvolumeclaims"))
        yield Row("claims", "both stay", ", ".join(claims), good=claims == ["ddp-demo-checkpoints", "ddp-other-checkpoints"])
    finally:
        other.stop_following()


def five(release: Release) -> Iterator[Row]:
    """Five installs in a row, each trained to its end."""
    for number in range(1, 6):
        yield from install(release, "replicas=4", "checkpoint.keep=false", "config.optim.max_steps=10", what=f"install {number} of 5")
        release.wait_end("Succeeded")
        release.do_helm("uninstall")
        nothing_left(release)
