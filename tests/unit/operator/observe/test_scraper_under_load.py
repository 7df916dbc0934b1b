"""A thousand pods that do not answer: more is due than can be asked, for ever, and the scraper still lives and sees what is new."""

import asyncio
from contextlib import suppress

from object_bodies import job_body, run_body

from ddp_operator.decide.facts import PodFacts
from ddp_operator.observe import progress
from ddp_operator.observe.life import Life
from ddp_operator.observe.progress import NAME, ProgressScraper, Unanswered
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

TICK_SECONDS = 0.25
TIMEOUT_SECONDS = 2.0


class VirtualTime:
    """Seconds that pass when the test says so; sleepers wake in order."""

    def __init__(self):
        self.now = 1000.0
        self._sleepers = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        wake = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, wake))
        await wake

    async def pass_on(self):
        self.now += TICK_SECONDS
        for _, wake in [row for row in self._sleepers if row[0] <= self.now]:
            if not wake.done():
                wake.set_result(None)
        self._sleepers = [row for row in self._sleepers if row[0] > self.now]
        for _ in range(8):
            await asyncio.sleep(0)


def add(world, name):
    world.put_run(run_body(name, job=name))
    world.put_job(job_body(name, uid=f"job-{name}"))
    pod = PodFacts(
        f"{name}-master-0", f"pod-{name}", "master-0", phase="Running", started_at=1.0, ip="127.0.0.1", progress_port=9
    )  # nobody is really asked
    world.put_pod("team", name, pod)


async def test_the_scraper_lives_and_finds_new_runs_while_hundreds_of_pods_time_out(monkeypatch):
    time, world, asked = VirtualTime(), World(), set()

    async def slow(_session, pod, timeout_seconds):
        asked.add(pod.uid)
        await time.sleep(timeout_seconds)
        raise Unanswered("silent", was_slow=True)

    monkeypatch.setattr(progress, "fetch", slow)
    for index in range(400):
        add(world, f"run-{index}")
    life = Life(time)
    settings = Settings(progress_timeout_seconds=TIMEOUT_SECONDS, progress_seconds=1.0)  # 130 a second get due, 25 can be asked
    scraper = ProgressScraper(world, settings, time, life, monotonic=time, sleep=time.sleep)
    task = asyncio.create_task(scraper.run())
    try:
        oldest = 0.0
        for tick in range(480):
            await time.pass_on()
            oldest = max(oldest, life.ages().get(NAME, 0.0))
            if tick == 200:
                add(world, "late")
        assert not task.done()
        assert scraper.requests > 1000
        assert oldest <= TIMEOUT_SECONDS + 1.0
        assert len(asked) == 401, "the one that came late was never noticed"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_run_whose_pods_change_is_asked_soon_and_never_by_two_plans_at_once(monkeypatch):
    time, world, asked = VirtualTime(), World(), []

    async def refused(*_):
        asked.append(time.now)
        raise Unanswered("refused")

    monkeypatch.setattr(progress, "fetch", refused)
    add(world, "a")
    world.retain("pod", (), {("team", "a-master-0")})
    scraper = ProgressScraper(world, Settings(progress_seconds=10.0), time, monotonic=time, sleep=time.sleep)
    task = asyncio.create_task(scraper.run())
    try:
        while len(asked) < 2:
            await time.pass_on()
        await time.pass_on()
        for number in range(3):
            changed_at = time.now
            world.put_pod("team", "a", PodFacts(f"a-worker-{number}", f"pod-{number}", f"worker-{number}"))
            await time.pass_on()
            await time.pass_on()
            assert asked[-1] >= changed_at
        before = len(asked)
        for _ in range(240):
            await time.pass_on()
        assert 6 <= len(asked) - before <= 10  # after 1, 2, 4 and 8 s, then each 10 s of the minute
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
