"""The whole operator as its own process against an API server in memory: what users see, what kills do, and how it ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time

import pytest
from aiohttp import ClientError, ClientSession, web
from fake_api_server import FakeApiServer, RefusalError, stamp

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


@pytest.fixture
async def server():
    async with FakeApiServer() as running:
        yield running


@pytest.fixture
async def trainer():
    """Node 0's agent: training, and a step further with each look, until it is told to stand still."""
    document = {
        "schema_version": 1,
        "run": "demo",
        "attempt": 1,
        "phase": "training",
        "step": 10,
        "total_steps": 100_000,
        "loss": 1.25,
        "updated_at": 1.0,
        "world_size": 2,
    }
    moves = {"on": True}

    async def progress(_):
        if moves["on"]:
            document.update(step=document["step"] + 1, updated_at=document["updated_at"] + 1.0)
        return web.json_response(document)

    application = web.Application()
    application.router.add_get("/progress", progress)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], moves
    await runner.cleanup()


async def test_a_runs_line_lives_through_an_outage_a_stalled_watch_and_a_lost_deletion_and_the_process_ends_with_zero(
    server, trainer, tmp_path
):
    cluster = Cluster(server, trainer[0])
    cluster.start()
    async with Operator(server, tmp_path) as operator:
        await until(lambda: cluster.phase() == "Pending", "Pending while there are no pods")
        assert cluster.status()["reason"] == "NoPodsYet"
        cluster.make_pods()
        await until(lambda: cluster.status().get("progress", {}).get("step", 0) > 10, "the step of node 0")
        assert cluster.phase() == "Running"
        assert (await operator.asked("/readyz"))[0] == 200
        assert "demo" in (await operator.asked("/"))[1]
        assert "ddp_operator_is_leader 1.0" in (await operator.asked("/metrics"))[1]

        asked = server.requests.total()
        server.fault = lambda _: RefusalError(503, "etcd is away")
        server.remove("pods", "demo-worker-0")
        await asyncio.sleep(LEASE_SECONDS)  # the outage's length, not a wait for anything
        assert (await operator.asked("/healthz"))[0] == 200  # a restart would not bring the server back
        assert operator.process.returncode is None
        server.fault = lambda _: None
        await until(lambda: cluster.phase() == "Restarting", "Restarting after the outage, of which the pod was a victim")
        assert server.requests.total() > asked

        server.stalled = True
        cluster.pod("worker")
        await until(lambda: cluster.phase() == "Running", "Running again although no watch says anything")
        server.stalled = False

        server.drop_events = lambda plural, kind, _: (plural, kind) == ("pytorchjobs", "DELETED")
        server.remove("pytorchjobs", "demo")
        await until(lambda: cluster.status().get("reason") == "JobNotFound", "the deletion that no watch has told")

        operator.process.send_signal(signal.SIGTERM)
        assert await operator.ended() == 0
        assert server.get("leases", "ddp-operator")["spec"]["holderIdentity"] == ""
        lines = [json.loads(line) for line in operator.log.splitlines()]
        assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert {plural for _, plural, _ in server.writes} == {"trainingruns", "events", "leases"}
    assert all(
        "finalizers" not in body["metadata"] and "annotations" not in body["metadata"] for body in server.objects["trainingruns"].values()
    )


async def test_leaders_killed_at_the_worst_moment_leave_one_restart_and_no_users_pause_is_undone(server, trainer, tmp_path):
    cluster = Cluster(server, trainer[0])
    cluster.start(hungAfter="1s")
    async with Operator(server, tmp_path) as one, Operator(server, tmp_path) as two, Operator(server, tmp_path) as three:
        operators = [one, two, three]
        for operator in operators:
            await until(lambda operator=operator: _is_ready(operator), "all three to have seen everything")
        cluster.make_pods()
        await until(lambda: cluster.phase() == "Running", "Running")
        first = await _leader(operators)

        def kill_between_intent_and_act(_method, plural, _name):
            if plural == "trainingruns" and cluster.status().get("intent") and first.process.returncode is None:
                first.process.kill()
                trainer[1]["on"] = True

        cluster.hook = kill_between_intent_and_act
        trainer[1]["on"] = False
        assert await first.ended() == -signal.SIGKILL
        await until(lambda: cluster.suspensions == [True, False], "the job paused and resumed by the next")
        await until(lambda: cluster.phase() == "Running" and not cluster.status().get("intent"), "Running, with nothing left open")
        assert [(entry["cause"], entry["action"]) for entry in cluster.status()["ledger"]] == [("Hang", "GangRestart")]
        assert cluster.status()["restarts"]["byOperator"] == 1

        job = server.get("pytorchjobs", "demo")
        server.put("pytorchjobs", {**job, "spec": {**job["spec"], "runPolicy": {"suspend": True}}})
        for kind in NODES:
            server.remove("pods", f"demo-{kind}-0")
        await until(lambda: cluster.phase() == "Suspended", "Suspended, by its user")
        operators.remove(first)
        second = await _leader(operators)
        second.process.kill()
        operators.remove(second)
        await until(lambda: _leads(operators[0]), "the last one to lead")
        sweeps = server.requests["GET", "pytorchjobs"]
        await until(lambda: server.requests["GET", "pytorchjobs"] > sweeps + 1, "it to look at everything again")
        assert cluster.phase() == "Suspended"
        assert cluster.suspensions == [True, False]


async def _leader(operators):
    leading = []

    async def one_leads():
        leading[:] = [operator for operator in operators if await _leads(operator)]
        return len(leading) == 1

    await until(one_leads, "one to lead")
    return leading[0]


async def _is_ready(operator):
    return (await operator.asked("/readyz"))[0] == 200


async def _leads(operator):
    return "ddp_operator_is_leader 1.0" in (await operator.asked("/metrics"))[1]


async def test_watches_that_end_in_an_error_of_the_server_are_begun_again(server, tmp_path):
    cluster = Cluster(server, 0)
    cluster.start()
    async with Operator(server, tmp_path, namespaces="") as operator:  # the whole cluster
        await until(lambda: cluster.phase() == "Pending", "the first status")
        await until(lambda: server.requests["WATCH", "trainingruns"], "kopf's watch")
        server.say_error("pods", 500)
        cluster.make_pods()
        await until(lambda: cluster.phase() in ("Starting", "Running"), "pods seen by a new watch of ours")
        watches = server.requests["WATCH", "trainingruns"]
        server.say_error("trainingruns", 500)
        await until(lambda: server.requests["WATCH", "trainingruns"] > watches, "another watch of kopf's")
        server.fault = lambda request: RefusalError(503, "no lists") if "limit" in request.query else None  # so that no sweep helps
        run = server.get("trainingruns", "demo")
        generation = server.put("trainingruns", {**run, "spec": {**run["spec"], "checkpoint": {"path": "/new"}}})["metadata"]["generation"]
        await until(lambda: cluster.status()["observedGeneration"] == generation, "what only that watch could tell")
        operator.process.send_signal(signal.SIGTERM)
        assert await operator.ended() == 0


async def test_without_the_crd_it_says_so_and_ends_with_three(server, tmp_path):
    server.hidden.add("trainingruns")
    async with Operator(server, tmp_path, start_seconds=1) as operator:
        assert await operator.ended() == 3  # and does not wait as it does for a server that is away
        assert b"does not know trainingruns.ddp-operator.io: apply the chart's crds/ folder" in operator.log


async def test_no_outage_however_it_looks_ends_the_process_and_each_is_over_when_it_is_over(server, tmp_path):
    away = ((0, "reset"), (503, "etcd is away"), (429, "too many requests"))
    faults = {status: RefusalError(status, text, {"Retry-After": "1"}) for status, text in away}
    cluster = Cluster(server, 0)
    cluster.start()
    server.fault = lambda _: faults[0]
    # all bounds of a start, and of a watcher's silence, pass while the server is away
    quick = "main.SERVER_AWAY_SECONDS = 0.7; handlers.LIFE_SECONDS = 0.5"
    async with Operator(server, tmp_path, preface=quick, start_seconds=0.5, watcher_stale_seconds=2) as operator:
        await until(lambda: b"check that it runs and can be reached from here" in operator.log, "its word that it waits")
        for fault in faults.values():
            server.fault = lambda _, fault=fault: fault
            await asyncio.sleep(1.5)  # the outage's length, three times the bound
            assert (await operator.asked("/healthz"))[0] == 200
            assert (await operator.asked("/readyz"))[0] == 503
        server.fault = lambda _: None
        await until(lambda: cluster.phase() == "Pending", "the first status after an outage at the start")
        assert (await operator.asked("/readyz"))[0] == 200

        for is_up, fault in zip((True, False, True), faults.values(), strict=True):
            server.fault = lambda _, fault=fault: fault
            await server.cut()
            cluster.make_pods() if is_up else server.remove("pods", "demo-worker-0")
            await asyncio.sleep(5)  # the outage's length: longer than a watcher may be silent
            assert (await operator.asked("/healthz"))[0] == 200
            assert "has not answered" in (await operator.asked("/readyz"))[1]
            server.fault = lambda _: None
            want = ("Starting", "Running") if is_up else ("Restarting", "Pending", "Starting")
            await until(lambda want=want: cluster.phase() in want, f"{want} after {fault.status}")
            assert operator.process.returncode is None


async def test_watches_that_are_too_old_are_begun_anew_by_kopf_and_by_us(server, tmp_path):
    cluster = Cluster(server, 0)
    cluster.start()
    async with Operator(server, tmp_path, sweep_seconds=3600) as operator:
        await until(lambda: cluster.phase() == "Pending", "the first status")
        await until(lambda: server.requests["WATCH", "pods"] and server.requests["WATCH", "trainingruns"], "both watches")
        for way in ("in the stream", "as the answer"):
            watches = server.requests["WATCH", "pods"], server.requests["WATCH", "trainingruns"]
            server.forget()
            if way == "in the stream":
                server.say_error("pods", 410)
                server.say_error("trainingruns", 410)
            else:
                await server.cut()
            await until(lambda was=watches[0]: server.requests["WATCH", "pods"] > was, f"another watch of ours, 410 {way}")
            await until(lambda was=watches[1]: server.requests["WATCH", "trainingruns"] > was, f"another watch of kopf's, 410 {way}")
            run = server.get("trainingruns", "demo")
            made = server.put("trainingruns", {**run, "spec": {**run["spec"], "checkpoint": {"path": f"/{way}"}}})
            generation = made["metadata"]["generation"]
            await until(
                lambda wanted=generation: cluster.status()["observedGeneration"] == wanted, f"a change that kopf's watch told, 410 {way}"
            )
        cluster.make_pods()
        await until(lambda: cluster.phase() in ("Starting", "Running"), "pods that our watch told")
        assert operator.process.returncode is None


async def test_another_writer_of_the_status_wins_no_more_than_a_round(server, tmp_path):
    cluster, lost = Cluster(server, 0), []
    cluster.start()

    def rival(request):
        if request.method == "PUT" and request.path.endswith("/status") and len(lost) < 5:
            lost.append(request.path)
            run = server.get("trainingruns", "demo")
            server.put("trainingruns", {**run, "status": {"phase": "Succeeded", "message": "so says a rival"}})

    server.fault = rival
    async with Operator(server, tmp_path) as operator:
        await until(lambda: len(lost) == 5 and cluster.phase() == "Pending", "our word in the end")
        assert "so says" not in cluster.status()["message"]
        await until(lambda: _wrote_after_conflict(operator), "conflicts that were counted")


async def _wrote_after_conflict(operator):
    return "ddp_operator_status_conflicts_total 0.0" not in (await operator.asked("/metrics"))[1]


async def test_a_process_that_is_told_to_end_between_intent_and_act_carries_it_out_first(server, trainer, tmp_path):
    cluster = Cluster(server, trainer[0])
    cluster.start(hungAfter="1s")
    async with Operator(server, tmp_path) as operator:
        cluster.make_pods()
        await until(lambda: cluster.phase() == "Running", "Running")

        def end_between_intent_and_act(_method, plural, _name):
            if plural == "trainingruns" and cluster.status().get("intent") and not cluster.suspensions:
                server.answer_after = lambda request: 0.25 if request.path.endswith("/status") else 0.0
                operator.process.send_signal(signal.SIGTERM)

        cluster.hook = end_between_intent_and_act
        trainer[1]["on"] = False
        assert await operator.ended() == 0
        assert cluster.suspensions == [True]
        assert server.get("leases", "ddp-operator")["spec"]["holderIdentity"] == ""
