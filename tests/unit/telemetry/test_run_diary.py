"""events.jsonl and metrics.jsonl: written by several, torn by crashes, read as the final state lived them."""

import errno
import json
import logging
import os
from typing import get_args

import pytest

from ddp_trainer.telemetry.events import KINDS, EventKind, EventLog, read_events, read_metrics
from ddp_trainer.telemetry.jsonl import JsonLines, finite, read_lines


def steps(path, kind="train"):
    return [(line["attempt"], line["step"]) for line in read_metrics(path) if line["kind"] == kind]


def write(path, *lines):
    path.write_text("".join(json.dumps({"kind": kind, "step": step, "attempt": attempt}) + "\n" for kind, step, attempt in lines))


def test_the_table_of_kinds_is_the_type_of_kinds():
    assert {kind.name for kind in KINDS} == set(get_args(EventKind))
    assert all(kind.meaning for kind in KINDS)


def test_an_event_carries_its_time_for_machines_and_for_people(tmp_path):
    log = EventLog(tmp_path / "deep" / "events.jsonl", clock=lambda: 1_700_000_000.25)
    log.append("fault", cause="crash", rank=2, exit=-9)
    assert read_events(log.path) == [
        {"time": 1_700_000_000.25, "at": "2023-11-14T22:13:20.250+00:00", "kind": "fault", "cause": "crash", "rank": 2, "exit": -9}
    ]


def test_no_file_is_no_events(tmp_path):
    assert read_events(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_skipped_and_the_next_writer_starts_a_new_one(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).append("start", attempt=1)
    with path.open("a") as file:
        file.write('{"time": 5, "kind": "chec')
    assert [event["kind"] for event in read_events(path)] == ["start"]
    EventLog(path).append("restart", attempt=2)
    assert [event["kind"] for event in read_events(path)] == ["start", "restart"]


def test_lines_that_are_not_events_are_skipped(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'[1]\n\xff\xfe\n{"foo": 1}\n\n{"time": 1, "kind": "note"}\n')
    assert read_events(path) == [{"time": 1, "kind": "note"}]


def test_numbers_that_json_has_no_word_for_become_null():
    assert finite({"loss": float("nan"), "all": [float("inf"), 1.5], "n": 3}) == {"loss": None, "all": [None, 1.5], "n": 3}


def test_a_full_disk_costs_records_and_one_warning_but_never_an_exception(tmp_path, monkeypatch, caplog):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    real_write = os.write

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING):
        lines.append({"step": 2})
        lines.append({"step": 3})
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    monkeypatch.setattr(os, "write", real_write)
    lines.append({"step": 4})
    assert [record["step"] for record in read_lines(lines.path)] == [1, 4]


def test_a_line_cut_short_by_a_full_disk_does_not_swallow_the_next_one(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:5]))
    lines.append({"step": 1})
    monkeypatch.setattr(os, "write", real_write)
    lines.append({"step": 2})
    assert read_lines(lines.path) == [{"step": 2}]


def test_a_folder_that_cannot_be_written_never_raises(tmp_path):
    (tmp_path / "file").write_text("in the way")
    log = EventLog(tmp_path / "file" / "events.jsonl")
    log.append("start")
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize(
    ("written", "lived"),
    [
        ([("train", 10, 1), ("train", 20, 1)], [(1, 10), (1, 20)]),
        # resumed at 15: step 20 of attempt 1 is undone, step 10 stays
        ([("train", 10, 1), ("train", 20, 1), ("resume", 15, 2), ("train", 20, 2)], [(1, 10), (2, 20)]),
        # the resumed attempt has not logged yet: what it undid is gone already
        ([("train", 10, 1), ("train", 20, 1), ("resume", 10, 2)], [(1, 10)]),
        # a restart from nothing writes no resume
        ([("train", 10, 1), ("train", 20, 1), ("train", 10, 2)], [(2, 10)]),
        # a late line of a process that was given up
        ([("train", 10, 1), ("resume", 10, 2), ("train", 20, 1), ("train", 20, 2)], [(1, 10), (2, 20)]),
        # twice undone
        (
            [("train", 10, 1), ("train", 20, 1), ("resume", 10, 2), ("train", 20, 2), ("resume", 10, 3), ("train", 20, 3)],
            [(1, 10), (3, 20)],
        ),
    ],
)
def test_metrics_keep_only_what_the_final_state_lived(tmp_path, written, lived):
    path = tmp_path / "metrics.jsonl"
    write(path, *written)
    assert steps(path) == lived


def test_evaluations_stand_beside_training_lines_of_the_same_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, ("train", 10, 1), ("eval", 10, 1), ("train", 20, 1), ("eval", 15, 1), ("resume", 10, 2))
    assert steps(path) == [(1, 10)]
    assert steps(path, "eval") == [(1, 10)]
