import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.report import charts
from ddp_trainer.report.inputs import Inputs
from ddp_trainer.report.story import tell
from ddp_trainer.report.words import cards, config_sections, sentence, shares


def inputs(*events, metrics=(), **documents):
    named = dict.fromkeys(("config", "config_hash", "progress", "evaluation", "manifest")) | documents
    return Inputs(name="run", events=list(events), metrics=list(metrics), problems=(), **named)


def event(time, kind, **fields):
    return {"time": 1000.0 + time, "kind": kind, **fields}


def train(time, step):
    return {"kind": "train", "time": 1000.0 + time, "step": step, "loss": 1.0}


START, FORM = event(0, "start"), event(2, "form", world_size=4)
FAULT = event(10, "fault", cause="crash", rank=2, node=1, exit=-9, step=40)


def test_lost_steps_and_restarts_are_counted_from_the_incidents_where_progress_is_missing():
    again = [event(20, "fault", cause="crash", step=50), event(21, "resume", step=48)]
    run = tell(inputs(START, FORM, FAULT, event(12, "resume", step=33), *again))
    assert [i.lost_steps for i in run.incidents] == [7, 2]
    assert (run.lost_steps, run.restarts) == (9, {"crash": 2})


def test_sentence_says_how_long_recovery_took_and_what_it_cost():
    run = tell(inputs(START, FORM, FAULT, event(11, "form"), event(12, "resume", step=33), event(12.5, "first_step", step=34)))
    assert "It met 1 fault and was training again in 2.5 s, at a cost of 7 steps of work." in sentence(run, None)


def test_sentence_says_that_no_step_was_lost():
    run = tell(inputs(START, FORM, FAULT, event(14, "resume", step=40, lost_steps=0)))
    assert "without losing a step" in sentence(run, None)


def test_resume_at_step_0_is_told_as_beginning_again():
    run = tell(inputs(START, FORM, FAULT, event(12, "form"), event(12.5, "resume", step=0, source="nothing", lost_steps=40)))
    assert "It met 1 fault and started again from the beginning in 2.5 s, at a cost of 40 steps of work." in sentence(run, None)


def test_node_that_came_back_is_not_called_a_fault():
    run = tell(inputs(START, FORM, event(9, "restart", cause="rejoin"), event(10, "form"), event(11, "resume", step=40)))
    assert [i.cause for i in run.incidents] == ["rejoin"]
    assert "fault" not in sentence(run, None)
    assert run.restarts == {}


def test_parts_of_the_run_time_are_shown_best_first_and_empty_ones_left_out():
    first = event(3, "first_step", step=1)
    again = [event(11, "form"), event(12, "resume", step=40, lost_steps=0), event(13, "first_step", step=41), event(23, "finish", step=60)]
    parts = shares(tell(inputs(START, FORM, first, FAULT, *again)).goodput)
    assert [(part.label, part.seconds) for part in parts] == [("training that lasted", 17), ("recovery", 3), ("start", 3)]
    assert sum(part.ratio for part in parts) == pytest.approx(1)


def test_pause_between_stop_and_next_start_is_not_run_time():
    later = [event(9000, "start"), event(9002, "resume", step=20), event(9010, "finish", step=40)]
    run = tell(inputs(START, FORM, event(10, "stop", cause="interrupt", exit=130, step=20), *later, metrics=[train(9005, 30)]))
    assert run.wall_seconds == 20
    assert run.train[0].seconds == 15
    assert run.outcome.word == "finished"


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


def test_the_stall_of_a_checkpoint_is_that_of_its_own_copy():
    saved = [{"time": at, "kind": "checkpoint", "step": at, "stall_seconds": 0.25, "stall_seconds_so_far": 0.3 * at} for at in (5, 9)]
    run = tell(inputs({"time": 0, "kind": "first_step", "step": 1}, *saved, {"time": 20, "kind": "finish", "step": 20}))
    assert next(card.note for card in cards(run) if card.label == "Checkpoints") == "250 ms stall each"
    assert run.goodput.stall_seconds == 0.3 * 9


@settings(max_examples=200, deadline=None)
@given(events=RECORDS, metrics=RECORDS, progress=DOCUMENT, evaluation=DOCUMENT, config=DOCUMENT)
def test_no_input_however_odd_breaks_the_story(events, metrics, progress, evaluation, config):
    run = tell(inputs(*events, metrics=metrics, progress=progress, evaluation=evaluation, config=config))
    assert run.wall_seconds >= 0
    assert 0 <= run.goodput.wall_seconds <= run.wall_seconds + 1e-3
    assert sum(part.ratio for part in shares(run.goodput)) == pytest.approx(1 if run.goodput.wall_seconds else 0)
    assert len(cards(run)) == 8
    assert sentence(run, config).endswith(".")
    assert len(config_sections(config)) == len(config or {})


@settings(max_examples=15, deadline=None)
@given(events=RECORDS, metrics=RECORDS)
def test_no_input_however_odd_breaks_a_chart(events, metrics):
    run = tell(inputs(*events, metrics=metrics))
    for draw in (charts.timeline, charts.loss, charts.accuracy, charts.throughput, charts.learning_rate):
        json.dumps(draw(run), allow_nan=False)
