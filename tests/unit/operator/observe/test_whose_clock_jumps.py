"""A host that slept, a clock that was set, an operator that is new: none of these is a silence, or a sign of life, of the run."""

from dataclasses import replace

import pytest
from object_bodies import JOB_UID, job_body, pod_body, run_body
from scripted_api import Clock

from ddp_operator.decide import silence
from ddp_operator.decide.decide import decide
from ddp_operator.decide.facts import ProgressFacts, ProgressLook
from ddp_operator.decide.wording import moment
from ddp_operator.observe import progress
from ddp_operator.observe.clock_jumps import with_times_moved
from ddp_operator.observe.newest import Newest
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


async def nothing():
    """Happens while it is asked."""


class Scraped:
    """A run of one pod, asked when the test says so; its node 0 says `answer`, a document or a sentence why not."""

    def __init__(self, monkeypatch, status=None):
        self.clock, self.answer, self.during = Clock(), DOCUMENT, nothing
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
        await self.during()
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


@pytest.mark.parametrize("answer", [DOCUMENT, "refused: connection refused"], ids=["stands still", "is silent"])
async def test_a_hang_stays_one_when_the_clock_is_set_back_before_the_next_look(scraped, answer):
    await scraped.look()
    scraped.answer = answer
    for _ in range(70):
        await scraped.look()
    assert scraped.decided().phase == "Hung"
    scraped.clock.now -= 3600.0
    assert scraped.decided().phase == "Hung"
    await scraped.look()
    assert scraped.decided().phase == "Hung"


async def test_a_run_that_was_heard_does_not_hang_because_the_clock_was_set_back(scraped):
    await scraped.look()
    scraped.clock.now -= 3600.0
    assert scraped.decided().phase != "Hung"


@pytest.mark.parametrize("is_same_pod", [True, False])
async def test_a_time_without_a_pod_to_ask_is_no_jump_of_the_clock(scraped, is_same_pod):
    await scraped.look()
    heard_at = scraped.clock.now
    if not is_same_pod:
        scraped.world.drop_pod("team", "demo-master-0")
        scraped.world.put("pod", pod_body("demo-master-0", uid="of-the-new-pod", version=99))
    scraped.answer = "refused: connection refused"
    look = await scraped.look(3600.0)
    moved = 3600.0 - COUNTED if is_same_pod else 0.0
    assert look.heard_at == heard_at + moved
    assert scraped.decided().progress.updated_at == moment(heard_at + moved)


async def test_a_new_pods_silence_begins_with_its_own_first_request(scraped):
    scraped.answer = "refused: connection refused"
    await scraped.look()
    scraped.world.drop_pod("team", "demo-master-0")
    scraped.world.put("pod", pod_body("demo-master-0", uid="of-the-new-pod", version=99))
    look = await scraped.look(3600.0)
    assert look.unanswered_since == scraped.clock.now


async def test_a_new_pod_that_was_never_heard_does_not_hang_when_the_clock_jumps(scraped):
    await scraped.look()
    scraped.world.drop_pod("team", "demo-master-0")
    scraped.world.put("pod", pod_body("demo-master-0", uid="of-the-new-pod", version=99))
    scraped.answer = "refused: connection refused"
    await scraped.look(3600.0)
    await scraped.look(3600.0)
    assert scraped.decided().phase != "Hung"


async def test_long_pauses_of_a_busy_operator_count_in_part_so_that_a_hang_is_still_found(scraped):
    await scraped.look()
    for _ in range(11):
        await scraped.look(COUNTED * 2)
    assert scraped.decided().phase == "Hung"


@pytest.mark.parametrize(("jump", "moved"), [(3600.0, 3600.0 - COUNTED), (-3600.0, -3600.0), (COUNTED, 0.0)])
async def test_the_times_of_other_runs_move_with_the_clock_and_once(scraped, jump, moved):
    await scraped.look()
    for newest in (scraped.world.asked, scraped.world.answered):
        newest.note(("team", "other"), scraped.clock.now)
    at = scraped.clock.now + moved
    await scraped.look(jump)
    await scraped.look()
    facts = scraped.world.facts_of(*DEMO)
    assert (facts.others_asked_at, facts.others_answered_at) == (at, at)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
@pytest.mark.parametrize("is_noticed_meanwhile", [True, False])
async def test_a_clock_that_jumps_while_a_run_is_asked_hides_no_hang_from_then_on(scraped, jump, is_noticed_meanwhile):
    await scraped.look()

    async def jumping():
        scraped.clock.now += jump
        scraped.during = nothing
        if is_noticed_meanwhile:
            scraped.scraper._begin_to_ask()  # another run

    scraped.during = jumping
    await scraped.look()
    looks = 0
    while scraped.decided().phase != "Hung":
        await scraped.look()
        looks += 1
        assert looks * PAUSE <= HUNG_AFTER + COUNTED + 2 * PAUSE
    assert looks * PAUSE >= HUNG_AFTER - COUNTED - PAUSE
    for newest in (scraped.world.asked, scraped.world.answered):
        assert 0.0 < newest.of_others(("team", "other")) <= scraped.clock.now


async def test_a_clock_that_is_set_ahead_does_not_make_a_pod_heard_that_never_was(scraped):
    """Else a network that stays cut would cost one restart for each night that a laptop sleeps."""
    await scraped.look()
    scraped.world.drop_pod("team", "demo-master-0")
    newer = pod_body("demo-master-0", uid="of-the-new-pod", version=99)
    newer["status"]["containerStatuses"][1]["state"]["running"]["startedAt"] = moment(scraped.clock.now + 5).isoformat()
    scraped.world.put("pod", newer)
    scraped.answer = "http://10.1.2.3:9400/progress did not answer within 2 s"
    await scraped.look()
    await scraped.look(3600.0)
    for _ in range(int(silence.ALONE * HUNG_AFTER / PAUSE) + 2):
        await scraped.look()
    facts = scraped.world.facts_of(*DEMO)
    facts = replace(facts, status=decide(facts, scraped.clock.now).status)
    assert not silence.is_its_own(facts, scraped.clock.now)


def test_nobodys_time_does_not_move():
    newest = Newest()
    newest.note(DEMO, 5.0)
    newest.move(3600.0)
    assert newest.of_others(DEMO) == 0.0


def test_times_move_by_what_the_clock_went_beyond_the_pauses():
    look = ProgressLook(DOCUMENT, "pod", heard_at=900.0, asked_at=1000.0, answered_at=990.0)
    assert with_times_moved(look, "pod", 1060.0, 60.0) == look
    assert with_times_moved(look, "pod", 1100.0, 60.0) == replace(look, heard_at=940.0, answered_at=1030.0)
    assert with_times_moved(look, "pod", 400.0, 60.0) == replace(look, heard_at=300.0, answered_at=390.0)
    assert with_times_moved(look, "other", 1100.0, 60.0) == look
    assert with_times_moved(look, "other", 400.0, 60.0) == replace(look, heard_at=300.0, answered_at=390.0)
    assert with_times_moved(ProgressLook(), "pod", 1e9, 60.0) == ProgressLook()


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
