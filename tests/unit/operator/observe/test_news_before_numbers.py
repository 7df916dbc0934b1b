"""Numbers of a run that trains mark nobody at once; whatever decides something does; and a gang that gathers is heard soon."""

import random
from dataclasses import replace

import pytest
from object_bodies import job_body, pod_body, run_body

from ddp_operator.decide.facts import ProgressFacts, ProgressLook
from ddp_operator.observe.progress import FIRST_PAUSE_SECONDS, ProgressScraper
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

DEMO = ("team", "demo")
AT = "2026-01-02T03:04:05Z"
DOCUMENT = ProgressFacts(run="demo", attempt=1, phase="training", updated_at=1.0, step=5, world_size=4)
LOOK = ProgressLook(DOCUMENT, "pod-1", heard_at=10.0, asked_at=10.0, answered_at=10.0)
NUMBERS = {"step": 6, "updated_at": 2.0, "loss": 0.5, "checkpoint_step": 4, "lost_steps": 1, "note": "on it", "volume_free_bytes": 1}
NEWS = (
    {"phase": "saving"},
    {"attempt": 2},
    {"world_size": 3},
    {"restarts": {"crash": 1}},
)


def world_in(status, look=LOOK):
    world = World()
    for kind, body in (("run", run_body(status=status)), ("job", job_body()), ("pod", pod_body("demo-master-0"))):
        world.replace(kind, (), [body])
    world.replace("claim", (), [])
    world.put_progress(*DEMO, look)
    for take in (world.take_dirty, world.take_moved, world.take_gathering):
        take()
    return world


def after(world, look):
    world.put_progress(*DEMO, look)
    return list(world.take_dirty()), list(world.take_moved())


def test_numbers_of_a_running_run_only_move():
    world = world_in({"phase": "Running"}, replace(LOOK, document=replace(DOCUMENT, checkpoint_step=3)))
    moved = replace(LOOK, heard_at=20.0, document=replace(DOCUMENT, **NUMBERS))
    assert after(world, moved) == ([], [DEMO])
    assert after(world, replace(moved, asked_at=30.0, answered_at=30.0)) == ([], [])


@pytest.mark.parametrize("words", NEWS)
def test_what_the_trainer_says_in_words_is_news(words):
    assert after(world_in({"phase": "Running"}), replace(LOOK, document=replace(DOCUMENT, **words))) == ([DEMO], [])


@pytest.mark.parametrize("change", [{"error": "x"}, {"pod_uid": "pod-2"}, {"unanswered_since": 5.0}, {"document": None}])
def test_silence_another_pod_and_the_first_durable_step_are_news(change):
    assert after(world_in({"phase": "Running"}), replace(LOOK, **change)) == ([DEMO], [])
    first = replace(LOOK, document=replace(DOCUMENT, checkpoint_step=0))
    assert after(world_in({"phase": "Running"}), first) == ([DEMO], [])


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Starting"},
        {"phase": "Restarting"},
        {"phase": "Hung"},
        {"phase": "Saving"},
        {"phase": "Running", "incident": {"openedAt": AT, "lastLossAt": AT}},
    ],
)
def test_a_run_that_waits_for_a_sign_of_life_is_marked_by_the_first(status):
    assert after(world_in(status), replace(LOOK, heard_at=20.0)) == ([DEMO], [])


def test_what_a_renewal_of_numbers_wrote_marks_nobody_and_is_known():
    world = world_in({"phase": "Running", "progress": {"step": 1}})
    world.put_run(run_body(version=50, status={"phase": "Running", "progress": {"step": 2}}), is_renewal=True)
    assert list(world.take_dirty()) == []
    assert world.facts_of(*DEMO).status.progress.step == 2
    world.put_run(run_body(version=51, status={"phase": "Hung"}))
    assert list(world.take_dirty()) == [DEMO]


def test_runs_whose_pods_come_or_change_are_gathering_but_not_by_the_first_list():
    world = World()
    world.put_run(run_body())
    world.put_job(job_body())
    world.put("pod", pod_body("demo-master-0"))
    assert list(world.take_gathering()) == []
    world.replace("pod", (), [pod_body("demo-master-0")])
    assert list(world.take_gathering()) == []
    world.put("pod", pod_body("demo-worker-0"))
    assert list(world.take_gathering()) == [DEMO]
    assert list(world.take_gathering()) == []


def test_a_run_that_gathers_is_asked_at_once_and_then_ever_less_often_until_it_is_as_usual():
    now = [1000.0]
    world = world_in({"phase": "Running"})
    scraper = ProgressScraper(world, Settings(progress_seconds=10), lambda: now[0], monotonic=lambda: now[0], rng=random.Random(7))
    scraper._look_around()
    scraper._again(DEMO)
    assert scraper._scheduled[DEMO] - now[0] >= 8.5
    scraper._hasten(DEMO)
    assert scraper._scheduled[DEMO] == now[0]
    pauses = []
    for _ in range(6):
        scraper._again(DEMO)
        pauses.append(scraper._scheduled[DEMO] - now[0])
    for pause, wanted in zip(pauses, (FIRST_PAUSE_SECONDS, 2.0, 4.0, 8.0, 10.0, 10.0), strict=True):
        assert 0.85 * wanted <= pause <= 1.15 * wanted
    assert scraper._eager == {}
    scraper._hasten(("team", "unknown"))
    assert scraper._eager == {}
