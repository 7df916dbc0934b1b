"""Bodies of objects as a real API server sends them, for tests that then spoil them."""

from typing import Any

GIB = 2**30
JOB_UID = "11111111-0000-4000-8000-000000000001"


def pod_body(name="demo-worker-0", namespace="team", job="demo", uid=None, version=10, **changes) -> dict[str, Any]:
    kind, index = name.removeprefix(f"{job}-").rsplit("-", 1) if name.startswith(f"{job}-") else ("worker", "0")
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-of-{namespace}-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {
                "training.kubeflow.org/job-name": job,
                "training.kubeflow.org/operator-name": "pytorchjob-controller",
                "training.kubeflow.org/replica-type": kind,
                "training.kubeflow.org/replica-index": index,
            },
            "ownerReferences": [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": job, "uid": JOB_UID, "controller": True}],
        },
        "spec": {
            "nodeName": "node-7",
            "terminationGracePeriodSeconds": 60,
            "containers": [
                {"name": "sidecar", "image": "proxy"},
                {
                    "name": "pytorch",
                    "image": "ddp",
                    "ports": [{"name": "pytorchjob-port", "containerPort": 23456}, {"name": "telemetry", "containerPort": 9400}],
                    "resources": {"limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}},
                },
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.2.3",
            "conditions": [
                {"type": "Initialized", "status": "True", "lastTransitionTime": "2026-01-02T03:04:06Z"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:10Z"},
                {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-02T03:04:10Z"},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
            ],
            "containerStatuses": [
                {"name": "sidecar", "ready": True, "restartCount": 9, "state": {"running": {"startedAt": "2026-01-02T03:04:07Z"}}},
                {
                    "name": "pytorch",
                    "ready": True,
                    "restartCount": 1,
                    "state": {"running": {"startedAt": "2026-01-02T03:04:09Z"}},
                    "lastState": {
                        "terminated": {
                            "exitCode": 137,
                            "reason": "OOMKilled",
                            "finishedAt": "2026-01-02T03:04:08Z",
                            "message": '{"cause":"oom"}',
                        }
                    },
                },
            ],
        },
    }
    body.update(changes)
    return body


def job_body(name="demo", namespace="team", uid=JOB_UID, version=10, labels=None, **changes) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "pytorch", "image": "ddp"}]}}
    master = {"spec": {**template["spec"], "volumes": [{"name": "c", "persistentVolumeClaim": {"claimName": "demo-checkpoints"}}]}}
    body = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:00Z",
            "labels": labels or {},
            "managedFields": [
                {"manager": "helm", "operation": "Update", "time": "2026-01-02T03:04:00Z", "fieldsV1": {"f:spec": {"f:runPolicy": {}}}},
                {
                    "manager": "ddp-operator",
                    "operation": "Update",
                    "time": "2026-01-02T04:00:00Z",
                    "fieldsV1": {"f:spec": {"f:runPolicy": {"f:suspend": {}}}},
                },
            ],
        },
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running", "suspend": False},
            "pytorchReplicaSpecs": {
                "Master": {"replicas": 1, "restartPolicy": "ExitCode", "template": master},
                "Worker": {"replicas": 3, "restartPolicy": "ExitCode", "template": template},
            },
        },
        "status": {
            "conditions": [
                {
                    "type": "Created",
                    "status": "True",
                    "reason": "PyTorchJobCreated",
                    "message": "m",
                    "lastTransitionTime": "2026-01-02T03:04:01Z",
                },
                {
                    "type": "Running",
                    "status": "True",
                    "reason": "PyTorchJobRunning",
                    "message": "",
                    "lastTransitionTime": "2026-01-02T03:04:09Z",
                },
            ]
        },
    }
    body.update(changes)
    return body


def claim_body(name="demo-checkpoints", namespace="team", uid=None, version=10, **changes) -> dict[str, Any]:
    body = {
        "metadata": {"name": name, "namespace": namespace, "uid": uid or f"uid-of-{name}", "resourceVersion": str(version)},
        "spec": {"resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "12Gi"}},
    }
    body.update(changes)
    return body


def run_body(name="demo", namespace="team", job="demo", uid=None, version=10, spec=None, status=None, **meta) -> dict[str, Any]:
    return {
        "apiVersion": "ddp-operator.io/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-of-run-{name}",
            "resourceVersion": str(version),
            "generation": 2,
            "creationTimestamp": "2026-01-02T03:04:00Z",
            **meta,
        },
        "spec": {"jobRef": {"name": job}, **(spec or {})},
        **({"status": status} if status is not None else {}),
    }


def document_body(**changes) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run": "demo",
        "node": 0,
        "attempt": 2,
        "phase": "training",
        "step": 420,
        "total_steps": 1000,
        "epoch": 1.5,
        "epochs": 4.0,
        "loss": 0.25,
        "updated_at": 1_700_000_000.5,
        "world_size": 4,
        "checkpoint": {"step": 400, "saved_at": 1.7e9, "bytes": 123, "stall_seconds": 0.1, "persist_seconds": 0.4, "verified": True},
        "restarts": {"crash": 1, "hang": 0, "preemption": 2, "peer_loss": 0},
        "storage": {"total_bytes": 10 * GIB, "free_bytes": 4 * GIB},
        "gpus": [],
        "ranks": [],
        **changes,
    }
