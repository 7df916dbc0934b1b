"""The operator as a process: killed, told to end or contradicted at the worst moment, it does what it meant to do, once, and no more."""

import signal

from operator_process import NODES, Cluster, Operator, until


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
        told = [event["reason"] for event in server.objects["events"].values()]
        assert (told.count("GangRestart"), told.count("Hung")) == (1, 1), "the killed one had written what it could not tell"

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
        assert "GangRestart" in {event["reason"] for event in server.objects["events"].values()}
        assert server.get("leases", "ddp-operator")["spec"]["holderIdentity"] == ""
