"""The run's account across agents: what is remembered, what a fault costs, and how much of the time made progress."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import pytest

from ddp_trainer.checkpoint.manifest import folder_name
from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import DATA_ERROR, FINISHED, HANG, NO_PROGRESS, PREEMPTED
from ddp_trainer.resilience.chronicle import LEDGER_FILE, Chronicle
from ddp_trainer.resilience.fault import REJOIN, Fault
from ddp_trainer.resilience.verdict import Record, judge
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


def on_disk(chronicle, *steps):
    """Exactly these checkpoints are there."""
    folder = chronicle.path.parent / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    for step in steps:
        (folder / folder_name(step)).mkdir(parents=True)


def look(chronicle, clock, seconds, phase="training", step=0, step_seconds=1.0, durable=0, resumed=None):
    """Time passes, then the agent looks at its first rank, and at what the background writer said."""
    clock.now += seconds
    facts = {"attempt": chronicle.attempt, "phase": phase, "step": step, "step_seconds": step_seconds}
    chronicle.observe(facts if resumed is None else facts | {"resumed_step": resumed}, {"checkpoint": {"step": durable}})


def recover(chronicle, clock, resumed, cause="crash", step=None):
    """A fault, then new ranks that say where they go on; the steps that this lost."""
    before = chronicle.lost_steps
    chronicle.restarted(cause)
    chronicle.begin_attempt(chronicle.attempt + 1)
    look(chronicle, clock, 0, phase="starting", step=resumed, resumed=resumed)
    if step is not None:
        look(chronicle, clock, 1, step=step, resumed=resumed)
    return chronicle.lost_steps - before


def test_everything_counted_comes_back_to_the_next_agent(chronicle, clock):
    on_disk(chronicle, 5)
    chronicle.begin_attempt(3)
    look(chronicle, clock, 0)
    look(chronicle, clock, 10, step=9, durable=5)
    chronicle.record = Record(crashes=2, without_progress=1, durable_step=5, last_error=(9, "ValueError: ü"), identical_errors=2)
    chronicle.skipped.append((3, 4))
    assert recover(chronicle, clock, resumed=5) == 4
    chronicle.end()
    later = successor(chronicle)
    assert later.recall() is None
    assert later.record == chronicle.record
    assert later.skipped == [(3, 4)]
    assert later.ledger().restarts == {"crash": 1, "hang": 0, "preemption": 0, "peer_loss": 0}
    assert (later.lost_steps, later.reached_step, later.durable_step) == (4, 9, 5)
    assert (later.wall_seconds, later.productive_seconds) == (chronicle.wall_seconds, chronicle.productive_seconds) == (10.0, 6.0)


def test_an_agent_that_was_killed_is_noticed_by_its_successor_and_one_that_left_is_not(chronicle):
    chronicle.begin_attempt(1)
    assert successor(chronicle).recall() == "peer_loss"
    chronicle.end(PREEMPTED)
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


@pytest.mark.parametrize(
    "damage",
    [
        {"reached_step": None},
        {"restarts": {"crash": "x"}},
        {"restarts": {"crash": None}},
        {"record": {"last_error": [0]}},
        {"record": {"durable_step": "x"}},
        {"wall_seconds": float("nan")},
        {"lost_steps": -1},
        {"skipped": [[1]]},
        {"interrupted_by": 7},
    ],
)
def test_a_ledger_with_a_value_that_is_none_of_ours_is_a_fresh_start(chronicle, clock, damage):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=3)
    chronicle.save()
    chronicle.path.write_text(json.dumps(json.loads(chronicle.path.read_text()) | damage))
    later = successor(chronicle)
    assert later.recall() is None
    assert later.ledger() == Chronicle("run", 0, 4, None).ledger()


def test_a_ledger_from_before_a_field_was_added_is_taken_over(chronicle):
    chronicle.begin_attempt(1)
    raw = json.loads(chronicle.path.read_text())
    del raw["begun_with"]
    chronicle.path.write_text(json.dumps(raw))
    assert successor(chronicle).recall() == "peer_loss"


# --- whose the checkpoints are ---------------------------------------------------------------------------------------------------------


def start(chronicle, clock, resume, leaves_with=None):
    """An agent on this run directory whose ranks train and which then leaves, or is killed; whether it went on with its own run."""
    agent = Chronicle("run", 0, 4, chronicle.path, resume, clock=clock)
    agent.recall()
    goes_on = agent.goes_on
    agent.begin_attempt(1)
    look(agent, clock, 1, step=1)
    if leaves_with:
        agent.end(leaves_with)
    return goes_on


@pytest.mark.parametrize("leaves_with", [None, PREEMPTED, HANG])
def test_a_start_goes_on_with_what_the_same_command_began_and_was_kept_from_ending(chronicle, clock, leaves_with):
    assert not start(chronicle, clock, "never", leaves_with)
    assert start(chronicle, clock, "never", FINISHED)
    assert not start(chronicle, clock, "never")


def test_a_run_that_was_begun_otherwise_is_another_one(chronicle, clock):
    start(chronicle, clock, "auto", PREEMPTED)
    assert not start(chronicle, clock, "never", PREEMPTED)


def test_a_start_that_was_refused_leaves_the_checkpoints_to_whom_they_belong(chronicle):
    for _ in range(2):
        refused = Chronicle("run", 0, 4, chronicle.path, "never")
        refused.recall()
        assert not refused.goes_on
        refused.begin_attempt(1)
        refused.end(DATA_ERROR)


# --- what is durable -------------------------------------------------------------------------------------------------------------------


def test_after_checkpoints_were_lost_the_next_one_is_progress_though_its_step_is_lower(chronicle, clock):
    on_disk(chronicle, 50, 100)
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=101, durable=100)
    chronicle.record = Record(without_progress=2, durable_step=100)
    chronicle.save()
    later = successor(chronicle)
    later.recall()
    assert later.durable_step == 100
    later.begin_attempt(2)
    on_disk(chronicle, 50)  # a rank has set the newest one aside
    look(later, clock, 1, step=51, durable=100)
    assert (later.durable_step, later.record.durable_step) == (50, 50)
    look(later, clock, 1, step=52, durable=100)  # what the writer goes on to say is no news
    assert later.durable_step == 50
    look(later, clock, 1, step=61, durable=60)
    verdict = judge(Fault("crash", 0, 1, 137, 61, "killed"), later.durable_step, later.record, FaultToleranceSection())
    assert (verdict.leave, verdict.record.without_progress) == (None, 1)


def test_checkpoints_that_cannot_be_listed_are_still_counted_as_they_were(chronicle, clock):
    on_disk(chronicle, 6)
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=8, durable=6)
    chronicle.save()
    on_disk(chronicle)
    (chronicle.path.parent / "checkpoints").write_text("no folder: listing it fails as on a volume that is not well")
    later = successor(chronicle)
    assert later.recall() == "peer_loss"
    assert later.durable_step == 6


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
    facts = {"attempt": 1, "rank": 0, "phase": "training", "step": 12, "total_steps": 20}
    saved = replace(chronicle.ledger(), checkpoint={"step": 10, "saved_at": 1.0})
    on_disk(chronicle, 6, 10)
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(compose([facts], saved, None, 1.0).to_bytes())
    later = successor(chronicle)
    assert later.recall() == "peer_loss"
    assert (later.reached_step, later.durable_step) == (12, 10)
    assert recover(later, clock, resumed=10, cause="peer_loss") == 2


def test_a_page_on_which_ranks_were_only_starting_tells_of_no_step_that_could_be_lost_again(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 5, step=8, durable=6)
    before = compose([{"attempt": 1, "rank": 0, "phase": "training", "step": 12, "total_steps": 20}], chronicle.ledger(), None, 1.0)
    starting = {"attempt": 1, "rank": 0, "phase": "starting", "step": 0, "total_steps": 0}
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(compose([starting], chronicle.ledger(), before, 2.0).to_bytes())
    on_disk(chronicle, 6)
    later = successor(chronicle)
    later.recall()
    assert (later.reached_step, later.standing_step) == (12, 0)


# --- what a fault costs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resumed", "lost"), [(17, 0), (15, 2), (10, 7), (0, 17)])
def test_steps_after_the_state_that_was_found_are_lost_wherever_it_was(chronicle, clock, resumed, lost):
    """A node's memory is newer than the disk, which has step 10 here, or nothing has survived."""
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    assert recover(chronicle, clock, resumed, step=resumed + 1) == lost


def test_nothing_is_counted_as_lost_before_the_ranks_say_where_they_go_on(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    chronicle.restarted("crash")
    chronicle.begin_attempt(2)
    look(chronicle, clock, 1, phase="starting")
    assert chronicle.lost_steps == 0
    look(chronicle, clock, 1, phase="starting", step=15, resumed=15)
    look(chronicle, clock, 1, step=16, resumed=15)  # the fact stays in the page: counted once
    assert chronicle.lost_steps == 2


def test_the_facts_of_ranks_that_are_gone_do_not_say_where_the_new_ones_go_on(chronicle, clock):
    """They stay in the page, and the agent looks at it while it waits for the other nodes."""
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, resumed=3)
    chronicle.restarted("crash")
    look(chronicle, clock, 1, step=17, resumed=3)
    chronicle.begin_attempt(2)
    chronicle.observe({"attempt": 1, "phase": "training", "step": 17, "resumed_step": 3}, {})
    assert chronicle.lost_steps == 0
    look(chronicle, clock, 1, phase="starting", step=15, resumed=15)
    assert chronicle.lost_steps == 2


def test_time_after_a_fault_is_not_productive_though_the_last_word_of_the_dead_was_training(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 0, step=1)
    look(chronicle, clock, 10, step=17)
    chronicle.restarted("crash")
    look(chronicle, clock, 100, step=17)
    chronicle.begin_attempt(2)
    assert (chronicle.wall_seconds, chronicle.productive_seconds) == (110.0, 10.0)


def test_a_second_fault_before_the_first_new_step_loses_nothing_more(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17, durable=10)
    assert recover(chronicle, clock, resumed=10) == 7
    assert recover(chronicle, clock, resumed=10, step=12) == 0
    assert recover(chronicle, clock, resumed=10) == 2
    assert chronicle.lost_steps == 9


def test_a_second_fault_before_the_ranks_say_anything_is_counted_with_the_first(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17)
    chronicle.restarted("crash")
    chronicle.begin_attempt(2)
    look(chronicle, clock, 1, phase="starting")
    assert recover(chronicle, clock, resumed=15) == 2


def test_steps_that_a_later_fault_loses_are_counted_though_the_first_one_struck_before_any_step(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, phase="starting")
    chronicle.restarted("crash")
    chronicle.begin_attempt(2)  # its ranks begin at the beginning, and have nothing to say about that
    look(chronicle, clock, 1, step=50)
    assert recover(chronicle, clock, resumed=40) == 10


def test_an_agent_that_is_killed_again_while_it_starts_loses_nothing_more(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17)
    facts = {"attempt": 1, "rank": 0, "phase": "training", "step": 17, "total_steps": 20}
    training = compose([facts], chronicle.ledger(), None, 1.0)
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(training.to_bytes())
    second = successor(chronicle)
    assert second.recall() == "peer_loss"
    assert recover(second, clock, resumed=10, cause="peer_loss") == 7
    (chronicle.path.parent / PROGRESS_FILE).write_bytes(compose([], second.ledger(), training, 2.0).to_bytes())
    third = successor(chronicle)
    assert third.recall() == "peer_loss"
    assert recover(third, clock, resumed=10, cause="peer_loss") == 0
    assert third.lost_steps == 7
    assert third.reached_step == 17


def test_letting_a_node_in_again_is_no_fault_and_its_steps_are_kept(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1, step=17)
    assert recover(chronicle, clock, resumed=17, cause=REJOIN) == 0
    assert set(chronicle.restarts.values()) == {0}


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
    recover(chronicle, clock, resumed=10)  # 10 steps of 1 s have to be done again
    assert (chronicle.lost_steps, chronicle.productive_seconds) == (10, 20.0)
    assert chronicle.ledger().goodput_ratio == 0.5


def test_goodput_is_never_negative(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 0)
    look(chronicle, clock, 1, step=100, step_seconds=60.0)
    recover(chronicle, clock, resumed=0)
    assert chronicle.productive_seconds == 0.0


def test_facts_of_an_earlier_attempt_count_for_nothing_but_time(chronicle, clock):
    chronicle.begin_attempt(2)
    chronicle.observe(None, {})
    clock.now += 3
    chronicle.observe({"attempt": 1, "phase": "training", "step": 99}, {})
    assert (chronicle.wall_seconds, chronicle.productive_seconds) == (3.0, 0.0)
    assert chronicle.reached_step == 0


def test_what_became_durable_counts_whoever_asked_for_it_and_an_older_word_changes_nothing(chronicle):
    chronicle.begin_attempt(2)
    chronicle.observe(None, {"checkpoint": {"step": 98}, "count": 3, "stall_seconds": 0.5, "persist_seconds": 2})
    assert chronicle.durable_step == 98
    assert chronicle.ledger().checkpoint == {"step": 98}
    assert chronicle.ledger().checkpoint_totals == {"count": 3.0, "stall_seconds": 0.5, "persist_seconds": 2.0}
    chronicle.observe(None, {"checkpoint": {"step": 90}})
    assert chronicle.durable_step == 98


@pytest.mark.parametrize("facts", [{}, {"step": None}, {"step_seconds": None}, {"resumed_step": None}])
@pytest.mark.parametrize("report", [{}, {"checkpoint": None}, {"checkpoint": 7}, {"checkpoint": {}}, {"checkpoint": {"step": None}}])
def test_words_that_are_not_there_yet_do_no_harm(chronicle, facts, report):
    chronicle.restarted("crash")
    chronicle.begin_attempt(1)
    chronicle.observe({"attempt": 1, **facts}, report)
    assert (chronicle.reached_step, chronicle.durable_step) == (0, 0)
    assert chronicle.ledger().lost_steps == 0


def test_half_a_character_in_an_errors_words_does_not_cost_the_ledger(chronicle):
    chronicle.record = Record(crashes=2, last_error=(9, "no such file: \udce9"))
    chronicle.restarted("crash")
    chronicle.save()
    later = successor(chronicle)
    later.recall()
    assert (later.record, later.restarts["crash"]) == (chronicle.record, 1)


@pytest.mark.parametrize(("leaves_with", "is_kept"), [(NO_PROGRESS, False), (PREEMPTED, True)])
def test_what_was_counted_against_a_run_is_forgotten_when_only_a_person_starts_it_again(chronicle, leaves_with, is_kept):
    chronicle.record = Record(without_progress=4, identical_errors=4)
    chronicle.end(leaves_with)
    assert (chronicle.record != Record()) is is_kept


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


def test_a_recovery_is_timed_from_the_fault_over_the_meeting_and_the_state_to_the_first_step(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 4, step=3)
    assert chronicle.ledger().recovery_seconds == {}  # a first start is no recovery
    chronicle.restarted("crash")
    clock.now += 0.25
    chronicle.begin_attempt(2)
    look(chronicle, clock, 1, phase="starting")
    look(chronicle, clock, 0.5, phase="starting", resumed=3)
    assert chronicle.ledger().recovery_seconds == {}
    look(chronicle, clock, 2, step=4, resumed=3)
    look(chronicle, clock, 9, step=9, resumed=3)
    assert chronicle.ledger().recovery_seconds == {"form": 0.25, "load": 1.5, "first_step": 2.0}


def test_a_recovery_counts_from_the_last_fault_before_the_first_step(chronicle, clock):
    chronicle.begin_attempt(1)
    look(chronicle, clock, 4, step=3)
    recover(chronicle, clock, resumed=3)
    clock.now += 100
    chronicle.restarted("crash")
    clock.now += 0.5
    chronicle.begin_attempt(3)
    look(chronicle, clock, 1, phase="starting", resumed=3)
    look(chronicle, clock, 2, step=4, resumed=3)
    assert chronicle.ledger().recovery_seconds == {"form": 0.5, "load": 1.0, "first_step": 2.0}


def test_checkpoints_that_were_set_aside_are_counted(chronicle, clock):
    (chronicle.path.parent / "checkpoints" / "quarantine" / "step-000000003").mkdir(parents=True)
    chronicle.begin_attempt(1)
    look(chronicle, clock, 1)
    assert chronicle.ledger().verify_failures == 1
