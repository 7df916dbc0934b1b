"""A host that slept, a clock that was set, an operator that is new: none of these is a silence, or a sign of life, of the run."""

from dataclasses import replace

import pytest
from object_bodies import JOB_UID, job_body, pod_body, run_body
from scripted_api import Clock

from ddp_operator.decide.decide import decide
from ddp_operator.decide.facts import ProgressFacts, ProgressLook
from ddp_operator.decide.wording import moment
from ddp_operator.observe import progress
from ddp_operator.observe.clock_jumps import with_times_moved
from ddp_operator.observe.progress import COUNTED_PAUSES, LONGEST_PAUSE_INTERVALS, ProgressScraper, Unanswered
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

DEMO = ("team", "demo")
HUNG_AFTER = 600.0
BORN = 1_767_323_045.0
"""When the pods of `object_bodies` were made, and a little: on this clock they are old."""
NOW = BORN + 50_000.0
PAUSE = Settings().progress_seconds
COUNTED = COUNTED_PAUSES * LONGEST_PAUSE_INTERVALS * PAUSE
DOCUMENT = ProgressFacts(run="demo", attempt=1, phase="training", updated_at=5.0, step=7, total_steps=100, world_size=1)


class Scraped:
    """A run of one pod, asked when the test says so; its node 0 says `answer`, a document or a sentence why not."""

    def __init__(self, monkeypatch, status=None):
        self.clock, self.answer = Clock(), DOCUMENT
        self.clock.now = NOW
        self.world = World()
        spec = {"jobRef": {"name": "demo"}, "policy": {"hungAfter": "600s", "onHung": "Report"}}
        job = job_body(spec={"pytorchReplicaSpecs": {"Master": {"replicas": 1}}})
        for kind, bodies in (("run", [run_body(status=status or {}, spec=spec)]), ("job", [job]), ("pod", [pod_body("demo-master-0")])):
            self.world.replace(kind, (), bodies)
        self.world.replace("claim", (), [])
        self.scraper = ProgressScraper(self.world, Settings(), self.clock)
        monkeypatch.setattr(progress, "fetch", self._fetch)

    async def _fetch(self, *_):
        if isinstance(self.answer, str):
            raise Unanswered(self.answer)
        return self.answer

    async def look(self, seconds=PAUSE):
        self.clock.now += seconds
        await self.scraper.ask(None, DEMO)
        return self.world.look_of(*DEMO)

    def decided(self):
        return decide(self.world.facts_of(*DEMO), self.clock.now).status


@pytest.fixture
def scraped(monkeypatch):
    return Scraped(monkeypatch)


@pytest.mark.parametrize("jump", [3600.0, 86_400.0, -3600.0])
@pytest.mark.parametrize("answer", [DOCUMENT, "refused: connection refused"], ids=["stands still", "is silent"])
async def test_one_look_after_a_jump_of_the_clock_is_no_hang(scraped, jump, answer):
    await scraped.look()
    scraped.answer = answer
    await scraped.look()
    await scraped.look(jump)
    assert scraped.decided().phase != "Hung"


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
@pytest.mark.parametrize("answer", [DOCUMENT, "refused: connection refused"], ids=["stands still", "is silent"])
async def test_a_hang_is_found_in_time_although_the_clock_was_set(scraped, jump, answer):
    await scraped.look()
    scraped.answer = answer
    for _ in range(30):
        await scraped.look()
    await scraped.look(jump)
    assert scraped.decided().phase != "Hung"
    for _ in range(32):
        await scraped.look()
    assert scraped.decided().phase == "Hung"


async def test_long_pauses_of_a_busy_operator_count_in_part_so_that_a_hang_is_still_found(scraped):
    await scraped.look()
    for _ in range(11):
        await scraped.look(COUNTED * 2)
    assert scraped.decided().phase == "Hung"


def test_times_move_by_what_the_clock_went_beyond_the_pauses():
    look = ProgressLook(DOCUMENT, "pod", heard_at=900.0, asked_at=1000.0, answered_at=990.0)
    assert with_times_moved(look, 1060.0, 60.0) == look
    assert with_times_moved(look, 1100.0, 60.0) == replace(look, heard_at=940.0, answered_at=1030.0)
    assert with_times_moved(look, 400.0, 60.0) == replace(look, heard_at=300.0, answered_at=390.0)
    assert with_times_moved(ProgressLook(), 1e9, 60.0) == ProgressLook()


# --- a new operator, and a run that its predecessor called hung

HEARD = NOW - 7200.0


def called_hung(**progress_of_it):
    at = moment(NOW - 6000.0).isoformat()
    return {
        "phase": "Hung",
        "phaseSince": at,
        "jobUid": JOB_UID,
        "progress": {"step": 7, "attempt": 1, "totalSteps": 100, **progress_of_it},
        "timing": {"lastProgressAt": moment(HEARD).isoformat(), "runningAt": at},
    }


async def test_a_run_that_hangs_stays_hung_through_a_restart_of_the_operator(monkeypatch):
    scraped = Scraped(monkeypatch, called_hung())
    for _ in range(4):
        await scraped.look()
        assert scraped.decided().phase == "Hung"
    look = scraped.world.look_of(*DEMO)
    assert (look.heard_at, look.document) == (HEARD, DOCUMENT)
    scraped.answer = replace(DOCUMENT, updated_at=6.0)
    await scraped.look()
    assert scraped.decided().phase == "Running"


@pytest.mark.parametrize("said", [{"step": 8}, {"attempt": 2}])
async def test_a_run_that_has_gone_on_is_believed_at_once(monkeypatch, said):
    scraped = Scraped(monkeypatch, called_hung())
    scraped.answer = replace(DOCUMENT, **said)
    await scraped.look()
    assert scraped.decided().phase == "Running"


async def test_a_document_that_moves_within_the_same_step_is_a_sign_of_life(monkeypatch):
    scraped = Scraped(monkeypatch, called_hung())
    await scraped.look()
    assert scraped.decided().phase == "Hung"
    scraped.answer = replace(DOCUMENT, updated_at=6.0)
    look = await scraped.look()
    assert look.heard_at == scraped.clock.now
    assert scraped.decided().phase == "Running"


@pytest.mark.parametrize(
    "change", [{"phase": "Running"}, {"progress": None}, {"timing": {"lastProgressAt": moment(BORN - 90_000).isoformat()}}]
)
async def test_of_other_phases_and_other_pods_the_first_document_counts(monkeypatch, change):
    scraped = Scraped(monkeypatch, {key: value for key, value in {**called_hung(), **change}.items() if value})
    look = await scraped.look()
    assert look.heard_at == scraped.clock.now


async def test_a_run_that_is_gone_leaves_nothing_behind(monkeypatch):
    scraped = Scraped(monkeypatch, called_hung())
    scraped.scraper._look_around()
    await scraped.look()
    assert scraped.scraper._unproven
    scraped.world.drop_run(*DEMO)
    scraped.scraper._look_around()
    assert scraped.scraper._unproven == {}
