import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.telemetry.events import KINDS, read_events, read_metrics
from ddp_trainer.telemetry.goodput import summary
from ddp_trainer.telemetry.incidents import THE_BEGINNING, incidents
from ddp_trainer.telemetry.run_clock import RunClock

STILL = "no sign of life for 6 s while training (limit 6 s); it waits for a lock"


def event(time, kind, **fields):
    return {"time": 1000.0 + time, "kind": kind, **fields}


def train(time, step, attempt=1):
    return {"kind": "train", "time": 1000.0 + time, "step": step, "loss": 1.0, "attempt": attempt}


START, FORM, FIRST = event(0, "start"), event(1, "form", attempt=1, world_size=4), event(2, "first_step", step=1, attempt=1)
FAULT = event(10, "fault", cause="crash", rank=2, node=1, exit=137, step=40)
AGAIN = [
    event(11, "form", attempt=2),
    event(12.5, "resume", step=33, source="memory", lost_steps=7, attempt=2),
    event(14, "first_step", step=34, attempt=2),
]
FINISH = event(24, "finish", step=100)


def phases(incident):
    return tuple(incident.phases.values())


# What an incident is


def test_phases_are_detect_re_form_find_state_and_first_step():
    (incident,) = incidents([START, FORM, FIRST, FAULT, *AGAIN, FINISH])
    assert incident.phases == {"detect": 0, "re-form": 1, "find state": 1.5, "first step": 1.5}
    assert incident.recovery_seconds == 4
    assert (incident.where, incident.lost_steps, incident.source, incident.resumed_step) == ("rank 2 on node 1", 7, "memory", 33)


def test_hang_began_when_the_watchdog_last_saw_life():
    (incident,) = incidents([START, FORM, FIRST, {**FAULT, "cause": "hang", "message": STILL}, *AGAIN])
    assert (incident.began_seconds, incident.seconds, phases(incident)) == (4, 10, (6, 1, 1.5, 1.5))


def test_hang_cannot_have_begun_before_the_last_recovery_was_over():
    again = [event(17, "fault", cause="hang", step=34, message=STILL.replace("6", "60")), event(18, "form"), event(19, "resume", step=34)]
    first, second = incidents([START, FORM, FIRST, FAULT, *AGAIN, *again])
    assert first.ended_seconds(99) == second.began_seconds == 14


def test_only_a_hang_is_dated_back_by_its_message():
    (incident,) = incidents([START, FORM, FIRST, {**FAULT, "message": STILL}, *AGAIN])
    assert incident.phases["detect"] == 0


def test_node_0_that_died_without_a_word_was_lost_when_it_last_gave_a_sign():
    lost = [event(50, "fault", cause="peer_loss", node=0, step=40), event(50, "start"), event(51, "form"), event(52, "resume", step=40)]
    events = [START, FORM, FIRST, *lost, event(53, "first_step", step=41)]
    (incident,) = incidents(events, [train(5, 20), train(9, 40), train(60, 45)])
    assert phases(incident) == (41, 1, 1, 1)
    (silent,) = incidents(events)
    assert silent.began_seconds == 2


def test_peer_that_living_agents_missed_is_not_dated_back():
    (incident,) = incidents([START, FORM, FIRST, {**FAULT, "cause": "peer_loss"}, *AGAIN], [train(5, 20)])
    assert incident.phases["detect"] == 0


def test_stacks_belong_to_the_hang_that_they_explain():
    stacks = event(9.9, "stacks", stacks={"0": "backward", "1": "lock"})
    second = [event(20, "fault", cause="crash", step=50), event(21, "form"), event(22, "first_step", step=51)]
    first, later = incidents([START, FORM, FIRST, stacks, {**FAULT, "cause": "hang"}, *AGAIN, *second])
    assert first.stacks == {"0": "backward", "1": "lock"}
    assert later.stacks == {}


def test_faults_before_the_first_new_step_belong_to_the_first():
    echo = event(10.1, "fault", cause="peer_loss", node=0)
    again = [event(13, "fault", cause="crash", step=33), event(15, "form"), event(16, "resume", step=30, lost_steps=3)]
    (incident,) = incidents([START, FORM, FIRST, FAULT, echo, *AGAIN[:2], *again, event(17, "first_step", step=31)])
    assert (incident.cause, incident.echoes, incident.lost_steps) == ("crash", 2, 10)
    assert phases(incident) == (0, 5, 1, 1)


def test_lost_node_is_the_cause_where_the_fault_only_said_who_suffered():
    suffered = {**FAULT, "cause": "failed_collective", "rank": 0, "node": 0, "exit": 162, "message": "lost its peers"}
    lost = [event(10.9, "lost", node=node, message="replaced") for node in (2, 3)]
    (incident,) = incidents([START, FORM, FIRST, suffered, *lost, *AGAIN])
    assert (incident.cause, incident.where, incident.exit, incident.message) == ("peer_loss", "node 2", None, "replaced")
    assert (incident.step, incident.lost_steps, incident.echoes, *phases(incident)) == (40, 7, 0, 0, 1, 1.5, 1.5)
    (second,) = incidents([START, FORM, FIRST, FAULT, *AGAIN, *lost])
    assert (second.cause, second.echoes) == ("crash", 0), "outside an incident it explains nothing"


@pytest.mark.parametrize("first", [FAULT, {**FAULT, "cause": "failed_collective"}])
def test_a_node_that_was_lost_before_the_first_new_step_is_not_what_struck_first(first):
    echo, lost = event(10.5, "fault", cause="failed_collective", node=0), event(10.9, "lost", node=2, message="replaced")
    (incident,) = incidents([START, FORM, FIRST, first, echo, lost, *AGAIN])
    assert (incident.cause, incident.where, incident.echoes) == (first["cause"], "rank 2 on node 1", 1)


def test_ranks_that_re_form_once_more_find_their_state_after_that():
    resumed = event(10.5, "resume", step=33)
    (incident,) = incidents([START, FORM, FIRST, FAULT, resumed, event(11, "form", attempt=2), event(14, "first_step", step=34)])
    assert phases(incident) == (0, 1, 0, 3)


def test_fault_after_new_steps_is_an_incident_of_its_own_though_the_line_of_the_first_step_is_torn():
    again = [event(20, "fault", cause="crash", step=39), event(21, "form"), event(22, "first_step", step=40)]
    first, second = incidents([START, FORM, FIRST, FAULT, *AGAIN[:2], *again])
    assert phases(first) == (0, 1, 1.5, None)
    assert (second.seconds, second.echoes) == (20, 0)


def test_hang_in_that_case_cannot_have_begun_before_the_ranks_resumed():
    again = event(20, "fault", cause="hang", step=39, message=STILL.replace("6", "60"))
    assert [i.began_seconds for i in incidents([START, FORM, FIRST, FAULT, *AGAIN[:2], again])] == [10, 12.5]


def test_ranks_that_resumed_and_died_before_a_new_step_have_not_recovered():
    (incident,) = incidents([START, FORM, FIRST, FAULT, *AGAIN[:2], event(13, "fault", cause="crash", step=33)])
    assert (incident.recovery_seconds, phases(incident)) == (None, (0, None, None, None))


def test_torn_resume_is_told_by_the_first_step():
    (incident,) = incidents([START, FORM, FIRST, FAULT, AGAIN[0], AGAIN[2]])
    assert (incident.resumed_step, incident.source, incident.lost_steps, incident.recovery_seconds) == (33, None, 7, 4)


def test_torn_form_leaves_its_time_to_the_next_phase():
    (incident,) = incidents([START, FORM, FIRST, FAULT, *AGAIN[1:]])
    assert phases(incident) == (0, None, 2.5, 1.5)


def test_resume_at_step_0_is_from_the_beginning():
    again = [event(11, "form"), event(12, "resume", step=0, source="nothing", lost_steps=40), event(13, "first_step", step=1)]
    (incident,) = incidents([START, FORM, FIRST, FAULT, *again])
    assert (incident.source, incident.lost_steps) == (THE_BEGINNING, 40)


def test_fault_at_an_unknown_step_takes_the_loss_that_the_resume_reports_and_the_other_way_round():
    unknown, silent = {**FAULT, "step": None}, {**AGAIN[1], "lost_steps": None}
    assert incidents([START, FORM, FIRST, unknown, *AGAIN])[0].lost_steps == 7
    assert incidents([START, FORM, FIRST, FAULT, AGAIN[0], silent, AGAIN[2]])[0].lost_steps == 7
    assert incidents([START, FORM, FIRST, unknown, AGAIN[0], silent, AGAIN[2]])[0].lost_steps is None


def test_node_that_came_back_is_an_incident_without_a_fault():
    (incident,) = incidents([START, FORM, FIRST, event(10, "restart", cause="rejoin", node=0, attempt=2), *AGAIN])
    assert (incident.cause, incident.recovery_seconds) == ("rejoin", 4)


def test_restart_after_a_fault_is_no_second_incident():
    (incident,) = incidents([START, FORM, FIRST, FAULT, event(10, "restart", cause="crash"), *AGAIN])
    assert incident.echoes == 0


def test_preemption_goes_on_through_the_stop_and_the_pause_is_nobodys_time():
    told = event(10, "fault", cause="preemption", node=0, exit=143, step=40)
    stop, again = event(11, "stop", cause="preemption", exit=143, step=40), [event(9000, "start"), event(9001, "form")]
    resumed = [event(9002, "resume", step=40, source="disk", lost_steps=0), event(9004, "first_step", step=41)]
    (incident,) = incidents([START, FORM, FIRST, told, stop, *again, *resumed])
    assert phases(incident) == (0, 2, 1, 2)
    (left,) = incidents([START, FORM, FIRST, told, stop])
    assert (left.recovery_seconds, left.stopped_seconds, left.ended_seconds(99)) == (None, 11, 11)


def test_interrupt_ends_an_incident_for_good():
    later = [event(500, "start"), event(501, "form"), event(502, "resume", step=33), event(503, "first_step", step=34)]
    (incident,) = incidents([START, FORM, FIRST, FAULT, event(12, "stop", cause="interrupt", exit=130), *later])
    assert (incident.recovery_seconds, incident.stopped_seconds) == (None, 12)


def test_stop_that_the_cluster_answers_with_a_new_start_is_part_of_the_recovery():
    left, again = (
        event(40, "stop", cause="peer_loss", exit=162),
        [event(100, "start"), event(102, "form"), event(103, "first_step", step=34)],
    )
    assert [i.recovery_seconds for i in incidents([START, FORM, FIRST, FAULT, left, *again])] == [93]
    assert [(i.cause, i.recovery_seconds) for i in incidents([START, FORM, FIRST, left, *again])] == [("peer_loss", 63)]


def test_late_checkpoint_of_the_dead_gang_is_not_taken_for_a_recovery():
    late = event(11.5, "checkpoint", step=38, attempt=1)
    assert [i.recovery_seconds for i in incidents([START, FORM, FAULT, AGAIN[0], late, AGAIN[1]])] == [2.5]


def test_diary_without_first_steps_ends_an_incident_where_a_state_was_found():
    (incident,) = incidents([START, FORM, FAULT, *AGAIN[:2], FINISH])
    assert (phases(incident), incident.recovery_seconds) == ((0, 1, 1.5, None), 2.5)


def test_diary_without_first_steps_and_resume_began_again():
    (incident,) = incidents([START, FORM, FAULT, AGAIN[0], event(15, "evaluate", step=20)])
    assert (incident.resumed_step, incident.source, incident.lost_steps, incident.recovery_seconds) == (0, THE_BEGINNING, 40, 1)


def test_fault_that_nothing_followed_stays_open():
    (incident,) = incidents([START, FORM, FIRST, FAULT])
    assert (incident.recovery_seconds, incident.ended_seconds(30), phases(incident)) == (None, 30, (0, None, None, None))


# Where the time went


def test_run_time_is_start_lasting_training_lost_work_recovery_and_stall():
    saved = [event(5, "checkpoint", step=20, stall_seconds=0.5, persist_seconds=2, attempt=1)]
    told = summary([START, FORM, FIRST, *saved, FAULT, *AGAIN, FINISH], [train(6, 25), train(8, 33)])
    assert [(s.name, s.start, s.end, s.cause) for s in told.spans] == [
        ("starting", 0, 2, ""),
        ("training", 2, 8, ""),
        ("lost", 8, 10, "crash"),
        ("recovering", 10, 14, "crash"),
        ("training", 14, 24, ""),
    ]
    assert (told.lasting_seconds, told.lost_seconds, told.recovering_seconds, told.stall_seconds, told.starting_seconds) == (
        15.5,
        2,
        4,
        0.5,
        2,
    )
    assert (told.ratio, told.wall_seconds) == (15.5 / 24, 24)
    assert (told.checkpoints, told.durable_seconds, told.loss_by_cause) == (1, 2, {"crash": 6})


def test_undisturbed_run_has_nothing_but_start_and_training():
    told = summary([START, FORM, FIRST, FINISH])
    assert (told.ratio, told.loss_by_cause, told.incidents) == (22 / 24, {}, ())


def test_work_lost_twice_is_lost_once():
    second = [
        event(20, "fault", cause="hang", step=50),
        event(21, "form"),
        event(22, "resume", step=10, lost_steps=40),
        event(23, "first_step", step=11),
    ]
    told = summary([START, FORM, FIRST, FAULT, *AGAIN, *second, FINISH], [train(4, 10), train(8, 33)])
    assert (told.lost_seconds, told.recovering_seconds) == (2 + 4 + 6, 4 + 3)
    assert told.loss_by_cause == {"hang": 4 + 6 + 3, "crash": 2 + 4}


def test_copy_that_was_written_twice_stalled_once():
    numbers = {"step": 20, "stall_seconds": 0.5, "persist_seconds": 1, "attempt": 1}
    told = summary([START, FORM, FIRST, event(5, "checkpoint", **numbers), FAULT, event(11, "checkpoint", **numbers), *AGAIN, FINISH])
    assert (told.stall_seconds, told.checkpoints) == (0.5, 1)


def test_copies_that_stayed_in_memory_are_stalls_too():
    first = event(5, "checkpoint", step=20, stall_seconds=0.5, stall_seconds_so_far=0.75, persist_seconds=1, attempt=1)
    second = event(20, "checkpoint", step=60, stall_seconds=0.5, stall_seconds_so_far=0.5, persist_seconds=1, attempt=2)
    finish = {**FINISH, "attempt": 2, "stall_seconds_so_far": 1.25}
    assert summary([START, FORM, FIRST, first, FAULT, *AGAIN, second, finish]).stall_seconds == 0.75 + 1.25


@pytest.mark.parametrize(("struck_at", "detect"), [(-0.25, 0.25), (0.0, 0), (3.0, 0), (-5.0, 0), (-3600.0, 0), (None, 0)])
def test_a_death_is_detected_as_late_as_node_0_writes_of_it_unless_the_clocks_disagree(struck_at, detect):
    fault = {**FAULT, "struck_at": None if struck_at is None else FAULT["time"] + struck_at}
    (incident,) = incidents([START, FORM, FIRST, fault, *AGAIN])
    assert phases(incident)[0] == detect
    assert incident.recovery_seconds == 4 + detect


def test_how_long_a_hang_was_not_seen_is_a_number_or_in_an_older_diary_in_its_sentence():
    hang = {**FAULT, "cause": "hang"}
    found = [incidents([START, FORM, FIRST, {**hang, **words}, *AGAIN])[0] for words in ({"still_seconds": 2.5}, {"message": STILL}, {})]
    assert [phases(incident)[0] for incident in found] == [2.5, 6, 0]


def test_standing_still_before_a_hang_is_seen_is_not_training():
    told = summary([START, FORM, FIRST, {**FAULT, "cause": "hang", "message": STILL}, *AGAIN, FINISH])
    assert told.recovering_seconds == 6 + 4


def test_time_after_an_unanswered_fault_is_recovery_up_to_the_last_line():
    assert summary([START, FORM, FIRST, FAULT, event(30, "note")]).recovering_seconds == 20


def test_time_between_an_interrupt_and_the_next_start_is_in_no_part():
    later = [event(500, "start"), event(501, "form"), event(502, "first_step", step=41), event(510, "finish", step=60)]
    told = summary([START, FORM, FIRST, event(10, "stop", cause="interrupt", exit=130, step=40), *later])
    assert (told.starting_seconds, told.lasting_seconds, told.wall_seconds) == (4, 16, 20)


def test_diary_without_first_steps_trains_from_the_forming():
    assert [(s.name, s.end) for s in summary([START, FORM, FAULT, *AGAIN[:2], FINISH]).spans][:2] == [("starting", 1), ("training", 8.425)]


def test_no_events_are_no_time():
    told = summary([])
    assert (told.ratio, told.wall_seconds, told.spans) == (None, 0, ())


# The clock


def test_clock_set_back_costs_one_gap_and_makes_nothing_negative():
    back = [{**e, "time": e["time"] - 600} for e in [*AGAIN, FINISH]]
    told = summary([START, FORM, FIRST, FAULT, *back])
    (incident,) = told.incidents
    assert phases(incident) == (0, 0, 1.5, 1.5)
    assert told.wall_seconds == 23


def test_metrics_after_a_clock_was_set_back_go_by_the_newest_event():
    clock = RunClock([START, FORM, event(100, "note"), event(50, "form"), event(60, "note")])
    assert [clock(1000 + t) for t in (0.5, 55, 60, 70)] == [0.5, 105, 110, 120]


def test_pause_is_skipped_from_the_last_sign_of_life():
    events = [START, FIRST, event(5000, "start"), event(5010, "first_step", step=200)]
    assert RunClock(events, [train(100, 150), train(5020, 210)]).moments[-1][0] == 110
    assert RunClock(events, [train(4999, 150)]).moments[-1][0] == 5010


def test_wall_time_in_a_pause_has_no_length():
    clock = RunClock([START, event(10, "stop", exit=0), event(1000, "start"), event(1005, "form")])
    assert [clock(1000 + t) for t in (-5, 10, 500, 1000, 1002)] == [0, 10, 10, 10, 12]


# Anything at all

SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(STILL)
ODD = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.sampled_from(["0", "step"]), SCALAR, max_size=2)
STEP = st.integers(-1, 100) | ODD
CAUSE = st.sampled_from(["crash", "hang", "preemption", "peer_loss", "rejoin"]) | ODD
FIELDS = {"cause": CAUSE, "exit": st.sampled_from([0, 137, 143, 160, 162]) | ODD, "lost_steps": STEP, "stacks": ODD, "attempt": STEP}
FIELDS |= {"message": st.just(STILL) | ODD, "source": ODD, "stall_seconds": st.floats(0, 5) | ODD, "persist_seconds": ODD}
NAMES = st.sampled_from([kind.name for kind in KINDS])
LINE = st.fixed_dictionaries({"time": st.floats(0, 9000) | ODD, "kind": NAMES | ODD, "step": STEP}, optional=FIELDS)
PLAUSIBLE = st.fixed_dictionaries({"time": st.floats(0, 100), "kind": NAMES, "step": st.integers(0, 100)}, optional=FIELDS)
METRIC = st.fixed_dictionaries({"time": st.floats(0, 100) | ODD, "kind": st.sampled_from(["train", "eval"]) | ODD, "step": STEP})


def in_time(lines):
    return sorted(lines, key=lambda line: line["time"])


@settings(max_examples=400, deadline=None)
@given(events=st.lists(LINE, max_size=12) | st.lists(PLAUSIBLE, max_size=25).map(in_time), metrics=st.lists(METRIC, max_size=6))
def test_whatever_was_written_the_parts_sum_up_and_nothing_is_negative(events, metrics):
    told = summary(events, metrics)
    assert all(span.end > span.start >= 0 for span in told.spans)
    assert all(earlier.end <= later.start for earlier, later in pairwise(told.spans))
    assert sum(span.end - span.start for span in told.spans) == pytest.approx(told.wall_seconds, abs=1e-6)
    parts = (told.lasting_seconds, told.lost_seconds, told.recovering_seconds, told.stall_seconds, told.starting_seconds)
    assert min(parts) >= 0
    assert sum(told.loss_by_cause.values()) == pytest.approx(told.lost_seconds + told.recovering_seconds, abs=1e-6)
    assert told.ratio is None or 0 <= told.ratio <= 1
    for incident in told.incidents:
        known = [seconds for seconds in incident.phases.values() if seconds is not None]
        assert min(known) >= 0
        assert incident.recovery_seconds is None or sum(known) == pytest.approx(incident.recovery_seconds, abs=1e-6)
        assert incident.lost_steps is None or incident.lost_steps >= 0
    ends = [(incident.began_seconds, incident.ended_seconds(incident.seconds)) for incident in told.incidents]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 900))
def test_diary_torn_at_any_byte_is_told_up_to_there(tmp_path_factory, cut):
    run_dir = tmp_path_factory.mktemp("torn")
    whole = "".join(json.dumps(line) + "\n" for line in [START, FORM, FIRST, FAULT, *AGAIN, FINISH])
    (run_dir / "events.jsonl").write_bytes(whole.encode()[:cut])
    told = summary(read_events(run_dir / "events.jsonl"), read_metrics(run_dir / "metrics.jsonl"))
    assert told.wall_seconds <= 24
    assert len(told.incidents) <= 1
