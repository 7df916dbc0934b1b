"""The loop, with decisions made to order, over real HTTP: the order of writes, who may write, and what a failure costs."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_api_server import RefusalError

from ddp_operator.act.old_crd import RETRY_SECONDS
from ddp_operator.act.orphans import ADOPT_AFTER_SECONDS
from ddp_operator.api.trainingrun import Intent, ProgressStatus
from ddp_operator.api.words import Act, Cause, EventReason, Phase
from ddp_operator.decide.decision import Decision, DeletePod, Event, SuspendJob
from ddp_operator.decide.facts import ProgressFacts, ProgressLook
from ddp_operator.observe.world import World
from ddp_operator.reconcile import CHANGE_WORKERS, RENEWAL_LOOKS, Reconciler
from ddp_operator.settings import Settings

KINDS = {"run": "trainingruns", "job": "pytorchjobs", "claim": "persistentvolumeclaims", "pod": "pods"}
HUNG = Event(EventReason.HUNG, "no step for 10m", is_warning=True)


def running(facts, *_):
    return Decision(facts.status.model_copy(update={"phase": Phase.RUNNING}))


class Bench:
    """A reconciler whose clock, leadership and decisions belong to the test."""

    def __init__(self, server, api):
        self.server, self.now, self.leads = server, 1000.0, True
        self.world = World(("default",))
        self.loop = Reconciler(
            self.world,
            api,
            Settings(namespaces=("default",)),
            lambda: self.leads,
            lambda: self.now,
            decide=running,
            monotonic=lambda: self.now,
        )

    def decide(self, made_to_order):
        self.loop._decide = made_to_order

    def run(self, name="demo", path="/checkpoints", **meta):
        spec = {"jobRef": {"name": name}, "checkpoint": {"path": path}}
        return self.server.put("trainingruns", {"metadata": {"name": name, "namespace": "default", **meta}, "spec": spec})

    def job(self, name="demo", **meta):
        return self.server.put("pytorchjobs", {"metadata": {"name": name, "namespace": "default", **meta}, "spec": {"runPolicy": {}}})

    def list_all(self):
        for kind, plural in KINDS.items():
            self.world.replace(kind, ("default",), list(self.server.objects[plural].values()), self.server.version)

    async def turn(self, seconds=0.0):
        """Let time pass, look once, and wait until all that was begun has ended."""
        self.now += seconds
        self.loop.turn()
        while workers := [worker.task for worker in self.loop._working.values()] + self.loop.orphans.tasks() + self.loop.events.tasks():
            await asyncio.wait(workers)
            await asyncio.sleep(0)

    def done(self, *, leave=()):
        return [(method, plural) for method, plural, _ in self.server.writes if plural not in leave]

    def phase(self, name="demo"):
        return self.server.get("trainingruns", name).get("status", {}).get("phase")


@pytest.fixture
def bench(server, api):
    return Bench(server, api)


def acting(bench, *, uid=None):
    job = bench.server.get("pytorchjobs", "demo")["metadata"]
    suspend = SuspendJob("demo", uid or job["uid"], job["generation"], "it hangs")

    def decide(facts, *_):
        is_suspended = bench.world.facts_of("default", "demo").job.suspend
        status = facts.status.model_copy(update={"phase": Phase.HUNG, "reason": Cause.HANG})
        news = (HUNG,) if status != facts.status else ()
        return Decision(status, actions=() if is_suspended else (suspend,), events=news)

    return decide


async def test_the_status_is_written_first_then_the_action_done_then_the_event_told(bench):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench))
    await bench.turn()
    assert bench.done() == [("PUT", "trainingruns"), ("PATCH", "pytorchjobs"), ("POST", "events")]
    for _ in range(3):
        await bench.turn(60)
    assert len(bench.done()) == 3
    assert bench.loop.counts.actions == {"SuspendJob": 1}
    assert bench.loop.counts.conflicts == 0  # it has read what it wrote


async def test_the_same_decision_again_writes_nothing(bench):
    bench.run(), bench.list_all()
    for _ in range(5):
        await bench.turn(31)
    assert bench.done() == [("PUT", "trainingruns")]
    assert bench.loop.counts.decisions >= 5


async def test_a_standby_writes_nothing_and_looks_at_everything_when_it_takes_over(bench):
    bench.run("a"), bench.run("b"), bench.list_all()
    bench.leads = False
    await bench.turn()
    assert bench.done() == []
    assert bench.loop.lag_seconds == 0.0
    bench.leads = True
    await bench.turn()
    assert (bench.phase("a"), bench.phase("b")) == ("Running", "Running")


async def test_nothing_is_decided_before_everything_was_listed_once(bench):
    body = bench.run()
    bench.world.put_run(body)
    await bench.turn(60)
    assert bench.loop.counts.decisions == 0


async def test_a_conflict_means_that_no_action_is_done_and_the_next_look_sees_the_newer_object(bench):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench))
    bench.run(labels={"somebody": "else"})  # not yet seen by any watch
    await bench.turn()
    assert bench.done() == []
    assert bench.loop.counts.conflicts == 1
    await bench.turn(1)
    assert bench.done() == [("PUT", "trainingruns"), ("PATCH", "pytorchjobs"), ("POST", "events")]
    assert bench.loop.troubled == {}


async def test_who_loses_the_lease_after_the_status_does_not_act(bench):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench))
    bench.server.on_write = lambda *_: setattr(bench, "leads", False)
    await bench.turn()
    assert bench.done() == [("PUT", "trainingruns")]
    bench.server.on_write, bench.leads = (lambda *_: None), True
    await bench.turn(1)  # the next leader's first look finishes it
    assert bench.done(leave=("events",)) == [("PUT", "trainingruns"), ("PATCH", "pytorchjobs")]


async def test_an_action_that_fails_is_tried_again_and_its_event_told_once(bench):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench))
    bench.server.fault = lambda request: RefusalError(500, "no") if request.method == "PATCH" else None
    for _ in range(3):
        await bench.turn(31)
    assert bench.done() == [("PUT", "trainingruns"), ("POST", "events")]
    assert "no" in bench.loop.troubled["default", "demo"]
    bench.server.fault = lambda _: None
    await bench.turn(31)
    assert bench.done() == [("PUT", "trainingruns"), ("POST", "events"), ("PATCH", "pytorchjobs")]


async def test_an_action_on_another_job_than_was_seen_is_not_done(bench):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench, uid="of-a-job-before"))
    await bench.turn()
    assert ("PATCH", "pytorchjobs") not in bench.done()
    assert bench.loop.counts.conflicts == 1


@pytest.mark.parametrize(("answer", "told"), [(403, 1), (422, 1), (503, 0)])
async def test_an_act_that_the_api_server_refuses_is_told_once_however_often_it_is_tried(bench, answer, told):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(acting(bench))
    tries = []

    def fault(request):
        if request.method != "PATCH" or "/pytorchjobs/" not in request.path:
            return None
        tries.append(request)
        return RefusalError(answer, "a policy says no")

    bench.server.fault = fault
    for _ in range(4):
        await bench.turn(60)
    assert len(tries) > 1
    refused = [event["message"] for event in bench.server.objects["events"].values() if "a policy says no" in event["message"]]
    assert len(refused) == told


async def test_a_run_that_is_refused_waits_longer_each_time_and_delays_no_neighbour(bench):
    for number in range(CHANGE_WORKERS + 4):
        bench.run(f"run-{number}")
    bench.list_all()
    bench.server.fault = lambda request: RefusalError(422, "bad") if "/run-0/" in request.path else None
    await bench.turn()
    assert all(bench.phase(f"run-{number}") == "Running" for number in range(1, CHANGE_WORKERS + 4))
    pauses = []
    for _ in range(12):
        pauses.append(bench.loop._turns.due["default", "run-0"] - bench.now)
        await bench.turn(pauses[-1])
    assert pauses[0] <= 0.5
    assert all(15.0 <= pause <= 30.0 for pause in pauses[-4:])
    assert bench.loop.lag_seconds == 0.0


async def test_a_server_that_asks_for_patience_gets_it(bench):
    bench.run(), bench.list_all()
    bench.server.fault = lambda _: RefusalError(429, "slowly", {"Retry-After": "20"})
    await bench.turn()
    assert bench.loop._turns.due["default", "demo"] - bench.now >= 20.0


async def test_a_run_in_trouble_is_not_woken_by_its_own_changes(bench):
    bench.run(), bench.list_all()
    bench.server.fault = lambda _: RefusalError(500, "no")
    await bench.turn()
    for _ in range(5):
        bench.world.put_run(bench.run(path=f"/{bench.server.version}"))
        await bench.turn()
    assert bench.loop.counts.errors == 1


async def test_a_bug_in_one_decision_costs_only_that_run(bench, caplog):
    bench.run("bad"), bench.run("good"), bench.list_all()
    bench.decide(lambda facts, *_: running(facts) if facts.name == "good" else 1 / 0)
    await bench.turn()
    assert bench.phase("good") == "Running"
    assert "ZeroDivisionError" in caplog.text


async def test_a_run_that_is_gone_is_forgotten(bench):
    bench.run(), bench.list_all()
    bench.server.remove("trainingruns", "demo")
    for _ in range(3):
        await bench.turn(31)
    assert bench.world.names() == []
    assert bench.loop.troubled == {}


async def test_a_changed_run_waits_for_its_worker_and_no_run_has_two(bench):
    bench.run(), bench.list_all()
    release, inside = asyncio.Event(), []

    async def slow(method, path, **given):
        inside.append(path)
        await release.wait()
        inside.pop()
        return await original(method, path, **given)

    original, bench.loop._api.request = bench.loop._api.request, slow
    for label in ("a", "b", "c"):
        bench.loop.turn()
        await asyncio.sleep(0)
        assert len(inside) == 1
        bench.world.put_run(bench.run(path=f"/{label}"))
    bench.loop.turn()
    bench.now += 7
    assert bench.loop.lag_seconds == 7.0
    release.set()
    await bench.turn(1)
    await bench.turn(1)
    assert bench.phase() == "Running"


async def test_a_pod_is_freed_by_its_uid(bench):
    pod = bench.server.put("pods", {"metadata": {"name": "w", "namespace": "default"}})
    bench.run(), bench.list_all()
    bench.decide(lambda facts, *_: replace(running(facts), actions=(DeletePod("w", pod["metadata"]["uid"], 0, "its node is lost"),)))
    await bench.turn()
    assert bench.done() == [("PUT", "trainingruns"), ("DELETE", "pods")]


# --- adoption

TRACKED = {"ddp-operator.io/track": "true"}


async def test_a_labelled_job_is_adopted_after_a_moment_and_once(bench):
    bench.job(labels=TRACKED), bench.list_all()
    await bench.turn()
    assert bench.done() == []
    await bench.turn(ADOPT_AFTER_SECONDS)
    assert bench.done() == [("POST", "trainingruns"), ("POST", "events")]
    for _ in range(3):
        await bench.turn(60)
    assert len(bench.server.objects["trainingruns"]) == 1
    assert bench.loop.orphans.adopted == 1


async def test_a_chart_that_is_a_moment_late_with_its_own_run_is_waited_for(bench):
    bench.job(labels=TRACKED), bench.list_all()
    await bench.turn()
    bench.world.put_run(bench.run())
    await bench.turn(60)
    assert ("POST", "trainingruns") not in bench.done()


@pytest.mark.parametrize("who", ["standby", "switched off"])
async def test_only_a_leader_that_may_adopts(bench, who):
    bench.job(labels=TRACKED), bench.list_all()
    bench.leads = who != "standby"
    bench.loop._settings = bench.loop._settings.model_copy(update={"adopt": who != "switched off"})
    for _ in range(3):
        await bench.turn(60)
    assert bench.done() == []


async def test_a_name_that_is_taken_is_said_once_and_looked_at_again(bench, caplog):
    bench.run("wanted"), bench.job("other", labels={**TRACKED, "ddp-operator.io/run": "wanted"}), bench.list_all()
    for _ in range(6):
        await bench.turn(60)
    assert caplog.text.count("was not adopted") == 1
    bench.server.remove("trainingruns", "wanted")
    await bench.turn(60)
    assert bench.server.get("trainingruns", "wanted")["spec"]["jobRef"]["name"] == "other"


# --- a CRD that is older than the operator


def forget(server, *keys):
    """The server's CRD does not know these fields of a status."""
    put = server.put

    def pruning(plural, body):
        if plural == "trainingruns" and body.get("status"):
            body = {**body, "status": {key: value for key, value in body["status"].items() if key not in keys}}
        return put(plural, body)

    server.put = pruning
    return lambda: setattr(server, "put", put)


def restarting(bench):
    job = bench.server.get("pytorchjobs", "demo")["metadata"]
    suspend = SuspendJob("demo", job["uid"], job["generation"], "it hangs")

    def decide(facts, now, *_):
        if facts.status.intent is not None:
            return Decision(facts.status, actions=(suspend,))
        intent = Intent(
            action=Act.GANG_RESTART,
            cause=Cause.HANG,
            started_at=datetime.fromtimestamp(int(now), UTC),
            job_uid=job["uid"],
            from_generation=job["generation"],
        )
        return Decision(facts.status.model_copy(update={"phase": Phase.RESTARTING, "intent": intent}), actions=(suspend,))

    return decide


async def test_a_status_that_the_server_prunes_is_not_written_at_each_look_and_said_once_an_hour(bench, caplog):
    bench.run("a"), bench.run("b"), bench.list_all()
    forget(bench.server, "message")
    bench.decide(lambda facts, *_: Decision(facts.status.model_copy(update={"phase": Phase.RUNNING, "message": "m"})))
    for _ in range(9):
        await bench.turn(31)
    assert bench.done() == [("PUT", "trainingruns")] * 2
    assert bench.loop.counts.pruned == 2
    assert caplog.text.count("kubectl apply --server-side -f helm/crds") == 1
    assert "message" in caplog.text
    for _ in range(120):
        await bench.turn(31)
    assert caplog.text.count("kubectl apply --server-side -f helm/crds") == 2
    assert len(bench.done()) <= 2 * (2 + 130 * 31 / RETRY_SECONDS)


@pytest.mark.parametrize("field", ["intent", "stoppedByUs"])
async def test_nothing_is_done_for_a_run_whose_intent_the_server_does_not_keep_until_it_does(bench, field):
    bench.job(), bench.run(), bench.list_all()
    upgrade = forget(bench.server, field)
    decided = restarting(bench)
    if field == "stoppedByUs":
        bench.decide(
            lambda facts, *rest: replace(d := decided(facts, *rest), status=d.status.model_copy(update={"stopped_by_us": Cause.HANG}))
        )
    else:
        bench.decide(decided)
    for _ in range(5):
        await bench.turn(31)
    assert bench.done() == [("PUT", "trainingruns")]
    upgrade()
    await bench.turn(RETRY_SECONDS)
    await bench.turn(31)
    assert bench.done()[1:3] == [("PUT", "trainingruns"), ("PATCH", "pytorchjobs")]


async def test_a_status_that_the_server_keeps_whole_is_not_said_to_be_pruned(bench, caplog):
    bench.job(), bench.run(), bench.list_all()
    bench.decide(restarting(bench))
    await bench.turn()
    assert bench.loop.counts.pruned == 0
    assert "helm/crds" not in caplog.text
    assert ("PATCH", "pytorchjobs") in bench.done()


async def test_a_word_that_the_crd_does_not_know_is_said_with_what_to_do(bench, caplog):
    bench.run("a"), bench.run("b"), bench.list_all()
    bench.server.fault = lambda request: RefusalError(422, "Unsupported value") if request.method == "PUT" else None
    for _ in range(4):
        await bench.turn(31)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "Unsupported value" in errors[0]
    assert "kubectl apply --server-side -f helm/crds" in errors[0]
    assert "helm/crds" in bench.loop.troubled["default", "b"]


# --- several runs of one job


async def test_of_two_runs_of_one_job_one_acts_and_the_other_tells_the_phase(bench, caplog):
    bench.job(), bench.run()
    bench.server.put(
        "trainingruns",
        {"metadata": {"name": "zz", "namespace": "default"}, "spec": {"jobRef": {"name": "demo"}, "policy": {"onHung": "Restart"}}},
    )
    bench.list_all()
    policies = {}
    decided = acting(bench)

    def decide(facts, *rest):
        policies[facts.name] = facts.spec.policy.on_hung
        return decided(facts, *rest)

    bench.decide(decide)
    for _ in range(3):
        bench.server.put("pytorchjobs", {**bench.server.get("pytorchjobs", "demo"), "spec": {"runPolicy": {}}})
        await bench.turn(31)
    assert (bench.phase("demo"), bench.phase("zz")) == ("Hung", "Hung")
    assert policies == {"demo": "Restart", "zz": "Report"}
    assert bench.loop.counts.actions["SuspendJob"] == 1
    assert caplog.text.count("zz only reports") == 1
    assert "demo only reports" not in caplog.text


async def test_the_other_run_acts_once_the_first_is_gone(bench):
    bench.job(), bench.run()
    bench.server.put("trainingruns", {"metadata": {"name": "zz", "namespace": "default"}, "spec": {"jobRef": {"name": "demo"}}})
    bench.list_all()
    bench.decide(lambda facts, *_: replace(running(facts), actions=(DeletePod(facts.name, "u", 0, "test"),)))
    deleted = []
    bench.server.fault = lambda request: deleted.append(request.path.rsplit("/", 1)[1]) if request.method == "DELETE" else None
    await bench.turn()
    assert deleted == ["demo"]
    bench.world.drop_run("default", "demo")
    await bench.turn(1)
    assert deleted == ["demo", "zz"]


def stepping(facts, *_):
    """A run that trains: its status shows the step that was heard."""
    document = facts.progress.document
    progress = ProgressStatus(step=document.step) if document else None
    return Decision(facts.status.model_copy(update={"phase": Phase.RUNNING, "progress": progress}), look_again_seconds=600.0)


def said(step, phase="training"):
    return ProgressLook(ProgressFacts(run="demo", attempt=1, phase=phase, updated_at=float(step), step=step), "pod-1", heard_at=float(step))


async def test_numbers_that_move_are_written_when_they_may_be_renewed_and_words_at_once(bench):
    bench.run(), bench.list_all()
    bench.decide(stepping)
    bench.world.put_progress("default", "demo", said(1))
    await bench.turn()
    await bench.turn()  # a phase was written: that is looked at once more
    before = bench.loop.counts.decisions
    shortest = RENEWAL_LOOKS * Settings().progress_seconds
    for step in (2, 3, 4):
        bench.world.put_progress("default", "demo", said(step))
        await bench.turn(shortest / 4)
    assert bench.loop.counts.decisions == before
    await bench.turn(shortest)
    assert bench.server.get("trainingruns", "demo")["status"]["progress"]["step"] == 4
    await bench.turn()
    assert bench.loop.counts.decisions == before + 1, "what was written just now was looked at again"
    bench.world.put_progress("default", "demo", said(5, "saving"))
    await bench.turn()
    assert bench.server.get("trainingruns", "demo")["status"]["progress"]["step"] == 5


async def test_numbers_do_not_shorten_the_pause_of_a_run_in_trouble(bench):
    bench.run(), bench.list_all()
    bench.decide(stepping)
    bench.world.put_progress("default", "demo", said(1))
    await bench.turn()
    bench.server.fault = lambda _: RefusalError(429, "slowly", {"Retry-After": "20"})
    bench.world.put_progress("default", "demo", said(2, "saving"))
    await bench.turn()
    until = bench.loop._turns.due["default", "demo"]
    bench.world.put_progress("default", "demo", said(3, "saving"))
    await bench.turn(1)
    assert bench.loop._turns.due["default", "demo"] == until
