"""A fault's words: why a rank died, and a line about it that always fits where the kubelet keeps it."""

from __future__ import annotations

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.errors import CONFIG_ERROR, RANK_CRASHED
from ddp_trainer.resilience.fault import ECHO, MESSAGE_BYTES, Fault, leave_note, of_death, one_line


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGTERM])
def test_a_rank_killed_by_a_signal_is_a_crash_named_after_it(tmp_path, signum):
    fault = of_death(-signum, tmp_path / "none", node=1, rank=5, step=42)
    assert (fault.cause, fault.node, fault.rank, fault.exit, fault.step) == ("crash", 1, 5, 128 + signum, 42)
    assert fault.message.startswith(f"killed by {signum.name}")
    assert ("out of memory" in fault.message) == (signum == signal.SIGKILL)


def test_a_rank_that_ends_with_0_before_its_training_is_an_error_of_the_users_code(tmp_path):
    fault = of_death(0, tmp_path / "none", node=1, rank=5, step=42)
    assert (fault.cause, fault.exit, fault.step) == ("user_error", 1, 42)
    assert "before training did" in fault.message


def test_a_signal_without_a_name_is_a_crash_too(tmp_path):
    assert of_death(-(signal.SIGRTMIN + 3), tmp_path / "none", 0, 0, 0).message == f"killed by signal {signal.SIGRTMIN + 3}"


def test_the_note_of_a_signalled_rank_does_not_count(tmp_path):
    leave_note(tmp_path / "note", "diverged", "from an earlier moment")
    assert of_death(-9, tmp_path / "note", 0, 0, 0).cause == "crash"


@pytest.mark.parametrize(("cause", "code"), [("diverged", 4), ("user_error", 1), ("data_error", 3), (ECHO, 162)])
def test_a_rank_that_left_a_note_is_reported_in_its_own_words(tmp_path, cause, code):
    note = tmp_path / "note"
    leave_note(note, cause, "what happened, in zwölf words ☃")
    assert of_death(code, note, 1, 2, 3) == Fault(cause, 1, 2, code, 3, "what happened, in zwölf words ☃")


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b'{"cause": "x"}', b"[]", b'"text"', b"7", b"\xff", b'{"cause": "x", "message": "y", "window": [1]}']
)
def test_a_rank_without_a_readable_note_is_an_error_of_the_users_code_that_points_to_the_log(tmp_path, content):
    note = tmp_path / "note"
    if content is not None:
        note.write_bytes(content)
    fault = of_death(7, note, 0, 3, 1)
    assert (fault.cause, fault.exit) == ("user_error", 7)
    assert fault.message == "ended with exit code 7 and left no message; see its log"


@pytest.mark.parametrize("window", [None, (2, 3), (10, 20)])
def test_the_steps_of_a_divergence_come_with_its_words_all_the_way(tmp_path, window):
    leave_note(tmp_path / "note", "diverged", "not finite", window)
    fault = of_death(4, tmp_path / "note", 0, 1, 2)
    assert fault == Fault("diverged", 0, 1, 4, 2, "not finite", window)
    assert Fault.from_json(fault.to_json()) == fault


def test_the_sentence_says_who():
    assert Fault("crash", 1, 5, 137, 3, "died").sentence == "rank 5 (node 1): died"
    assert Fault("peer_loss", 1, None, 0, 3, "left").sentence == "node 1: left"


def test_a_cause_is_an_exit_and_an_unknown_one_is_a_crash():
    assert Fault("config_error", 0, 0, 2, 0, "").leaves_with is CONFIG_ERROR
    assert Fault("gremlins", 0, 0, 2, 0, "").leaves_with is RANK_CRASHED


MESSAGES = [
    "",
    "short",
    "a" * 100_000,
    "ü" * 100_000,
    "\U0001f600" * 100_000,
    "\x00" * 100_000,
    '"\\' * 50_000,
    "\ud800" * 9_000,
    "line\n" * 9_000,
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: f"{len(text)} of {text[:1]!a}")
def test_a_fault_is_one_line_that_fits_and_keeps_the_beginning_of_its_message(message):
    fault = Fault("user_error", 10**6, 10**6, 255, 10**12, message)
    line = fault.to_json()
    assert len(line.encode()) < MESSAGE_BYTES  # and a line feed
    assert "\n" not in line
    read = Fault.from_json(line)
    assert message.startswith(read.message)
    assert read.message == message or len(read.message) >= 300  # enough to know what happened, in any alphabet


@given(st.text(), st.integers(0, 3000))
def test_what_fits_comes_back_as_it_was_and_nothing_is_ever_too_long(text, times):
    fault = Fault("user_error", 0, 1, 1, 2, text * times)
    read = Fault.from_json(fault.to_json().encode())
    assert len(fault.to_json()) < MESSAGE_BYTES
    assert read == fault or fault.message.startswith(read.message)
    assert read == fault or len(json.dumps(fault.message)) > MESSAGE_BYTES / 2


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: f"{len(text)} of {text[:1]!a}")
def test_last_words_with_more_in_them_stay_readable_json(message):
    words = {"cause": "user_error", "exit": 1, "step": 7, "durable_step": 5, "message": message}
    line = one_line(words)
    assert len(line.encode()) < MESSAGE_BYTES
    assert {**json.loads(line), "message": ""} == {**words, "message": ""}
