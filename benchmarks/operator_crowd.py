"""A crowd of runs on a real API server: jobs, pods and TrainingRuns as objects, their nodes kept alive, their progress served.

No pod runs. Nodes are objects whose leases are renewed here, so that the cluster's own controllers leave the pods alone; pods are bound to
them and their status is written here, as a kubelet would. Each pod has an address of its own in 127.0.0.0/8, where one server answers for
all on the telemetry port, so the operator must run on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from ddp_operator.observe.api import Api, ApiError

NAMESPACE = "scale"
NODES = 20
LEASE_RENEWAL_SECONDS = 8.0
REPLICAS = (("Master", 0), ("Worker", 0), ("Worker", 1), ("Worker", 2))
PORT = 9400
IN_FLIGHT = 40
"""Requests of the crowd's own at once: enough to keep two cores busy."""
JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
RUNS = f"/apis/ddp-operator.io/v1alpha1/namespaces/{NAMESPACE}/trainingruns"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
STEP_SECONDS = 0.5
ELSEWHERE = "kueue.x-k8s.io/multikueue"
"""As runPolicy.managedBy: the training operator keeps the job in its cache, and makes no pods of its own beside the crowd's."""


def name_of(run: int) -> str:
    """Of a run and its job."""
    return f"run-{run:05d}"


def address_of(run: int) -> str:
    """Of the first pod of a run, within 127.0.0.0/8."""
    return f"127.{1 + run // 62_500}.{run // 250 % 250}.{1 + run % 250}"


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _template(run: int) -> dict[str, Any]:
    container = {
        "name": "pytorch",
        "image": "ddp-trainer:none",
        "args": ["--config", "/etc/ddp/config.json"],
        "ports": [{"name": "pytorchjob-port", "containerPort": 23456}, {"name": "telemetry", "containerPort": PORT}],
        "env": [{"name": f"VARIABLE_{i}", "value": "a value of usual length"} for i in range(10)],
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
        "volumeMounts": [{"name": "checkpoints", "mountPath": "/checkpoints"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    volumes = [
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": f"{name_of(run)}-checkpoints"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return {"spec": {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes}}


def job(run: int) -> dict[str, Any]:
    """A PyTorchJob of 1 + 3 pods, of about the size that the chart's has."""
    spec = {"restartPolicy": "ExitCode", "template": _template(run)}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name_of(run), "labels": {"ddp-operator.io/run": name_of(run)}},
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"cleanPodPolicy": "Running", "managedBy": ELSEWHERE},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, **spec}, "Worker": {"replicas": 3, **spec}},
        },
    }


def training_run(run: int) -> dict[str, Any]:
    """As the chart makes it."""
    return {
        "apiVersion": "ddp-operator.io/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name_of(run)},
        "spec": {"jobRef": {"name": name_of(run)}, "checkpoint": {"claimName": f"{name_of(run)}-checkpoints"}},
    }


def pod(run: int, kind: str, index: int, job_uid: str) -> dict[str, Any]:
    """As the training operator makes it, already bound to a node."""
    role = kind.lower()
    template = _template(run)["spec"]
    node = (run * len(REPLICAS) + index + (role == "worker")) % NODES
    labels = {
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/job-name": name_of(run),
        "training.kubeflow.org/replica-type": role,
        "training.kubeflow.org/replica-index": str(index),
        "ddp-operator.io/run": name_of(run),
    }
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": name_of(run), "uid": job_uid, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name_of(run)}-{role}-{index}", "labels": labels, "ownerReferences": [owner]},
        "spec": {
            **template,
            "nodeName": f"scale-{node}",
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
        },
    }


def pod_running(run: int, kind: str, now: float) -> dict[str, Any]:
    """The status that a kubelet writes for a pod that trains."""
    started = _stamp(now)
    address = address_of(run) if kind == "Master" else "127.0.0.1"
    kinds = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    container = {
        "name": "pytorch",
        "image": "ddp-trainer:none",
        "imageID": "sha256:" + "0" * 64,
        "containerID": f"containerd://{run:064d}",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": started}},
    }
    return {
        "phase": "Running",
        "startTime": started,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "172.18.0.9",
        "conditions": [{"type": k, "status": "True", "lastTransitionTime": started} for k in kinds],
        "containerStatuses": [container],
    }


def pod_failed(run: int, now: float) -> dict[str, Any]:
    """... and for one whose container was killed for its memory."""
    ended = {"exitCode": 137, "reason": "OOMKilled", "startedAt": _stamp(now - 60), "finishedAt": _stamp(now)}
    status = pod_running(run, "Worker", now)
    (container,) = status["containerStatuses"]
    container |= {"ready": False, "started": False, "state": {"terminated": ended}}
    return {**status, "phase": "Failed", "containerStatuses": [container]}


class Progress:
    """Answers for node 0 of every run. While `is_moving`, each run makes a step in `STEP_SECONDS`."""

    def __init__(self) -> None:
        self.is_moving = True
        self.answers = 0
        self._origin = time.time() - 1000
        self._halted_at: float | None = None

    def halt(self) -> None:
        """From now on every answer is the same."""
        self._halted_at = time.time()

    async def answer(self, request: web.Request) -> web.Response:
        """The document of contract 3.4."""
        self.answers += 1
        now = self._halted_at or time.time()
        step = int((now - self._origin) / STEP_SECONDS)
        durable = step // 20 * 20
        saved = {
            "step": durable,
            "saved_at": self._origin + durable * STEP_SECONDS,
            "bytes": 188_000_000,
            "stall_seconds": 0.02,
            "persist_seconds": 0.5,
            "verified": True,
        }
        document = {
            "schema_version": 1,
            "run": request.host.split(":")[0],
            "attempt": 1,
            "phase": "training",
            "step": step,
            "total_steps": 1_000_000,
            "epoch": step / 79,
            "epochs": 90.0,
            "loss": 2.3 * 0.9999**step + 0.1,
            "accuracy": 0.4,
            "lr": 0.05,
            "samples_per_second": 220.0,
            "eta_seconds": 3600.0,
            "updated_at": now,
            "world_size": 4,
            "checkpoint": saved,
            "restarts": {"crash": 0, "hang": 0, "preemption": 0, "peer_loss": 0},
            "lost_steps": 0,
            "goodput_ratio": 0.98,
            "storage": {"total_bytes": 10**10, "free_bytes": 9 * 10**9},
            "gpus": [],
            "ranks": [],
        }
        return web.Response(body=json.dumps(document).encode(), content_type="application/json")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """All addresses of 127.0.0.0/8 are this machine's: one socket answers for all pods."""
        application = web.Application()
        application.router.add_get("/progress", self.answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", PORT, backlog=4096).start()  # noqa: S104  # see above
        try:
            yield
        finally:
            await runner.cleanup()


async def all_at_once(calls: Iterable[Callable[[], Awaitable[Any]]]) -> None:
    """Make the calls, `IN_FLIGHT` at a time; one that is refused because the object is there already is fine."""
    bound = asyncio.Semaphore(IN_FLIGHT)

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        async with bound:
            for patience in (1.0, 2.0, 4.0, 8.0, 0.0):
                try:
                    await call()
                except ApiError as error:
                    if error.status == 409:
                        return
                    if not patience or error.status not in {0, 429, 500, 503, 504}:
                        raise
                    await asyncio.sleep(error.retry_after_seconds or patience)
                else:
                    return

    await asyncio.gather(*(one(call) for call in calls))


async def make_nodes(api: Api) -> None:
    """Nodes without a kubelet; ready, and believed for as long as `keep_alive` runs."""
    now = _stamp(time.time())
    capacity = {"cpu": "64", "memory": "512Gi", "pods": "1000"}
    condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}
    for number in range(NODES):
        name = f"scale-{number}"
        taint = {"key": "ddp-operator.io/scale", "value": "none", "effect": "NoSchedule"}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": [taint]}}
        with contextlib.suppress(ApiError):
            await api.request("POST", "/api/v1/nodes", body=body, timeout_seconds=10)
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [condition]}}
        kind = "application/strategic-merge-patch+json"
        await api.request("PATCH", f"/api/v1/nodes/{name}/status", body=status, content_type=kind, timeout_seconds=10)


async def keep_alive(api: Api) -> None:
    """Renew the nodes' leases, for ever."""
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    while True:
        for number in range(NODES):
            name = f"scale-{number}"
            renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
            try:
                await api.request(
                    "PATCH", f"{path}/{name}", body={"spec": spec}, content_type="application/merge-patch+json", timeout_seconds=10
                )
            except ApiError as error:
                if error.status == 404:
                    with contextlib.suppress(ApiError):
                        await api.request("POST", path, body=body, timeout_seconds=10)
        await asyncio.sleep(LEASE_RENEWAL_SECONDS)


async def create(api: Api, runs: range) -> None:
    """Everything that `runs` consist of, training."""
    uids: dict[int, str] = {}

    async def one_job(run: int) -> None:
        body = await api.request("POST", JOBS, body=job(run), timeout_seconds=30)
        uids[run] = body["metadata"]["uid"]

    await all_at_once([lambda run=run: one_job(run) for run in runs])
    await all_at_once([lambda run=run: api.request("POST", RUNS, body=training_run(run), timeout_seconds=30) for run in runs])
    places = [(run, kind, index) for run in runs if run in uids for kind, index in REPLICAS]
    await all_at_once([lambda p=p: api.request("POST", PODS, body=pod(*p, uids[p[0]]), timeout_seconds=30) for p in places])
    await all_at_once([lambda p=p: set_status(api, p[0], p[1], p[2], pod_running(p[0], p[1], time.time())) for p in places])


async def set_status(api: Api, run: int, kind: str, index: int, status: dict[str, Any]) -> None:
    """What a kubelet does."""
    path = f"{PODS}/{name_of(run)}-{kind.lower()}-{index}/status"
    await api.request("PATCH", path, body={"status": status}, content_type="application/strategic-merge-patch+json", timeout_seconds=30)


async def replace_pod(api: Api, run: int, kind: str, index: int) -> None:
    """Delete a pod and make it anew, running, as the training operator and a kubelet would."""
    uid = (await api.request("GET", f"{JOBS}/{name_of(run)}", timeout_seconds=30))["metadata"]["uid"]
    path = f"{PODS}/{name_of(run)}-{kind.lower()}-{index}"
    with contextlib.suppress(ApiError):
        await api.request("DELETE", path, query={"gracePeriodSeconds": "0"}, timeout_seconds=30)
    await all_at_once([lambda: api.request("POST", PODS, body=pod(run, kind, index, uid), timeout_seconds=30)])
    await set_status(api, run, kind, index, pod_running(run, kind, time.time()))
