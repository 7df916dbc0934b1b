"""Jobs that are not the chart's: upstream's own example, which is adopted by its label, and some lines of Python with a TrainingRun."""

from __future__ import annotations

from typing import Any

from cluster import IMAGE, OPERATOR_IMAGE
from release import Release

TRACK_LABEL = {"ddp-operator.io/track": "true"}
EXAMPLE, PLAIN = "pytorch-simple", "plain"
"""Their names."""
SCRIPT, FOLDER, CLAIM = "tests/e2e/mnist.py", "/opt/pytorch-mnist", "mnist-logs"


def apply_example(release: Release, epochs: int, *, worker_policy: str = "OnFailure") -> None:
    """Upstream's examples/pytorch/simple.yaml, with an image that is here (torch is all it is used for) and a claim for its logs."""
    release.kubectl("create", "configmap", "mnist", f"--from-file={SCRIPT}")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    release.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})
    container = {
        "name": "pytorch",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"{FOLDER}/mnist.py", f"--epochs={epochs}"],
        "volumeMounts": [{"name": "script", "mountPath": FOLDER}],
    }
    script = {"name": "script", "configMap": {"name": "mnist"}}
    logs = {"name": "logs", "persistentVolumeClaim": {"claimName": CLAIM}}
    with_logs = {**container, "volumeMounts": [*container["volumeMounts"], {"name": "logs", "mountPath": "/logs"}]}
    replicas = {
        "Master": _replica("OnFailure", {"containers": [with_logs], "volumes": [script, logs]}),
        "Worker": _replica(worker_policy, {"containers": [container], "volumes": [script]}),
    }
    release.apply(_job(EXAMPLE, replicas, TRACK_LABEL))


def apply_plain(release: Release, policy: dict[str, Any], master: str, worker: str = "", **more: Any) -> None:
    """A TrainingRun with a policy, and its job: a pod for each script.

    Args:
        release: whose namespace it is for.
        policy: of the TrainingRun.
        master: the master's lines of Python.
        worker: the worker's; "" for a job without one.
        more: `labels` and `run_policy` of the job, `container` for further fields of each container.
    """
    replicas = {}
    for kind, script in (("Master", master), ("Worker", worker)):
        container = {"name": "pytorch", "image": OPERATOR_IMAGE, "command": ["python", "-c", script], **more.get("container", {})}
        # such a process 1 does not hear SIGTERM
        replicas[kind] = _replica("ExitCode", {"containers": [container], "terminationGracePeriodSeconds": 2})
    if not worker:
        del replicas["Worker"]
    run = {"apiVersion": "ddp-operator.io/v1alpha1", "kind": "TrainingRun", "metadata": {"name": PLAIN}}
    release.apply({**run, "spec": {"jobRef": {"name": PLAIN}, "policy": policy}})
    release.apply(_job(PLAIN, replicas, more.get("labels", {}), more.get("run_policy", {})))


def _replica(policy: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"replicas": 1, "restartPolicy": policy, "template": {"spec": spec}}


def _job(name: str, replicas: dict[str, Any], labels: dict[str, str], run_policy: dict[str, Any] | None = None) -> dict[str, Any]:
    spec = {"pytorchReplicaSpecs": replicas, **({"runPolicy": run_policy} if run_policy else {})}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name, "labels": labels}, "spec": spec}
