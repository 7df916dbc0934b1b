import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.report import charts
from ddp_trainer.report.inputs import Inputs
from ddp_trainer.report.story import tell
from ddp_trainer.report.words import cards, config_sections, sentence


def inputs(*events, metrics=(), **documents):
    named = dict.fromkeys(("config", "config_hash", "progress", "evaluation", "manifest")) | documents
    return Inputs(name="run", events=list(events), metrics=list(metrics), problems=(), **named)


def event(time, kind, **fields):
    return {"time": 1000.0 + time, "kind": kind, **fields}


def train(time, step):
    return {"kind": "train", "time": 1000.0 + time, "step": step, "loss": 1.0}


START, FORM = event(0, "start"), event(2, "form", world_size=4)
FAULT = event(10, "fault", cause="crash", rank=2, node=1, exit=-9, step=40)


def test_lost_work_is_the_step_at_the_fault_minus_the_step_resumed():
    run = tell(inputs(START, FORM, FAULT, event(11, "form"), event(12.5, "resume", step=33, source="memory", lost_steps=99)))
    (incident,) = run.incidents
    assert (incident.lost_steps, incident.resumed_step, incident.recovery_seconds, incident.source) == (7, 33, 2.5, "memory")
    assert incident.where == "rank 2 on node 1"
    assert run.lost_steps == 7
    assert run.restarts == {"crash": 1}


def test_fault_at_an_unknown_step_takes_the_loss_that_the_resume_reports():
    run = tell(inputs(START, event(5, "fault", cause="peer_loss"), event(6, "resume", step=3, lost_steps=4)))
    assert run.lost_steps == 4


def test_going_on_without_a_resume_means_beginning_again():
    run = tell(inputs(START, FORM, FAULT, event(12, "form"), event(30, "checkpoint", step=20)))
    (incident,) = run.incidents
    assert (incident.resumed_step, incident.lost_steps, incident.recovery_seconds) == (0, 40, 2.0)


def test_resume_at_step_0_is_told_as_beginning_again():
    run = tell(inputs(START, FORM, FAULT, event(12, "form"), event(12.5, "resume", step=0, source="nothing", lost_steps=40)))
    (incident,) = run.incidents
    assert (incident.resumed_step, incident.source, incident.lost_steps, incident.recovery_seconds) == (0, "the beginning", 40, 2.5)
    assert "It met 1 fault and started again from the beginning in 2.5 s, at a cost of 40 steps of work." in sentence(run, None)


def test_second_fault_before_anything_was_saved_is_an_incident_of_its_own():
    second = event(20, "fault", cause="crash", rank=0, step=9)
    run = tell(inputs(START, FORM, FAULT, event(12, "form"), second, event(21, "form"), event(30, "checkpoint", step=20)))
    assert [(i.recovery_seconds, i.lost_steps, i.echoes) for i in run.incidents] == [(2, 40, 0), (1, 9, 0)]


def test_fault_of_a_gang_that_formed_but_did_not_load_the_saved_state_belongs_to_the_first():
    saved, second = event(8, "checkpoint", step=33), event(13, "fault", cause="crash", step=33)
    run = tell(inputs(START, FORM, saved, FAULT, event(12, "form"), second, event(15, "form"), event(16, "resume", step=33)))
    assert [(i.recovery_seconds, i.lost_steps, i.echoes) for i in run.incidents] == [(6, 7, 1)]


def test_late_checkpoint_of_the_dead_gang_is_not_taken_for_a_recovery():
    run = tell(inputs(START, FORM, FAULT, event(10.2, "checkpoint", step=38), event(12, "form"), event(13, "resume", step=38)))
    (incident,) = run.incidents
    assert (incident.resumed_step, incident.recovery_seconds) == (38, 3.0)


def test_faults_that_follow_before_the_recovery_belong_to_the_first():
    run = tell(inputs(START, FORM, FAULT, event(10.1, "fault", cause="peer_loss", node=0), event(14, "resume", step=40)))
    (incident,) = run.incidents
    assert (incident.cause, incident.echoes, incident.lost_steps) == ("crash", 1, 0)
    assert "without losing a step" in sentence(run, None)


def test_two_faults_add_up():
    again = [event(20, "fault", cause="crash", step=50), event(21, "resume", step=48)]
    run = tell(inputs(START, FORM, FAULT, event(12, "resume", step=33), *again))
    assert [i.lost_steps for i in run.incidents] == [7, 2]
    assert run.lost_steps == 9


def test_phases_cover_the_run_and_what_forms_in_a_recovery_belongs_to_it():
    done = [event(12, "form"), event(13, "resume", step=33), event(20, "finish", step=60)]
    phases = [(p.name, p.start, p.end) for p in tell(inputs(START, FORM, FAULT, *done)).phases]
    assert phases == [("starting", 0, 2), ("training", 2, 10), ("recovering", 10, 13), ("training", 13, 20)]


def test_pause_between_stop_and_next_start_is_not_run_time():
    later = [event(9000, "start"), event(9002, "resume", step=20), event(9010, "finish", step=40)]
    run = tell(inputs(START, FORM, event(10, "stop", cause="interrupt", exit=130, step=20), *later, metrics=[train(9005, 30)]))
    assert run.wall_seconds == 20
    assert run.train[0].seconds == 15
    assert run.outcome.word == "finished"


def test_stop_that_the_cluster_answers_with_a_new_start_is_part_of_the_recovery():
    left = event(40, "stop", cause="peer_loss", exit=162, step=40)
    again = [event(100, "start"), event(102, "form"), event(103, "resume", step=33), event(110, "finish", step=60)]
    run = tell(inputs(START, FORM, FAULT, left, *again))
    assert run.wall_seconds == 110
    assert [(i.recovery_seconds, i.lost_steps) for i in run.incidents] == [(93, 7)]
    assert [p.name for p in run.phases] == ["starting", "training", "recovering", "training"]


def test_recovery_within_an_hour_is_run_time_even_if_a_new_start_was_needed():
    run = tell(inputs(START, FORM, FAULT, event(1200, "start"), event(1205, "resume", step=33), event(1210, "finish", step=60)))
    assert run.wall_seconds == 1210
    assert run.incidents[0].recovery_seconds == 1195


def test_stop_in_a_recovery_ends_it_and_the_next_start_trains():
    later = [event(500, "start"), event(501, "form"), event(510, "finish", step=60)]
    run = tell(inputs(START, FORM, FAULT, event(12, "stop", cause="interrupt", exit=130), *later))
    phases = [(p.name, p.start, p.end) for p in run.phases]
    assert phases == [("starting", 0, 2), ("training", 2, 10), ("recovering", 10, 12), ("starting", 12, 13), ("training", 13, 22)]
    assert run.incidents[0].recovery_seconds is None


@pytest.mark.parametrize(
    ("events", "progress", "word"),
    [
        ([START, event(9, "finish", step=3)], None, "finished"),
        ([START, event(9, "stop", cause="interrupt", exit=130)], None, "stopped"),
        ([START, event(9, "stop", cause="preemption", exit=143)], None, "stopped"),
        ([START, event(9, "stop", cause="diverged", exit=4)], None, "failed"),
        ([START, FORM, FAULT], None, "failed"),
        ([START, FORM], {"phase": "failed"}, "failed"),
        ([START, FORM], {"phase": "training"}, "unfinished"),
        ([START, event(9, "finish", step=3), event(20, "start")], None, "unfinished"),
        ([], {"phase": "finished"}, "finished"),
    ],
)
def test_outcome_is_what_the_last_telling_event_says(events, progress, word):
    assert tell(inputs(*events, progress=progress)).outcome.word == word


def test_time_line_shows_the_lost_climb_from_the_resumed_step_to_the_fault_and_back():
    lines = [train(2 + t, 5 * t) for t in range(1, 8)]
    run = tell(inputs(START, FORM, FAULT, event(13, "resume", step=20), event(20, "finish", step=60), metrics=lines[:4]))
    lost = next(trace for trace in charts.timeline(run)["data"] if trace.get("name") == "lost work")
    assert lost["x"] == [6.0, 10.0, 13.0]
    assert lost["y"] == [20.0, 40.0, 20.0]


def test_setting_the_schema_does_not_know_is_shown_without_a_default():
    (name, (setting,)) = config_sections({"later": {"key": 3}})[0]
    assert (name, setting.key, setting.value, setting.default) == ("later", "key", "3", None)


KEYS = (
    *(
        "time",
        "kind",
        "step",
        "cause",
        "rank",
        "exit",
        "message",
        "loss",
        "accuracy",
        "lr",
        "samples_per_second",
        "seconds",
        "bytes",
        "phase",
    ),
    *("phase", "world_size", "nodes", "classes", "confusion", "samples", "png", "target", "restarts", "lost_steps", "gpus", "run", "model"),
)
KINDS = st.sampled_from(["start", "form", "resume", "checkpoint", "evaluate", "fault", "stop", "finish", "train", "eval"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | KINDS
ODD = SCALAR | st.lists(SCALAR | st.lists(SCALAR, max_size=2), max_size=2) | st.dictionaries(st.sampled_from(KEYS), SCALAR, max_size=2)
RECORD = st.fixed_dictionaries({"time": st.floats(0, 1e9) | ODD, "kind": KINDS | ODD, "step": st.integers() | ODD})
RECORDS = st.lists(st.tuples(RECORD, st.dictionaries(st.sampled_from(KEYS[3:]), ODD, max_size=4)).map(lambda p: p[0] | p[1]), max_size=6)
DOCUMENT = st.none() | st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5)


@settings(max_examples=200, deadline=None)
@given(events=RECORDS, metrics=RECORDS, progress=DOCUMENT, evaluation=DOCUMENT, config=DOCUMENT)
def test_no_input_however_odd_breaks_the_story(events, metrics, progress, evaluation, config):
    run = tell(inputs(*events, metrics=metrics, progress=progress, evaluation=evaluation, config=config))
    assert run.wall_seconds >= 0
    assert all(phase.end >= phase.start >= 0 for phase in run.phases)
    assert len(cards(run)) == 8
    assert sentence(run, config).endswith(".")
    assert len(config_sections(config)) == len(config or {})


@settings(max_examples=15, deadline=None)
@given(events=RECORDS, metrics=RECORDS)
def test_no_input_however_odd_breaks_a_chart(events, metrics):
    run = tell(inputs(*events, metrics=metrics))
    for draw in (charts.timeline, charts.loss, charts.accuracy, charts.throughput, charts.learning_rate):
        json.dumps(draw(run), allow_nan=False)
