"""The operator as a process: whatever becomes of the API server and of watches, what users see is true again when it is over."""

import asyncio
import json
import signal

from fake_api_server import RefusalError
from operator_process import LEASE_SECONDS, Cluster, Operator, until


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
