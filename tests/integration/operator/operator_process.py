"""The whole operator as a process of its own, a job that it looks after in an API server in memory, and waiting for facts of both."""

import asyncio
import contextlib
import os
import socket
import sys
import time

import pytest
from aiohttp import ClientError, ClientSession
from fake_api_server import stamp

WAIT_SECONDS = 60.0
LEASE_SECONDS = 1.5
NODES = ("master", "worker")


class Operator:
    """One process. Its settings make everything quick."""

    def __init__(self, server, folder, preface="pass", **settings):
        self.preface = preface
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        given = {
            "port": self.port,
            "namespaces": "default",
            "lease_seconds": LEASE_SECONDS,
            "sweep_seconds": 1.5,
            "progress_seconds": 0.3,
            **settings,
        }
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "KUBECONFIG": str(server.kubeconfig(folder)),
            **{f"DDP_OPERATOR__{key.upper()}": str(value) for key, value in given.items()},
        }

    async def __aenter__(self):
        command = [sys.executable, "-c", f"from ddp_operator import handlers, main; {self.preface}; main.main()"]
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*command, env=self.environment, stderr=pipe, stdout=pipe)
        self.log = b""
        self.reader = asyncio.create_task(self._read())
        return self

    async def _read(self):
        while part := await self.process.stderr.read(65536):
            self.log += part

    async def __aexit__(self, kind, *_):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reader
        self.process._transport.close()
        if kind is not None:
            print(self.log.decode(errors="replace")[-8000:])

    async def ended(self):
        code = await asyncio.wait_for(self.process.wait(), WAIT_SECONDS)
        await self.reader
        return code

    async def asked(self, path):
        with contextlib.suppress(ClientError):
            async with ClientSession(trust_env=False) as session, session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                return answer.status, await answer.text()
        return 0, ""


async def until(claim, what):
    """Wait for a fact; `claim` may be a coroutine function."""
    ends_at = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < ends_at:
        found = claim()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"waited {WAIT_SECONDS:g} s for: {what}")


class Cluster:
    """A job of two pods, and what the training operator would do with them."""

    def __init__(self, server, port):
        self.server, self.port = server, port
        server.on_write = self.control
        self.suspensions = []
        self.hook = lambda *_: None

    def start(self, **policy):
        self.server.put("trainingruns", {"metadata": meta("demo"), "spec": {"jobRef": {"name": "demo"}, "policy": policy}})
        replicas = {kind.title(): {"replicas": 1, "restartPolicy": "ExitCode"} for kind in NODES}
        self.server.put("pytorchjobs", {"metadata": meta("demo"), "spec": {"pytorchReplicaSpecs": replicas}})

    def make_pods(self):
        for kind in NODES:
            self.pod(kind)

    def pod(self, kind, phase="Running"):
        labels = {"job-name": "demo", "replica-type": kind, "replica-index": "0"}
        ports = [{"name": "telemetry", "containerPort": self.port}] if self.port else []
        state = {"name": "pytorch", "ready": True, "restartCount": 0, "state": {"running": {"startedAt": stamp()}}}
        body = {
            "metadata": meta(f"demo-{kind}-0", {f"training.kubeflow.org/{key}": value for key, value in labels.items()}),
            "spec": {"nodeName": "n1", "containers": [{"name": "pytorch", "ports": ports}]},
            "status": {"phase": phase, "podIP": "127.0.0.1", "containerStatuses": [state] if phase == "Running" else []},
        }
        self.server.put("pods", body)

    def control(self, method, plural, name):
        if (method, plural) == ("PATCH", "pytorchjobs"):
            is_suspended = self.server.get(plural, "demo")["spec"]["runPolicy"]["suspend"]
            self.suspensions.append(is_suspended)
            for kind in NODES if is_suspended else ():
                self.server.remove("pods", f"demo-{kind}-0")
            if not is_suspended:
                self.make_pods()
        self.hook(method, plural, name)

    def status(self):
        return (self.server.get("trainingruns", "demo") or {}).get("status") or {}

    def phase(self):
        return self.status().get("phase")


def meta(name, labels=None):
    return {"name": name, "namespace": "default", "labels": labels or {}}
