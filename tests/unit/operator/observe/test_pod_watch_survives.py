"""Every fault of an API server that a watch can meet: afterwards the world is true again, and nothing was asked without a pause."""

import asyncio
import copy
import json
import random
from contextlib import asynccontextmanager

import pytest
from object_bodies import pod_body, run_body
from scripted_api import Clock, answering, breaking_off, running, serving, stalling, until, watch_of

from ddp_operator.observe import listing
from ddp_operator.observe.life import Life
from ddp_operator.observe.pods import PodWatch
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

DEMO = ("team", "demo")
GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
BROKEN = {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away\x1b[2J"}}


class Scene:
    def __init__(self, server, api, namespaces=(), stale_seconds=50.0):
        self.server = server
        self.clock = Clock()
        self.life = Life(self.clock)
        self.world = World(namespaces)
        for namespace in ("team", "other"):
            self.world.put_run(run_body(namespace=namespace))
        settings = Settings(watcher_stale_seconds=stale_seconds)
        self.watch = PodWatch(api, self.world, namespaces, self.life, self.clock, settings, sleep=self.clock.sleep, rng=random.Random(7))

    def pods(self, namespace="team"):
        return {pod.name: pod.phase for pod in self.world.facts_of(namespace, "demo").pods}

    async def sees(self, *names, namespace="team"):
        await until(lambda: set(self.pods(namespace)) == set(names))


@asynccontextmanager
async def scene(*pods, **options):
    async with serving() as (server, api):
        for name in pods:
            server.put("pods", pod_body(name))
        yield Scene(server, api, **options)


async def test_pods_are_listed_in_pages_and_then_watched(monkeypatch):
    monkeypatch.setattr(listing, "PAGE_OBJECTS", 2)
    names = [f"demo-worker-{index}" for index in range(5)]
    async with scene(*names) as s, running(s.watch.run()):
        await s.sees(*names)
        await until(lambda: s.server.open_watches)
        assert [request.query["limit"] for request in s.server.seen[:3]] == ["2", "2", "2"]
        assert {request.query["labelSelector"] for request in s.server.seen} == {"training.kubeflow.org/job-name"}
        watch = s.server.seen[3].query
        assert (watch["watch"], watch["allowWatchBookmarks"], watch["resourceVersion"]) == ("true", "true", "105")
        assert 0 < int(watch["timeoutSeconds"]) < 50
        s.server.put("pods", pod_body("demo-worker-5"), "ADDED")
        await s.sees(*names, "demo-worker-5")
        s.server.put("pods", pod_body("demo-worker-5", status={"phase": "Failed"}), "MODIFIED")
        await until(lambda: s.pods()["demo-worker-5"] == "Failed")
        s.server.remove("pods", "team", "demo-worker-5")
        await s.sees(*names)
        assert (s.watch.lists, s.clock.sleeps, s.watch.errors) == (1, [], {})


@pytest.mark.parametrize("fault", [watch_of(GONE), answering(410), watch_of(BROKEN)])
async def test_expired_or_broken_watch_lists_again_and_notices_what_it_missed(fault):
    async with scene("demo-worker-0", "demo-worker-1") as s:

        async def miss_a_deletion(request):
            s.server.remove("pods", "team", "demo-worker-0", tell=False)
            return await fault(request)

        s.server.watches.append(miss_a_deletion)
        async with running(s.watch.run()):
            await s.sees("demo-worker-1")
            assert s.watch.lists == 2
            assert len(s.clock.sleeps) == 1


async def test_server_errors_are_waited_out_with_growing_bounded_jittered_delays():
    async with scene("demo-worker-0") as s:
        s.server.lists.extend([answering(503)] * 30)
        async with running(s.watch.run()):
            await s.sees("demo-worker-0")
        assert len(s.clock.sleeps) == 30
        assert all(0.2 <= delay <= 15.0 for delay in s.clock.sleeps)
        assert max(s.clock.sleeps[:3]) <= 2.0
        assert len(set(s.clock.sleeps[10:])) == 20, "no jitter"
        assert sum(s.clock.sleeps[10:]) > 20 * 7.5


async def test_trouble_is_told_while_it_lasts_and_no_longer(caplog):
    async with scene("demo-worker-0") as s:
        s.server.lists.extend([answering(403)] * 3)
        told = []
        pause = s.clock.sleep

        async def sleep(seconds):
            told.extend(s.watch.errors.values())
            await pause(seconds)

        s.watch._sleep = sleep
        async with running(s.watch.run()):
            await s.sees("demo-worker-0")
        assert told == ["/api/v1/pods: 403: scripted"] * 3
        assert s.watch.errors == {}
        assert caplog.text.count("cannot see") == 1


@pytest.mark.parametrize(("asked", "least", "most"), [("7", 7.0, 7.0), ("9999", 30.0, 30.0), ("soon", 0.2, 0.5)])
@pytest.mark.parametrize("where", ["lists", "watches"])
async def test_retry_after_is_honoured_within_a_bound(asked, least, most, where):
    async with scene("demo-worker-0") as s:
        getattr(s.server, where).append(answering(429, {"Retry-After": asked}))
        async with running(s.watch.run()):
            await s.sees("demo-worker-0")
            await until(lambda: s.server.open_watches)
        assert least <= s.clock.sleeps[0] <= most
        assert s.watch.lists == 1


async def test_silent_connection_is_cut_and_watched_anew():
    async with scene("demo-worker-0", stale_seconds=0.25) as s:
        s.server.watches.append(stalling)
        async with running(s.watch.run()):
            await until(lambda: s.server.open_watches)
            s.server.put("pods", pod_body("demo-worker-1"), "ADDED")
            await s.sees("demo-worker-0", "demo-worker-1")
        assert s.server.count("watch") >= 2


async def test_reset_in_the_middle_of_a_line_goes_on_from_the_last_whole_event():
    async with scene("demo-worker-0") as s:
        new = pod_body("demo-worker-1", version=150)
        whole = watch_of({"type": "ADDED", "object": new})
        half = b'{"type":"ADDED","object":' + json.dumps(new).encode() + b'}\n{"type":"DELETED","obj'
        s.server.watches.extend([breaking_off(half), breaking_off(b'{"type'), whole])
        async with running(s.watch.run()):
            await s.sees("demo-worker-0", "demo-worker-1")
            await until(lambda: s.server.open_watches)
        since = [request.query["resourceVersion"] for request in s.server.seen if "watch" in request.query]
        assert since[0] == "101"
        assert set(since) <= {"101", "150"}, "what of a reset connection was read in time is up to the kernel, but never half an event"
        assert since[-1] == "150"
        assert s.watch.lists == 1


async def test_deletion_missed_while_disconnected_costs_at_most_one_sweep():
    async with scene("demo-worker-0", "demo-worker-1") as s, running(s.watch.run()):
        await until(lambda: s.server.open_watches)
        s.server.remove("pods", "team", "demo-worker-1", tell=False)
        s.clock.now += 40
        s.server.end_watches()
        await until(lambda: s.server.count("watch") == 2)
        assert "demo-worker-1" in s.pods()
        await until(lambda: s.server.open_watches)
        s.clock.now += 40
        s.server.end_watches()
        await s.sees("demo-worker-0")


async def test_server_that_never_ends_its_watch_does_not_cost_the_sweep():
    async with scene("demo-worker-0", "demo-worker-1") as s, running(s.watch.run()):
        await until(lambda: s.server.open_watches)
        s.server.remove("pods", "team", "demo-worker-1", tell=False)
        s.clock.now += 100
        s.server.tell("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "500"}})
        await s.sees("demo-worker-0")


async def test_stale_list_neither_drops_nor_changes_what_is_newer():
    async with scene("demo-worker-0", "demo-worker-1") as s:
        stale = copy.deepcopy(list(s.server.objects.values())[:1])
        async with running(s.watch.run()):
            await until(lambda: s.server.open_watches)
            s.server.put("pods", pod_body("demo-worker-0", status={"phase": "Failed"}), "MODIFIED")
            s.server.put("pods", pod_body("demo-worker-2"), "ADDED")
            await s.sees("demo-worker-0", "demo-worker-1", "demo-worker-2")
            old = {"metadata": {"resourceVersion": "101"}, "items": stale}
            s.server.lists.append(answering(200, body=old))
            s.clock.now += 100
            s.server.end_watches()
            await until(lambda: s.watch.lists == 2)
            assert s.pods() == {"demo-worker-0": "Failed", "demo-worker-1": "Running", "demo-worker-2": "Running"}


async def test_list_whose_token_expires_starts_again_and_drops_nothing_before_it_is_whole(monkeypatch):
    monkeypatch.setattr(listing, "PAGE_OBJECTS", 1)
    names = [f"demo-worker-{index}" for index in range(3)]
    async with scene(*names) as s, running(s.watch.run()):
        await until(lambda: s.server.open_watches)
        s.server.lists.extend([s.server.serve_list, answering(410)])
        known = []

        async def look_then_list(request):
            known.append(set(s.pods()))
            assert "continue" not in request.query
            return await s.server.serve_list(request)

        s.server.lists.append(look_then_list)
        s.server.remove("pods", "team", "demo-worker-2", tell=False)
        s.clock.now += 100
        s.server.end_watches()
        await s.sees("demo-worker-0", "demo-worker-1")
        assert known == [set(names)]
        assert s.watch.lists == 2


async def test_list_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr(listing, "MAX_PAGES", 3)
    async with scene("demo-worker-0") as s:
        s.server.lists.extend([answering(200, body={"metadata": {"resourceVersion": "1", "continue": "x"}, "items": []})] * 3)
        async with running(s.watch.run()):
            await s.sees("demo-worker-0")
        assert len(s.clock.sleeps) == 1


@pytest.mark.parametrize("body", [{"hello": "world"}, {"metadata": {}, "items": "many"}])
async def test_answer_that_is_no_list_drops_nothing(body):
    async with scene("demo-worker-0") as s, running(s.watch.run()):
        await until(lambda: s.server.open_watches)
        s.server.lists.append(answering(200, body=body))
        s.clock.now += 100
        s.server.end_watches()
        await until(lambda: s.clock.sleeps)
        assert "demo-worker-0" in s.pods()
        await until(lambda: s.watch.lists == 2)


async def test_watch_that_ends_at_once_is_not_asked_without_a_pause():
    async with scene("demo-worker-0") as s:
        s.server.watches.extend([watch_of()] * 12)
        async with running(s.watch.run()):
            await until(lambda: s.server.open_watches)
        assert len(s.clock.sleeps) == 12
        assert s.clock.sleeps[-1] > 5.0


async def test_garbage_among_events_harms_nothing():
    garbage = [
        {"type": "ADDED"},
        {"type": "ADDED", "object": None},
        {"type": "DELETED", "object": {"metadata": {"name": 5, "namespace": [], "uid": {}}}},
        {"type": ["x"], "object": []},
        {"type": "MODIFIED", "object": pod_body(metadata={"name": "../../x", "namespace": "team", "uid": "u"})},
        {},
    ]
    async with scene("demo-worker-0") as s:
        s.server.watches.append(watch_of(*garbage, {"type": "ADDED", "object": pod_body("demo-worker-9", version=300)}))
        async with running(s.watch.run()):
            await s.sees("demo-worker-0", "demo-worker-9")


async def test_bookmark_moves_the_version_that_the_next_watch_starts_from():
    async with scene("demo-worker-0") as s:
        s.server.watches.append(watch_of({"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": "777"}}}))
        async with running(s.watch.run()):
            await until(lambda: s.server.count("watch") == 2)
        assert s.server.seen[-1].query["resourceVersion"] == "777"


async def test_each_namespace_is_watched_by_itself():
    async with scene("demo-worker-0", namespaces=("team", "other")) as s:
        s.server.put("pods", pod_body("demo-worker-0", namespace="other"))
        s.server.put("pods", pod_body("demo-worker-0", namespace="foreign"))
        s.server.lists.append(answering(500))
        async with running(s.watch.run()):
            await s.sees("demo-worker-0")
            await s.sees("demo-worker-0", namespace="other")
        paths = {request.path for request in s.server.seen}
        assert paths == {"/api/v1/namespaces/team/pods", "/api/v1/namespaces/other/pods"}
        assert set(s.life.ages()) == {"pod watch of team", "pod watch of other"}


async def test_every_event_and_every_attempt_is_a_sign_of_life():
    async with scene("demo-worker-0") as s:
        s.server.lists.extend([answering(503)] * 20)
        ages = []
        pause = s.clock.sleep

        async def sleep(seconds):
            await pause(seconds)
            ages.extend(s.life.ages().values())

        s.watch._sleep = sleep
        async with running(s.watch.run()):
            await until(lambda: s.server.open_watches)
            assert max(ages) <= 15.0
            s.clock.now += 49
            assert s.life.silent() == []
            s.server.tell("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "500"}})
            await until(lambda: s.life.ages()["pod watch of all namespaces"] == 0)
            s.clock.now += 51
            assert len(s.life.silent()) == 1


async def test_bug_ends_the_watch_loudly(monkeypatch):
    async with scene("demo-worker-0") as s:
        monkeypatch.setattr(s.world, "put", lambda *_: 1 / 0)
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await s.watch.run()


async def test_a_sweep_that_takes_long_holds_up_no_event():
    async with scene("demo-worker-0", "demo-worker-1") as s, running(s.watch.run()):
        await until(lambda: s.server.open_watches)
        listing_is_over = asyncio.Event()

        async def slowly(request):
            await listing_is_over.wait()
            return await s.server.serve_list(request)

        s.server.lists.append(slowly)
        s.server.remove("pods", "team", "demo-worker-1", tell=False)
        s.clock.now += 100
        s.server.end_watches()
        await until(lambda: s.server.count("list") == 2)
        await until(lambda: s.server.count("watch") == 2 and s.server.open_watches)
        s.server.put("pods", pod_body("demo-worker-0", status={"phase": "Failed"}), "MODIFIED")
        await until(lambda: s.pods()["demo-worker-0"] == "Failed")
        assert s.watch.lists == 1
        assert "demo-worker-1" in s.pods()
        listing_is_over.set()
        await s.sees("demo-worker-0")
        assert s.pods()["demo-worker-0"] == "Failed"
        assert s.server.count("list") == 2
