"""No change is lost: not one that comes while a run is in trouble, not one in a moment without the lease, and none behind slow renewals."""

import asyncio
from dataclasses import replace

import pytest
from fake_api_server import RefusalError
from test_reconcile_loop import Bench

from ddp_operator.api.words import Phase
from ddp_operator.decide import announce
from ddp_operator.decide.decision import Decision, DeletePod
from ddp_operator.decide.wording import moment
from ddp_operator.reconcile import CHANGE_WORKERS, RENEWAL_WORKERS

SOON_SECONDS = 2
REST_SECONDS = 600.0


@pytest.fixture
def bench(server, api):
    return Bench(server, api)


def by_path(facts, *_):
    phase = Phase.RESTARTING if facts.spec.checkpoint.path == "/changed" else Phase.RUNNING
    return Decision(facts.status.model_copy(update={"phase": phase}), look_again_seconds=REST_SECONDS)


def names_of(bench, plural):
    return {body["metadata"]["name"] for body in bench.server.objects[plural].values()}


async def seconds_until(bench, is_so):
    for seconds in range(SOON_SECONDS + 1):
        if is_so():
            return seconds
        await bench.turn(1)
    raise AssertionError("it was lost")


async def test_a_change_during_the_round_that_ends_a_trouble_is_shown_soon(bench):
    bench.run(), bench.list_all()
    bench.decide(by_path)
    bench.server.fault = lambda _: RefusalError(500, "no")
    await bench.turn()
    bench.server.fault = lambda _: None

    def change_meanwhile(*_):
        bench.server.on_write = lambda *_: None
        bench.world.put_run(bench.run(path="/changed"))
        bench.loop.turn()

    bench.server.on_write = change_meanwhile
    await bench.turn(31)
    assert bench.loop.troubled == {}
    await seconds_until(bench, lambda: bench.phase() == "Restarting")


def losing_the_lease(bench, seen):
    """At each decision the lease is gone; a loop that tried again without an end would be ended."""

    def decided(facts, *rest):
        seen.append(facts.name)
        bench.leads, bench.loop._led = False, len(seen) < 9
        return by_path(facts, *rest)

    return decided


async def test_a_moment_without_the_lease_before_the_status_costs_no_round(bench):
    bench.run(), bench.list_all()
    bench.decide(losing_the_lease(bench, []))
    await bench.turn()
    assert bench.done() == []
    bench.leads = True
    bench.decide(by_path)
    await seconds_until(bench, lambda: bench.phase() == "Running")


async def test_a_moment_without_the_lease_between_two_actions_costs_no_round(bench):
    pods = [bench.server.put("pods", {"metadata": {"name": name, "namespace": "default"}}) for name in ("a", "b")]
    bench.run(), bench.list_all()

    def freeing(facts, *rest):
        left = [pod["metadata"] for pod in pods if pod["metadata"]["name"] in names_of(bench, "pods")]
        return replace(by_path(facts, *rest), actions=tuple(DeletePod(pod["name"], pod["uid"], 0, "test") for pod in left))

    bench.decide(by_path)
    await bench.turn()
    await bench.turn()
    bench.decide(freeing)
    bench.server.on_write = lambda *_: setattr(bench, "leads", False)
    await bench.turn(REST_SECONDS)
    assert bench.done()[1:] == [("DELETE", "pods")]
    bench.server.on_write, bench.leads = (lambda *_: None), True
    await seconds_until(bench, lambda: bench.done()[1:] == [("DELETE", "pods")] * 2)


async def test_a_lost_lease_begins_no_round_after_those_under_way(bench):
    bench.run("a"), bench.run("b"), bench.list_all()
    seen = []
    bench.decide(losing_the_lease(bench, seen))
    await bench.turn()
    assert seen == ["a", "b"]
    assert bench.done() == []


@pytest.fixture
async def with_slow_renewals(bench):
    """More runs are due than may be renewed at once, and their writes do not come back before the test ends."""
    names = [f"run-{number}" for number in range(RENEWAL_WORKERS + 4)]
    for name in names:
        bench.run(name)
    bench.list_all()
    bench.decide(by_path)
    await bench.turn()
    await bench.turn()
    release, original = asyncio.Event(), bench.loop._api.request

    async def slow(method, path, **given):
        if "/run-" in path:
            await release.wait()
        return await original(method, path, **given)

    bench.loop._api.request = slow

    def renewing(facts, *rest):
        decision = by_path(facts, *rest)
        return decision if facts.name == "other" else replace(decision, status=decision.status.model_copy(update={"message": "new"}))

    bench.decide(renewing)
    bench.now += REST_SECONDS
    bench.loop.turn()
    assert len(bench.loop._working) == RENEWAL_WORKERS, "one kind of work must not have all workers"
    yield bench
    release.set()
    await bench.turn()


async def look_at_other(bench, seconds):
    bench.now += seconds
    bench.loop.turn()
    await asyncio.wait([worker.task for key, worker in bench.loop._working.items() if key[1] == "other"])


async def test_slow_renewals_hold_up_no_change(with_slow_renewals):
    bench = with_slow_renewals
    bench.world.put_run(bench.run("other", path="/changed"))
    await look_at_other(bench, 30)
    assert bench.phase("other") == "Restarting"


async def test_slow_renewals_hold_up_no_change_that_is_tried_again(with_slow_renewals):
    bench = with_slow_renewals
    bench.world.put_run(bench.run("other", path="/changed"))
    bench.server.fault = lambda _: RefusalError(500, "no")
    await look_at_other(bench, 0)
    bench.server.fault = lambda _: None
    await look_at_other(bench, 1)
    assert bench.phase("other") == "Restarting"


async def fail_slowly(bench, begun):
    """Each round takes longer than the decision wants to wait for the next; one release ends all that are under way."""
    release, original = asyncio.Event(), bench.loop._api.request

    async def slow(method, path, **given):
        if "/bad-" in path:
            begun.append(path)
            await release.wait()
        return await original(method, path, **given)

    bench.loop._api.request = slow
    return release


async def test_a_pause_after_a_round_that_took_long_is_kept(bench):
    bench.run("bad-0"), bench.list_all()
    bench.decide(lambda *given: replace(by_path(*given), look_again_seconds=5.0))
    bench.server.fault = lambda _: RefusalError(429, "slowly", {"Retry-After": "20"})
    begun = []
    release = await fail_slowly(bench, begun)
    bench.loop.turn()
    await asyncio.sleep(0)
    bench.now += 6
    bench.loop.turn()  # it is due again while its round is under way
    release.set()
    await bench.turn()
    await bench.turn(19)
    assert len(begun) == 1
    await bench.turn(1)
    assert len(begun) == 2


async def test_runs_that_fail_again_and_again_hold_up_no_change_and_are_no_lag(bench):
    for number in range(CHANGE_WORKERS + 4):
        bench.run(f"bad-{number}")
    bench.list_all()
    bench.decide(by_path)
    bench.server.fault = lambda request: RefusalError(500, "no") if "/bad-" in request.path else None
    for _ in range(3):
        await bench.turn(31)
    release = await fail_slowly(bench, [])
    bench.now += 31
    bench.loop.turn()
    bench.now += 60
    assert bench.loop.lag_seconds == 0.0
    bench.world.put_run(bench.run("other", path="/changed"))
    bench.loop.turn()
    assert ("default", "other") in bench.loop._working
    release.set()
    await bench.turn()
    assert bench.phase("other") == "Restarting"


async def test_a_flood_of_changes_holds_up_no_renewal(bench):
    bench.run("due"), bench.list_all()
    bench.decide(by_path)
    await bench.turn()
    await bench.turn()
    for number in range(CHANGE_WORKERS + 4):
        bench.world.put_run(bench.run(f"run-{number}"))
    bench.now += REST_SECONDS
    bench.loop.turn()
    assert len(bench.loop._working) == CHANGE_WORKERS + 1
    assert ("default", "due") in bench.loop._working
    await bench.turn()


async def test_a_loop_that_is_late_but_writes_is_not_stalled(bench):
    bench.run("a"), bench.run("b"), bench.list_all()
    release, original = asyncio.Event(), bench.loop._api.request

    async def slow(method, path, **given):
        if "/a/" in path:
            await release.wait()
        return await original(method, path, **given)

    bench.loop._api.request = slow
    bench.loop.turn()
    (of_b,) = [worker.task for key, worker in bench.loop._working.items() if key[1] == "b"]
    bench.now += 90
    assert (bench.loop.lag_seconds, bench.loop.stalled_seconds) == (90.0, 90.0)
    await asyncio.wait([of_b])
    assert (bench.loop.lag_seconds, bench.loop.stalled_seconds) == (90.0, 0.0)
    bench.now += 70
    assert bench.loop.stalled_seconds == 70.0
    release.set()
    await bench.turn()


def hung_since(at):
    """It runs, and then hangs; the event is told of the change, as `decide` does."""

    def decided(facts, *_):
        phase = Phase.HUNG if facts.status.phase_since else Phase.RUNNING
        since = facts.status.phase_since if facts.status.phase is phase else moment(at if phase is Phase.HUNG else 1.0)
        status = facts.status.model_copy(update={"phase": phase, "phase_since": since})
        return Decision(status, events=announce.changes(facts.status, status), look_again_seconds=REST_SECONDS)

    return decided


def told(bench):
    return [event["message"] for event in bench.server.objects["events"].values()]


async def stopped_between_status_and_event(bench):
    bench.run(), bench.list_all()
    bench.decide(hung_since(bench.now))
    await bench.turn()
    bench.server.on_write = lambda *_: setattr(bench, "leads", False)
    await bench.turn(1)
    bench.server.on_write = lambda *_: None
    assert (bench.phase(), told(bench)) == ("Hung", [])


async def test_an_event_that_a_leader_did_not_get_to_is_told_by_the_next_and_once(bench, server, api):
    await stopped_between_status_and_event(bench)
    for _ in range(2):
        following = Bench(server, api)
        following.now = bench.now + 20
        following.decide(hung_since(bench.now))
        following.list_all()
        for _ in range(3):
            await following.turn(31)
        assert told(bench) == ["Hung"]


async def test_an_event_that_a_moment_without_the_lease_cost_is_told_when_it_is_back(bench):
    await stopped_between_status_and_event(bench)
    bench.leads = True
    await seconds_until(bench, lambda: told(bench) == ["Running -> Hung"])


async def test_what_happened_long_before_a_leader_came_is_not_told_anew(bench, server, api):
    await stopped_between_status_and_event(bench)
    following = Bench(server, api)
    following.now = bench.now + announce.RECENT_SECONDS + 1
    following.decide(hung_since(bench.now))
    following.list_all()
    await following.turn()
    assert told(bench) == []


async def test_an_event_of_a_status_whose_answer_was_lost_is_told(bench):
    bench.run(), bench.list_all()
    bench.decide(hung_since(bench.now))
    await bench.turn()
    bench.loop._write_seconds = 0.3
    bench.server.answer_after = lambda request: 1.0 if request.path.endswith("/status") else 0.0
    await bench.turn(1)
    assert (bench.phase(), told(bench)) == ("Hung", [])
    bench.server.answer_after = lambda _: 0.0
    bench.list_all()
    await seconds_until(bench, lambda: told(bench) == ["Hung"])


async def test_a_pod_whose_deletion_is_refused_keeps_no_other_from_being_freed(bench):
    pods = [bench.server.put("pods", {"metadata": {"name": name, "namespace": "default"}})["metadata"] for name in ("m", "w0", "w1")]
    bench.run(), bench.list_all()
    status = bench.world.facts_of("default", "demo").status.model_copy(update={"phase": Phase.RUNNING})
    bench.decide(lambda *_: Decision(status, actions=tuple(DeletePod(pod["name"], pod["uid"], 0, "its node is lost") for pod in pods)))
    bench.server.fault = lambda request: RefusalError(403, "no") if request.path.endswith("/pods/m") else None
    await bench.turn()
    assert set(bench.server.objects["pods"]) == {("default", "m")}
    assert "no" in bench.loop.troubled["default", "demo"]


@pytest.mark.parametrize("status", [403, 503])
async def test_an_event_that_was_refused_is_told_once_it_is_not(bench, status):
    bench.run(), bench.list_all()
    bench.decide(hung_since(bench.now))
    await bench.turn()
    bench.server.fault = lambda request: RefusalError(status, "no") if request.path.endswith("/events") else None
    await bench.turn(1)
    assert (bench.phase(), told(bench)) == ("Hung", [])
    bench.server.fault = lambda _: None
    await bench.turn(1)
    assert told(bench) == ["Running -> Hung"]
    await bench.turn(REST_SECONDS)
    assert bench.server.requests["POST", "events"] == 1


async def test_an_event_store_that_does_not_answer_holds_up_nobody(bench):
    bench.run("first"), bench.run("second"), bench.list_all()
    bench.decide(hung_since(bench.now))
    await bench.turn()
    release, original = asyncio.Event(), bench.loop._api.request

    async def slow(method, path, **given):
        if path.endswith("/events"):
            await release.wait()
        return await original(method, path, **given)

    bench.loop._api.request = slow
    for name in ("first", "second"):
        bench.loop._turns.change(("default", name), bench.now)
    bench.loop.turn()
    await asyncio.wait([worker.task for worker in bench.loop._working.values()])
    assert (bench.phase("first"), bench.phase("second"), told(bench)) == ("Hung", "Hung", [])
    release.set()
    await bench.turn()
    assert told(bench) == ["Running -> Hung"] * 2
