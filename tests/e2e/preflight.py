"""What must be there before the first case: tools, a cluster that answers, the training operator. One sentence says what is missing."""

from __future__ import annotations

import json
import shutil

from cluster import CLUSTER, CONTEXT, IMAGE, CaseError, kubectl, run, uncordon_all

TOOLS = ("docker", "kind", "kubectl", "helm")
CRD = "pytorchjobs.kubeflow.org"
OPERATOR = "deployment/training-operator"
"""A case that was interrupted may have left it away."""
SECONDS = 30.0
"""Bound of each question."""


class PreflightError(Exception):
    """The sentence says what is missing and how to get it."""


def check() -> str:
    """Look at everything, and let all nodes take work again.

    Returns:
        The versions of what was found, for the record.

    Raises:
        PreflightError: no case can run.
    """
    for tool in TOOLS:
        if not shutil.which(tool):
            raise PreflightError(f"{tool} is not on PATH; install it, and see docs/kubernetes.md")
    _ask("the container engine does not answer; start Docker", "docker", "version", "--format", "{{.Server.Version}}")
    if CLUSTER not in _ask("kind does not answer", "kind", "get", "clusters").split():
        raise PreflightError(f"there is no kind cluster {CLUSTER}; make one with `make kind-up`, or name yours in CLUSTER")
    if CONTEXT not in _ask("kubectl has no configuration", "kubectl", "config", "get-contexts", "-o", "name").split():
        raise PreflightError(f"kubectl knows no context {CONTEXT}; run `kind export kubeconfig --name {CLUSTER}`")
    versions = json.loads(_ask(f"cluster {CLUSTER} does not answer", "kubectl", "--context", CONTEXT, "version", "-o", "json"))
    missing = f"the training operator is not installed in {CLUSTER} (no CRD {CRD}); run `make kind-up`"
    _ask(missing, "kubectl", "--context", CONTEXT, "get", "crd", CRD, "-o", "name")
    _ask("the training operator cannot be scaled", "kubectl", "--context", CONTEXT, "-n", "kubeflow", "scale", OPERATOR, "--replicas=1")
    helms = [_helm(name) for name in ("helm", "helm3") if shutil.which(name)]
    try:
        woken, nodes = uncordon_all(), kubectl("get", "nodes", "-o", "name").split()
    except CaseError as error:
        raise PreflightError(f"the nodes of {CLUSTER} cannot be listed and uncordoned: {error}") from None
    server = versions.get("serverVersion", {}).get("gitVersion", "?")
    told = f"{CLUSTER}: Kubernetes {server}, {len(nodes)} nodes; {', '.join(helms)}; {IMAGE}"
    return told + (f"; uncordoned {', '.join(woken)}" if woken else "")


def _helm(name: str) -> str:
    version = _ask(f"{name} does not say its version", name, "version", "--short").strip()
    if not version.startswith(("v3.", "v4.")):
        raise PreflightError(f"{name} is {version}; the chart is for Helm 3 and 4")
    return f"{name} {version}"


def _ask(problem: str, *command: str) -> str:
    try:
        return run(*command, timeout=SECONDS)
    except CaseError as error:
        raise PreflightError(f"{problem} ({' '.join(str(error).split())})") from None
