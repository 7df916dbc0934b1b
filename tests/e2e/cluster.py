"""The cluster as the end-to-end cases reach it: commands with a bound, waits with a bound, and the two ways in which a case can stop."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
CHART = "helm/"
"""As the README writes it: every command runs in the repository's root."""
CLUSTER = os.environ.get("CLUSTER", "ddp-e2e")
CONTEXT = f"kind-{CLUSTER}"
DEFAULT_IMAGE = "ddp-trainer:0.1.0"
IMAGE = os.environ.get("TRAINER_IMAGE", DEFAULT_IMAGE)
DEFAULT_OPERATOR_IMAGE = "ddp-operator:0.1.0"
OPERATOR_IMAGE = os.environ.get("OPERATOR_IMAGE", DEFAULT_OPERATOR_IMAGE)
GPU = "nvidia.com/gpu"
T = TypeVar("T")


class CaseError(Exception):
    """What was expected did not happen; the sentence goes into the table."""


class NotRunError(Exception):
    """A case needs something that is not here; the sentence goes into the table, and says what."""


def run(*command: str, check: bool = True, stdin: str | None = None, timeout: float = 120) -> str:
    """A command's output; with check=False its error output is part of it.

    Raises:
        CaseError: it failed, was not there, or took longer than its bound.
    """
    said = " ".join(command[:7]).replace("\n", " ")[:160]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, timeout=timeout, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise CaseError(f"{said} ...: not within {timeout:.0f} s") from None
    except OSError as error:
        raise CaseError(f"{command[0]} cannot be started: {error.strerror}; install it, or put it on PATH") from None
    if check and done.returncode:
        raise CaseError(f"{said} ...: {(done.stderr.strip() or done.stdout.strip())[-400:]}")
    return done.stdout if check else done.stdout + done.stderr


def until(what: str, seconds: float, look: Callable[[], T | None], pause: float = 0.2) -> T:
    """Look until there is something, at most so long; a look that fails is tried again, and its words are in the error's."""
    deadline, trouble = time.monotonic() + seconds, ""
    while True:
        try:
            if (found := look()) is not None and found is not False:
                return found
        except CaseError as error:
            trouble = f"; the last look: {error}"
        if time.monotonic() > deadline:
            raise CaseError(f"{what}: not within {seconds:.0f} s{trouble}")
        time.sleep(pause)


def kubectl(*arguments: str, **options: Any) -> str:
    """kubectl on this cluster, and no other."""
    return run("kubectl", "--context", CONTEXT, *arguments, **options)


def items(*arguments: str) -> list[dict[str, Any]]:
    """The items of `kubectl get`."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "-o", "json"))["items"]
    return found


def workers() -> list[str]:
    """Names of the nodes that take work."""
    nodes = items("nodes")
    return [n["metadata"]["name"] for n in nodes if not any(taint["effect"] == "NoSchedule" for taint in n["spec"].get("taints", []))]


def uncordon_all() -> list[str]:
    """Let every node take work again, after a drain that was interrupted; gives those that did not."""
    cordoned = [node["metadata"]["name"] for node in items("nodes") if node["spec"].get("unschedulable")]
    for node in cordoned:
        kubectl("uncordon", node)
    return cordoned


def allocatable_gpus() -> dict[str, int]:
    """GPUs that each node offers, those in use among them."""
    return {node["metadata"]["name"]: int(node["status"]["allocatable"].get(GPU, 0)) for node in items("nodes")}


def in_node(node: str, script: str, **options: Any) -> str:
    """A shell command in a kind node, which is a container of the engine."""
    return run("docker", "exec", "--privileged", node, "sh", "-c", script, **options)


def settings(*pairs: str) -> list[str]:
    """`key=value` pairs as Helm's arguments."""
    return [word for pair in pairs for word in ("--set", pair)]


def image_settings() -> list[str]:
    """Helm's arguments for both images; none where they are the chart's own defaults."""
    return [*_image("image", IMAGE, DEFAULT_IMAGE), *_image("operator.image", OPERATOR_IMAGE, DEFAULT_OPERATOR_IMAGE)]


def _image(key: str, image: str, default: str) -> list[str]:
    if image == default:
        return []
    name, _, digest = image.partition("@")
    if digest:
        return settings(f"{key}.repository={name}", f"{key}.digest={digest}")
    repository, _, tag = name.rpartition(":")
    if not repository or "/" in tag:  # that colon was a registry's port, or there was none
        repository, tag = name, "latest"
    return [*settings(f"{key}.repository={repository}"), "--set-string", f"{key}.tag={tag}"]
