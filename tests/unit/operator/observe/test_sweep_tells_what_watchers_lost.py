import random
from contextlib import asynccontextmanager

import pytest
from object_bodies import claim_body, job_body, run_body
from scripted_api import Clock, answering, running, serving, until

from ddp_operator.observe import listing
from ddp_operator.observe.life import Life
from ddp_operator.observe.sweep import MISSING, SWEEPS_TO_BELIEVE_MISSING, Sweep
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

DEMO = ("team", "demo")
BODIES = {"trainingruns": run_body, "pytorchjobs": job_body, "persistentvolumeclaims": claim_body}


class Scene:
    """A sweep whose pauses the test ends: `await scene.next_sweep()`."""

    def __init__(self, server, api, namespaces=()):
        self.server, self.clock = server, Clock()
        self.life, self.world = Life(self.clock), World(namespaces)
        self.faults = {}
        """By plural: what answers instead."""
        self.sweep = Sweep(api, self.world, namespaces, self.life, Settings(), self.clock, sleep=self.clock.sleep, rng=random.Random(7))
        serve_well = server.serve_list

        async def serve_list(request):
            return await self.faults.get(request.path.rsplit("/", 1)[1], serve_well)(request)

        server.serve_list = serve_list

    async def after_sweeps(self, count=2):
        """Wait until each kind was asked so often again, and at least one sweep began after now."""
        before = {plural: self.asked(plural) for plural in BODIES}
        await until(lambda: all(self.asked(plural) >= times + count for plural, times in before.items()))

    async def all_is_listed(self):
        await until(lambda: set(self.sweep.state.values()) == {"ok"})

    def asked(self, plural):
        return sum(1 for request in self.server.seen if request.path.endswith(f"/{plural}") and "continue" not in request.query)


@asynccontextmanager
async def scene(**options):
    async with serving() as (server, api):
        for plural, make in BODIES.items():
            server.put(plural, make())
        yield Scene(server, api, **options)


async def test_everything_is_listed_at_once_and_again_in_jittered_pauses():
    async with scene() as s, running(s.sweep.run()):
        await s.after_sweeps()
        facts = s.world.facts_of(*DEMO)
        assert (facts.job.name, [claim.name for claim in facts.claims]) == ("demo", ["demo-checkpoints"])
        assert s.sweep.state == {"run": "ok", "job": "ok", "claim": "ok"}
        assert all(48 <= pause <= 72 for pause in s.clock.sleeps)
        assert len(set(s.clock.sleeps)) == len(s.clock.sleeps)
        assert {request.path for request in s.server.seen} == {
            "/apis/ddp-operator.io/v1alpha1/trainingruns",
            "/apis/kubeflow.org/v1/pytorchjobs",
            "/api/v1/persistentvolumeclaims",
        }


@pytest.mark.parametrize("plural", list(BODIES))
async def test_deletion_that_no_watcher_told_is_noticed(plural):
    async with scene() as s, running(s.sweep.run()):
        await s.all_is_listed()
        s.server.remove(plural, "team", BODIES[plural]()["metadata"]["name"], tell=False)
        await s.after_sweeps()
        facts = s.world.facts_of(*DEMO)
        gone = {
            "trainingruns": facts is None,
            "pytorchjobs": facts and facts.job is None,
            "persistentvolumeclaims": facts and not facts.claims,
        }
        assert gone[plural]


async def test_lists_come_in_pages(monkeypatch):
    monkeypatch.setattr(listing, "PAGE_OBJECTS", 2)
    async with scene() as s:
        for index in range(6):
            s.server.put("trainingruns", run_body(f"run-{index}", job=f"job-{index}"))
        async with running(s.sweep.run()):
            await s.after_sweeps()
            assert len(s.world.names()) == 7


async def test_each_namespace_is_listed_by_itself_and_no_other():
    async with scene(namespaces=("team", "other")) as s:
        s.server.put("trainingruns", run_body(namespace="other"))
        s.server.put("trainingruns", run_body(namespace="foreign"))
        async with running(s.sweep.run()):
            await s.after_sweeps(2)
            await until(lambda: s.sweep.state["run"] == "ok")
            assert s.world.names() == [("other", "demo"), ("team", "demo")]
        assert all("/namespaces/" in request.path for request in s.server.seen)


async def test_kind_that_the_server_does_not_know_is_a_state_and_no_error_loop(caplog):
    async with scene() as s:
        s.faults["pytorchjobs"] = answering(404)
        async with running(s.sweep.run()):
            await s.after_sweeps(4)
            assert s.sweep.state == {"run": "ok", "job": MISSING, "claim": "ok"}
            assert all(pause >= 48 for pause in s.clock.sleeps)
            assert s.world.facts_of(*DEMO).job is None
            assert s.world.is_listed("job", "team")
            assert caplog.text.count("is the CRD installed?") == 1
            del s.faults["pytorchjobs"]
            await until(lambda: s.sweep.state["job"] == "ok")
            assert s.world.facts_of(*DEMO).job is not None


async def test_known_jobs_outlive_a_server_that_has_not_yet_read_its_crds():
    async with scene() as s:
        before = s.server.serve_list
        async with running(s.sweep.run()):
            await s.all_is_listed()
            jobs = []

            async def not_yet(request):
                jobs.append(s.world.facts_of(*DEMO).job)
                return await answering(404)(request)

            s.faults["pytorchjobs"] = not_yet
            await until(lambda: s.world.facts_of(*DEMO).job is None)
            assert sum(job is not None for job in jobs) == SWEEPS_TO_BELIEVE_MISSING
        assert before is s.server.serve_list


async def test_trouble_with_one_kind_is_tried_again_soon_and_leaves_the_others_alone():
    async with scene() as s:
        s.faults["persistentvolumeclaims"] = answering(403)
        async with running(s.sweep.run()):
            await until(lambda: s.asked("persistentvolumeclaims") >= 12)
            assert s.sweep.state["run"] == s.sweep.state["job"] == "ok"
            assert s.sweep.state["claim"] == "/api/v1/persistentvolumeclaims: 403: scripted"
            assert set(s.sweep.swept_at) == {"run", "job"}
            assert any(pause <= 15 for pause in s.clock.sleeps)
            del s.faults["persistentvolumeclaims"]
            await until(lambda: s.sweep.state["claim"] == "ok")


async def test_one_bad_namespace_does_not_hide_the_next():
    async with scene(namespaces=("broken", "team")) as s:

        async def broken_in_one(request):
            return await (answering(500) if "/broken/" in request.path else s.server.__class__.serve_list.__get__(s.server))(request)

        s.faults["trainingruns"] = broken_in_one
        async with running(s.sweep.run()):
            await until(lambda: s.world.names() == [DEMO])
            await until(lambda: "500" in s.sweep.state["run"])


async def test_sweep_does_not_drop_what_a_watcher_saw_after_the_list_was_made():
    async with scene() as s, running(s.sweep.run()):
        await s.all_is_listed()
        s.world.put_run(run_body("younger", job="younger", version=10**6))
        await s.after_sweeps()
        assert ("team", "younger") in s.world.names()


async def test_sweeps_give_signs_of_life_and_a_dead_one_is_noticed():
    async with scene() as s:
        async with running(s.sweep._keep("run")):
            await until(lambda: s.asked("trainingruns") >= 5)
            assert list(s.life.ages()) == ["sweep of trainingruns"]
            assert s.life.silent() == []
        s.clock.now += 400
        assert len(s.life.silent()) == 1
