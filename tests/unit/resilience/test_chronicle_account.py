"""The run's account across agents: what is remembered, what a fault costs, and how much of the time made progress."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from ddp_trainer.resilience.chronicle import LEDGER_FILE, Chronicle
from ddp_trainer.resilience.verdict import Record
from ddp_trainer.telemetry.node import PROGRESS_FILE
from ddp_trainer.telemetry.progress import compose


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def chronicle(tmp_path, clock):
    return Chronicle("run", 0, 4, tmp_path / LEDGER_FILE, clock=clock)


def successor(chronicle):
    """The account of the next agent on this run directory."""
    return Chronicle("run", 0, 4, chronicle.path, clock=chronicle.clock)


def look(chronicle, clock, seconds, phase="training", step=0, step_seconds=1.0, durable=0):
    """Time passes, then the agent looks at its first rank."""
    clock.now += seconds
    facts = {"attempt": chronicle.attempt, "phase": phase, "step": step, "step_seconds": step_seconds, "checkpoint": {"step": durable}}
    chronicle.observe(facts)


def test_everything_counted_comes_back_to_the_next_agent(chronicle, clock):
    chronicle.begin_attempt(3)
    look(chronicle, clock, 0)
    look(chronicle, clock, 10, step=9, durable=5)
    chronicle.record = Record(crashes=2, without_progress=1, durable_step=5, last_error=(9, "ValueError: ü"), identical_errors=2)
    chronicle.restarted("crash")
    chronicle.end()
    later = successor(chronicle)
    assert later.recall() is None
    assert later.record == chronicle.record
    assert later.ledger().restarts == {"crash": 1, "hang": 0, "preemption": 0, "peer_loss": 0}
    assert (later.lost_steps, later.reached_step, later.durable_step) == (4, 9, 5)
    assert (later.wall_seconds, later.productive_seconds) == (chronicle.wall_seconds, chronicle.productive_seconds) == (10.0, 6.0)


def test_an_agent_that_was_killed_is_noticed_by_its_successor_and_one_that_left_is_not(chronicle):
    chronicle.begin_attempt(1)
    assert successor(chronicle).recall() == "peer_loss"
    chronicle.end("preemption")
    assert successor(chronicle).recall() == "preemption"
    chronicle.end()
    assert successor(chronicle).recall() is None


def test_the_first_agent_of_a_run_has_nothing_to_recall(chronicle):
    assert chronicle.recall() is None
    assert chronicle.ledger().goodput_ratio is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "{}", '{"record": {}}', '{"record": {"last_error": [0, ""], "strange": 1}, "restarts": {}}']
)
def test_a_torn_ledger_is_a_fresh_start(chronicle, content):
    chronicle.path.write_text(content)
    assert chronicle.recall() is None
    assert chronicle.ledger() == Chronicle("run", 0, 4, None).ledger()


def test_a_ledger_that_is_cut_anywhere_never_raises_and_never_invents(chronicle, clock):
    chronicle.begin_attempt(2)
    look(chronicle, clock, 5, step=3)
    chronicle.save()
    whole = chronicle.path.read_bytes()
    for length in range(len(whole)):
        chronicle.path.write_bytes(whole[:length])
        later = successor(chronicle)
        assert later.recall() is None
        assert later.reached_step == 0


def test_other_nodes_keep_nothing_on_disk(tmp_path):
    chronicle = Chronicle("run", 1, 4, None)
    chronicle.begin_attempt(1)
    chronicle.end()
    assert chronicle.recall() is None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_agents_progress_is_newer_than_its_ledger_and_is_used(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 5, step=8, durable=6)
    facts = {"attempt": 1, "rank": 0, "phase": "training", "step": 12, "total_steps": 20, "checkpoint": {"step": 10, "saved_at": 1.0}}
    document = compose([facts], chronicle.ledger(), None, 1.0).to_bytes()
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(document)
    later = successor(chronicle)
    assert later.recall() == "peer_loss"
    assert (later.reached_step, later.durable_step) == (12, 10)
    assert later.restarted("peer_loss") == 2


# --- what a fault costs --------------------------------------------------------------------------------------------------------------


def test_steps_after_the_last_checkpoint_are_lost_and_no_others(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    assert chronicle.restarted("crash") == 7
    assert chronicle.lost_steps == 7


def test_a_second_fault_before_the_first_new_step_loses_nothing_more(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    chronicle.restarted("crash")
    chronicle.begin_attempt(2)
    look(chronicle, clock, 1, phase="starting", step=0)
    assert chronicle.restarted("crash") == 0
    chronicle.begin_attempt(3)
    look(chronicle, clock, 1, step=12, durable=10)
    assert chronicle.restarted("crash") == 2
    assert chronicle.lost_steps == 9


def test_an_agent_that_is_killed_again_while_it_starts_loses_nothing_more(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    facts = {"attempt": 1, "rank": 0, "phase": "training", "step": 17, "total_steps": 20, "checkpoint": {"step": 10, "saved_at": 1.0}}
    training = compose([facts], chronicle.ledger(), None, 1.0)
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(training.to_bytes())
    second = successor(chronicle)
    assert second.recall() == "peer_loss"
    assert second.restarted("peer_loss") == 7
    second.begin_attempt(2)
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(compose([], second.ledger(), training, 2.0).to_bytes())
    third = successor(chronicle)
    assert third.recall() == "peer_loss"
    assert third.restarted("peer_loss") == 0
    assert third.lost_steps == 7
    assert third.reached_step == 17


def test_ranks_are_still_told_how_far_the_run_had_come(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    chronicle.restarted("crash")
    chronicle.begin_attempt(2)
    assert chronicle.reached_step == 17


@pytest.mark.parametrize(
    ("cause", "counter"),
    [
        ("crash", "crash"),
        ("user_error", "crash"),
        ("hang", "hang"),
        ("preemption", "preemption"),
        ("peer_loss", "peer_loss"),
        ("?", "peer_loss"),
    ],
)
def test_every_restart_is_counted_under_one_cause(chronicle, cause, counter):
    chronicle.restarted(cause)
    assert {name: n for name, n in chronicle.restarts.items() if n} == {counter: 1}


def test_goodput_is_the_time_in_which_steps_were_made_that_lasted(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 0, phase="starting")
    look(chronicle, clock, 10, phase="starting")  # 10 s of start: wall only
    look(chronicle, clock, 20, step=20, durable=10)  # 20 s of training
    look(chronicle, clock, 5, phase="evaluating", step=20, durable=10)
    look(chronicle, clock, 5, phase="saving", step=20, durable=10)
    assert (chronicle.wall_seconds, chronicle.productive_seconds) == (40.0, 30.0)
    chronicle.restarted("crash")  # 10 steps of 1 s have to be done again
    assert (chronicle.lost_steps, chronicle.productive_seconds) == (10, 20.0)
    assert chronicle.ledger().goodput_ratio == 0.5


def test_goodput_is_never_negative(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 0)
    look(chronicle, clock, 1, step=100, step_seconds=60.0)
    chronicle.restarted("crash")
    assert chronicle.productive_seconds == 0.0


def test_facts_of_an_earlier_attempt_count_for_nothing_but_time(chronicle, clock):
    chronicle.begin_attempt(2)
    chronicle.observe(None)
    clock.now += 3
    chronicle.observe({"attempt": 1, "phase": "training", "step": 99, "checkpoint": {"step": 98}})
    assert (chronicle.wall_seconds, chronicle.productive_seconds) == (3.0, 0.0)
    assert (chronicle.reached_step, chronicle.durable_step) == (0, 0)


@pytest.mark.parametrize("facts", [{}, {"step": None}, {"checkpoint": None}, {"checkpoint": 7}, {"checkpoint": {}}, {"step_seconds": None}])
def test_facts_that_are_not_there_yet_do_no_harm(chronicle, facts):
    chronicle.begin_attempt(1)
    chronicle.observe({"attempt": 1, **facts})
    assert chronicle.reached_step == 0


def test_a_fresh_container_has_a_fresh_budget_but_remembers_whether_there_was_progress(chronicle):
    chronicle.record = Record(crashes=9, without_progress=2, durable_step=5)
    chronicle.forget_crashes()
    assert chronicle.record == Record(crashes=0, without_progress=2, durable_step=5)


def test_the_ledger_on_disk_is_plain_json_with_the_numbers(chronicle):
    chronicle.begin_attempt(1)
    chronicle.restarted("hang")
    chronicle.end()
    raw = json.loads(chronicle.path.read_text())
    assert raw["restarts"]["hang"] == 1
    assert raw["interrupted_by"] is None


def test_a_recovery_is_timed_from_the_fault_over_the_meeting_to_the_first_step(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 4, step=3)
    assert chronicle.ledger().recovery_seconds == {}  # a first start is no recovery
    chronicle.restarted("crash")
    clock.now += 0.25
    chronicle.begin_attempt(2)
    look(chronicle, clock, 1, phase="starting")
    assert chronicle.ledger().recovery_seconds == {}
    look(chronicle, clock, 1, step=4)
    look(chronicle, clock, 9, step=9)
    assert chronicle.ledger().recovery_seconds == {"form": 0.25, "first_step": 2.0}


def test_checkpoints_that_were_set_aside_are_counted(chronicle, clock):
    (chronicle.path.parent / "checkpoints" / "quarantine" / "step-000000003").mkdir(parents=True)
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1)
    assert chronicle.ledger().verify_failures == 1
