"""Events against real HTTP: each is there once, and one that cannot be posted is tried again beside all others, within bounds."""

import asyncio
from dataclasses import replace

import pytest
from fake_api_server import RefusalError
from test_writing_to_the_cluster import make_run

from ddp_operator.act.events import KEPT_SECONDS, Events
from ddp_operator.api.words import EventReason
from ddp_operator.decide.decision import Event


class Telling:
    """Events of one operator, whose clock belongs to the test."""

    def __init__(self, api, identity="me"):
        self.now = 0.0
        self.events = Events(api, identity, lambda: True, lambda: self.now)

    async def tell(self, run, *events):
        for event in events:
            self.events.tell(run, event)
        await self.look()

    async def look(self, seconds=0.0):
        self.now += seconds
        self.events.look()
        while tasks := self.events.tasks():
            await asyncio.wait(tasks)


async def test_the_same_event_is_not_posted_again_for_five_minutes(server, api):
    run, telling = make_run(server), Telling(api)
    flapping = Event(EventReason.HUNG, "no step for 10m", is_warning=True)
    for at, posted in ((0.0, 1), (10.0, 1), (299.0, 1), (301.0, 2), (302.0, 2)):
        telling.now = at
        await telling.tell(replace(run, resource_version=str(at)), flapping)
        assert len(server.objects["events"]) == posted
    await telling.tell(run, replace(flapping, message="no step for 20m"))
    assert (len(server.objects["events"]), telling.events.posted, telling.events.held_back) == (3, 3, 3)
    stored = next(iter(server.objects["events"].values()))
    assert (stored["type"], stored["reason"], stored["source"]) == ("Warning", "Hung", {"component": "ddp-operator"})
    assert stored["involvedObject"]["uid"] == run.uid


@pytest.mark.parametrize("fact", ["Hung/2026-01-02T03:04:05Z/", ""])
async def test_an_event_that_is_there_is_not_posted_again_by_anybody(server, api, fact, monkeypatch):
    monkeypatch.setattr("ddp_operator.act.events.POST_SECONDS", 0.3)
    run = make_run(server)
    server.answer_after = lambda request: 1.0 if request.method == "POST" else 0.0
    hung = Event(EventReason.HUNG, "Running -> Hung", fact=fact)
    one, two = Telling(api), Telling(api, "two")
    await one.tell(run, hung)  # it was done, and the answer is lost
    assert one.events.posted == 0
    server.answer_after = lambda _: 0.0
    await one.look(1.0)
    await two.tell(run, replace(hung, message="Hung") if fact else hung)
    assert (len(server.objects["events"]), one.events.posted, two.events.posted) == (1, 0, 0)
    await one.tell(run, replace(hung, fact="Hung/2026-01-02T03:09:09Z/", message="again"))
    await one.tell(replace(run, uid="of-a-namesake"), hung)
    assert one.events.posted == 2


async def test_a_namespace_that_takes_no_events_is_asked_ever_more_rarely_and_delays_no_other(server, api):
    run, telling = make_run(server), Telling(api)
    tries = []

    def fault(request):
        tries.append(request)
        return RefusalError(403, "no") if "/default/" in request.path else None

    server.fault = fault
    await telling.tell(run, *(Event(EventReason.HUNG, f"{number}") for number in range(3)))
    await telling.tell(replace(run, namespace="other"), Event(EventReason.HUNG, "x"))
    assert (telling.events.posted, len(tries)) == (1, 4)
    while telling.now < 599:
        await telling.look(1.0)
    assert 30 < len(tries) < 105
    assert telling.events.lost == 0
    while telling.now < 700:
        await telling.look(1.0)
    assert telling.events.lost == 3
    assert len(tries) < 110
    server.fault = lambda _: None
    await telling.tell(run, Event(EventReason.HUNG, "0"))  # what was not told is no repetition
    assert telling.events.posted == 2


async def test_an_event_that_the_server_finds_malformed_delays_no_other(server, api):
    run, telling = make_run(server), Telling(api)
    refusals = iter([RefusalError(422, "no")])
    server.fault = lambda _: next(refusals, None)
    await telling.tell(run, Event(EventReason.HUNG, "bad"), Event(EventReason.HUNG, "good"))
    assert (telling.events.lost, telling.events.posted) == (1, 1)


async def test_an_event_that_is_refused_alone_delays_no_other(server, api):
    run, telling = make_run(server), Telling(api)
    refusals = iter([RefusalError(403, "a webhook does not like it")])
    server.fault = lambda _: next(refusals, None)
    await telling.tell(run, Event(EventReason.HUNG, "bad"), Event(EventReason.HUNG, "good"))
    assert (telling.events.lost, telling.events.posted) == (0, 2)


async def test_in_a_namespace_that_is_about_to_go_nothing_is_tried_again(server, api):
    run, telling = make_run(server), Telling(api)
    words = "unable to create new content in namespace default because it is being terminated"
    server.fault = lambda request: RefusalError(403, words) if request.method == "POST" else None
    await telling.tell(run, Event(EventReason.HUNG, "x"))
    assert (telling.events.lost, telling.events._queues["default"].waiting) == (1, {})


async def test_a_bug_costs_the_event_it_is_about(server, api):
    run, telling, original = make_run(server), Telling(api), api.request

    async def request(*arguments, **given):
        api.request = original
        raise ValueError("a bug")

    api.request = request
    await telling.tell(run, Event(EventReason.HUNG, "bad"), Event(EventReason.HUNG, "good"))
    assert (telling.events.lost, telling.events.posted) == (1, 1)


async def test_who_does_not_lead_posts_nothing_and_who_leads_again_what_is_still_young(server, api):
    run, telling = make_run(server), Telling(api)
    telling.events._is_leader = lambda: False
    await telling.tell(run, Event(EventReason.HUNG, "old"))
    await telling.look(KEPT_SECONDS)
    await telling.tell(run, Event(EventReason.HUNG, "young"))
    assert telling.events.posted == 0
    telling.events._is_leader = lambda: True
    await telling.look()
    assert [event["message"] for event in server.objects["events"].values()] == ["young"]
    assert telling.events.lost == 1


async def test_events_are_kept_within_bounds(server, api, monkeypatch):
    monkeypatch.setattr("ddp_operator.act.events.REMEMBERED", 3)
    monkeypatch.setattr("ddp_operator.act.events.WAITING", 5)
    run, telling = make_run(server), Telling(api)
    await telling.tell(run, *(Event(EventReason.HUNG, f"{number}" * 2000) for number in range(6)))  # none is posted in between
    assert (len(telling.events._told), telling.events.posted, telling.events.lost) == (3, 5, 1)
    assert all(len(event["message"]) <= 1024 for event in server.objects["events"].values())
