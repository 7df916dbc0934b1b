"""One writer per run directory, whoever dies; and attempt numbers that only grow."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddp_trainer.checkpoint import loading
from ddp_trainer.checkpoint.lock import RunLock, TakenOverError
from ddp_trainer.errors import DataError, PeerLostError

HOLDER = Path(__file__).with_name("lock_holder.py")


@pytest.fixture
def held(tmp_path):
    """A run directory locked by another process."""
    holder = subprocess.Popen([sys.executable, HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    yield holder
    holder.kill()
    holder.communicate()


def test_a_second_run_is_refused_or_waits_with_a_bound_and_gets_in_when_the_holder_is_killed(held, tmp_path):
    # refused at once, with the holder's pid
    sentence = rf"is in use by another run \(process {held.pid}\); wait for it, stop it, or give another --run-dir"
    with pytest.raises(DataError, match=sentence):
        RunLock.acquire(tmp_path, 0)
    # where a wait is configured: with a bound, and an exit that is retried
    with pytest.raises(PeerLostError, match=rf"still in use \(process {held.pid}\) after 0 s"):
        RunLock.acquire(tmp_path, 0.3)
    # SIGKILL of the holder lets a waiting one in
    threading.Timer(0.3, held.kill).start()
    lock = RunLock.acquire(tmp_path, 30)
    assert held.wait(10) == -9
    lock.release()


def test_a_released_lock_is_free(tmp_path):
    RunLock.acquire(tmp_path, 0).release()
    RunLock.acquire(tmp_path, 0).release()


def test_the_run_directory_is_made_if_it_is_not_there(tmp_path):
    RunLock.acquire(tmp_path / "runs" / "new", 0).release()
    assert (tmp_path / "runs" / "new").is_dir()


def test_a_run_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/run cannot be written: .*; give another with --run-dir"):
        RunLock.acquire(tmp_path / "file" / "run", 0)


def test_attempts_strictly_increase_over_all_runs_of_the_directory(tmp_path):
    drawn = []
    for _ in range(3):
        lock = RunLock.acquire(tmp_path, 0)
        drawn += [lock.next_attempt(), lock.next_attempt()]
        lock.release()
    assert drawn == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"x", b"7 7", b"\xff"])
def test_a_damaged_counter_is_one_sentence_and_never_begins_again_at_one(tmp_path, content):
    (tmp_path / "attempt").write_bytes(content)
    lock = RunLock.acquire(tmp_path, 0)
    with pytest.raises(DataError, match=r"attempt holds no number; write one into it"):
        lock.next_attempt()
    assert (tmp_path / "attempt").read_bytes() == content
    lock.release()


@pytest.fixture
def unreadable(monkeypatch):
    """Makes the next reads of the counter fail, so many times, as on a volume whose server is away; gives those that are left."""
    monkeypatch.setattr(loading, "READ_PAUSE_SECONDS", 0.0)
    left, read_text = [], Path.read_text

    def faulty(self, *arguments, **words):
        if left and self.name == "attempt":
            raise left.pop()
        return read_text(self, *arguments, **words)

    monkeypatch.setattr(Path, "read_text", faulty)

    def fail(number, times):
        left[:] = [OSError(number, os.strerror(number)) for _ in range(times)]
        return left

    return fail


def test_a_counter_that_cannot_be_read_is_one_sentence_for_who_has_drawn_no_number(tmp_path, unreadable):
    (tmp_path / "attempt").write_text("7\n")
    lock = RunLock.acquire(tmp_path, 0)
    unreadable(errno.EIO, loading.READ_ATTEMPTS)
    with pytest.raises(DataError, match=r"attempt cannot be read: .*; start again once the volume is well"):
        lock.next_attempt()
    assert lock.next_attempt() == 8
    lock.release()


@pytest.mark.parametrize("drawn", [0, 1])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_counter_that_cannot_be_read_for_a_moment_is_read_again(tmp_path, unreadable, number, drawn):
    (tmp_path / "attempt").write_text("7\n")
    lock = RunLock.acquire(tmp_path, 0)
    for _ in range(drawn):
        lock.next_attempt()
    left = unreadable(number, loading.READ_ATTEMPTS - 1)
    assert lock.next_attempt() == 8 + drawn
    assert not left
    lock.release()


def test_who_has_drawn_leaves_for_another_start_where_the_counter_stays_unreadable(tmp_path, unreadable):
    """Counting on unseen would put its number over that of a start that has taken over meanwhile."""
    (tmp_path / "attempt").write_text("7\n")
    lock = RunLock.acquire(tmp_path, 0)
    assert lock.next_attempt() == 8
    unreadable(errno.ESTALE, loading.READ_ATTEMPTS)
    with pytest.raises(PeerLostError, match="the state stays in the nodes' memory"):
        lock.next_attempt()
    assert (tmp_path / "attempt").read_text() == "8\n"
    assert lock.next_attempt() == 9
    lock.release()


def test_who_has_been_overtaken_draws_no_number_beyond_its_successors(tmp_path):
    """On a volume that has lost its locks: the higher number is the rightful one's, and a still higher one would throw it out."""
    lock = RunLock.acquire(tmp_path, 0)
    assert [lock.next_attempt(), lock.next_attempt()] == [1, 2]
    (tmp_path / "attempt").write_text("3\n")  # drawn by another
    for _ in range(2):
        with pytest.raises(TakenOverError, match=r"has been taken over by another start of this run \(attempt 3, ours is 2\)") as error:
            lock.next_attempt()
    assert error.value.exit.code == 162
    assert (tmp_path / "attempt").read_text() == "3\n"
    lock.release()


@pytest.mark.parametrize("content", [None, "1\n", "2\n"])
def test_a_counter_that_is_behind_was_not_drawn_from_by_anybody_else(tmp_path, content):
    lock = RunLock.acquire(tmp_path, 0)
    assert [lock.next_attempt(), lock.next_attempt()] == [1, 2]
    (tmp_path / "attempt").unlink()
    if content:
        (tmp_path / "attempt").write_text(content)
    assert lock.next_attempt() == 3
    lock.release()


def test_attempts_still_increase_on_a_full_disk(tmp_path, monkeypatch, caplog):
    lock = RunLock.acquire(tmp_path, 0)
    assert lock.next_attempt() == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ddp_trainer.checkpoint.lock.write_durably", full)
    assert [lock.next_attempt(), lock.next_attempt()] == [2, 3]
    assert "No space left on device; free space" in caplog.text
    lock.release()


def test_waiting_for_the_holder_is_said(tmp_path, caplog):
    holder = RunLock.acquire(tmp_path, 0)
    with caplog.at_level("INFO"), pytest.raises(PeerLostError):
        RunLock.acquire(tmp_path, 0.01)
    assert f"is in use (process {os.getpid()}); waiting up to" in caplog.text
    holder.release()
