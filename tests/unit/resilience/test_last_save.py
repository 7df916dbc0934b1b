"""The wait for the last checkpoint, on a clock of the test's: it ends with success, with the time, or with what cannot mend."""

from __future__ import annotations

import pytest

from ddp_trainer.config import FaultToleranceSection, RunConfig
from ddp_trainer.errors import DataError, DivergedError
from ddp_trainer.resilience.last_save import await_durable
from ddp_trainer.resilience.watchdog import Watchdog
from ddp_trainer.telemetry.events import read_events
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.recorder import Recorder

NUMBER, STEP, LIMIT_SECONDS, RETRY_SECONDS = 9, 60, 600.0, 2.0
FULL = "a checkpoint cannot be written below /runs/x: [Errno 28] No space left on device; free space or lower checkpoint.keep"
CONFIG = RunConfig().with_values({"telemetry.tensorboard": False})


class Writer:
    """Says what the background writer would, whose tries come every 2 s and fail until `freed_at`, or give no answer until then."""

    def __init__(self, freed_at=float("inf"), cause="data_error", answers=True):
        self.now, self.freed_at, self.cause, self.answers = 0.0, freed_at, cause, answers

    def sleep(self, _seconds):
        self.now += 0.1  # more would be too many looks for a test

    def __call__(self):
        if self.now >= self.freed_at:
            return {"number": NUMBER}
        times = int(self.now // RETRY_SECONDS) if self.answers else 0
        failed = {"number": NUMBER, "step": STEP, "cause": self.cause, "message": FULL, "times": times}
        return {"number": NUMBER - 1, "failed": failed if times else None}


@pytest.fixture
def page(tmp_path):
    made = FactsPage.create(tmp_path / "facts", slots=1)
    yield made
    made.close()


@pytest.fixture
def recorder(page, tmp_path):
    return Recorder(config=CONFIG, rank=0, local_rank=0, world_size=1, page=page, run_dir=tmp_path, attempt=1)


def wait(writer, recorder, heard=None):
    await_durable(NUMBER, STEP, heard or writer, recorder, LIMIT_SECONDS, clock=lambda: writer.now, sleep=writer.sleep)
    return writer.now


def test_a_disk_that_is_freed_after_minutes_of_tries_is_survived_and_left_at_once(recorder):
    assert wait(Writer(freed_at=500.0), recorder) == pytest.approx(500.0, abs=0.2)


def test_a_disk_that_stays_full_is_given_up_when_the_time_is_over_with_the_remedy(recorder):
    writer = Writer()
    with pytest.raises(DataError, match=r"not saved within 600 s, at try 300: .*No space left.*; free space or lower checkpoint\.keep"):
        wait(writer, recorder)
    assert writer.now == pytest.approx(LIMIT_SECONDS, abs=0.2)


def test_a_try_that_is_under_way_when_the_time_is_over_may_still_succeed(recorder):
    """Of a large state each try takes minutes; what is said of the one before is no word on this one."""
    writer = Writer(freed_at=LIMIT_SECONDS + 60)

    def heard():
        report = writer()
        if writer.now < LIMIT_SECONDS - 1 or not report.get("failed"):
            return report
        return report | {"failed": report["failed"] | {"times": 299}}

    assert wait(writer, recorder, heard) == pytest.approx(LIMIT_SECONDS + 60, abs=0.2)


def test_a_state_that_is_not_finite_is_not_tried_again(recorder):
    writer = Writer(cause="diverged")
    with pytest.raises(DivergedError):
        wait(writer, recorder)
    assert writer.now == pytest.approx(RETRY_SECONDS, abs=0.2)


def test_the_failure_of_another_request_says_nothing(recorder):
    writer = Writer(freed_at=30.0, cause="diverged")

    def heard():
        report = writer()
        return report | ({"failed": report["failed"] | {"number": NUMBER - 1}} if report.get("failed") else {})

    assert wait(writer, recorder, heard) == pytest.approx(30.0, abs=0.2)


def test_it_is_said_once_what_to_do_and_until_when(recorder, page, tmp_path):
    notes = set()
    writer = Writer(freed_at=100.0)

    def heard():
        notes.add(page.read(0).get("note", ""))
        return writer()

    wait(writer, recorder, heard)
    recorder.close()
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["kind"] == "note"
    assert FULL in event["message"]
    (note,) = notes - {""}
    assert note.startswith("the disk cannot take the last checkpoint; free space or lower checkpoint.keep: tried until ")
    assert note.rpartition("tried ")[2] in event["message"]


@pytest.mark.parametrize("answers", [True, False])
def test_each_failed_try_is_a_sign_of_life_and_a_write_without_an_answer_is_none(recorder, page, answers):
    """The watchdog has the same limit: it must not call a full disk a hang, nor wait for a dead one for ever."""
    watchdog = Watchdog(FaultToleranceSection(save_limit_seconds=5, start_limit_seconds=5))
    writer, stalls = Writer(freed_at=100.0, answers=answers), []

    def heard():
        recorder._published = float("-inf")  # it publishes every 0.2 s of the real clock
        stalls.append(watchdog.look({0: page.read(0)}, writer.now))
        return writer()

    wait(writer, recorder, heard)
    assert any(stall and stall.phase == "saving" for stall in stalls) is not answers
