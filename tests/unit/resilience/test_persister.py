"""The background writer as a real process: what is wanted becomes durable, whoever dies, and nothing else does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from restore_ranks import digest, state_of
from writers import LOOK_SECONDS, PATIENCE_SECONDS

from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.resilience import persister
from ddp_trainer.telemetry.events import read_events

SLOW = {"checkpoint.write_megabytes_per_second": 0.5}
WIDE = 2000
"""A state of this width takes 0.8 MB: seconds for a slow writer."""


def on_disk(store, width=4):
    """(step, digest) of what a start would load."""
    loaded = store.load_newest()
    state: RunState = state_of(0, steps=0, width=width)
    state.restore(loaded.tensors)
    return loaded.manifest.step, digest(state)


def test_a_request_becomes_a_checkpoint_with_the_bits_of_the_snapshot_and_is_reported(bench):
    bench.begin()
    number = bench.keep(70, 7, True)
    report = bench.until_written(number)
    assert on_disk(bench.store) == (7, digest(state_of(70)))
    saved = report["checkpoint"]
    loaded = bench.store.load_newest()
    assert (saved["step"], saved["bytes"], saved["verified"]) == (7, loaded.manifest.total_bytes, True)
    assert (saved["stall_seconds"], report["stall_seconds"], report["count"]) == (0.25, 0.25, 1)
    assert saved["persist_seconds"] == report["persist_seconds"] > 0
    assert (loaded.extra["history"], loaded.manifest.skipped, loaded.manifest.attempt) == ([[7, {"accuracy": 0.5}]], [(2, 3)], 1)
    (event,) = bench.events("checkpoint")
    assert (event["step"], event["bytes"], event["attempt"]) == (7, saved["bytes"], 1)
    assert (event["stall_seconds"], event["stall_seconds_so_far"]) == (0.25, 0.75)


def test_a_request_from_before_the_writer_was_there_is_served(bench):
    bench.agent(str(bench.root), {}, 1)
    number = bench.keep(70, 7, True)
    bench.start()
    assert bench.until_written(number)["checkpoint"]["step"] == 7


def test_a_snapshot_that_nobody_wants_durable_is_not_written(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.keep(80, 8, False)
    bench.until_written(bench.keep(90, 9, True))
    assert bench.store.steps() == [7, 9]


def test_of_requests_that_came_meanwhile_only_the_newest_is_served(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.signal(signal.SIGSTOP)
    for step in (8, 9, 10):
        number = bench.keep(step * 10, step, True)
    bench.signal(signal.SIGCONT)
    bench.until_written(number)
    assert bench.store.steps() == [7, 10]
    assert on_disk(bench.store) == (10, digest(state_of(100)))


def test_a_writer_killed_in_the_middle_is_replaced_and_its_successor_finishes_the_request(bench):
    first = bench.begin(SLOW)
    bench.until_written(bench.keep(50, 5, True, WIDE))
    number = bench.keep(70, 7, True, WIDE)
    while not list(bench.store.root.glob(f".tmp-*{first}*")):
        assert bench.report()["number"] < number, "it was too fast to be killed in the middle"
    bench.signal(signal.SIGKILL)
    assert bench.deaths(1) == [True]
    assert bench.store.steps() == [5], "it was not in the middle"
    assert bench.writer() not in {None, first}
    report = bench.until_written(number)
    assert on_disk(bench.store, WIDE) == (7, digest(state_of(70, width=WIDE)))
    assert report["count"] == 2, "the successor goes on with its predecessor's totals"


def test_ranks_may_go_on_keeping_states_while_one_is_written(bench):
    bench.begin(SLOW)
    number = bench.keep(70, 7, True, WIDE)
    while not list(bench.store.root.glob(".tmp-*")):
        assert bench.report().get("number", 0) < number
    for step in range(8, 14):
        bench.keep(step * 10, step, False, WIDE)
    bench.until_written(number)
    assert on_disk(bench.store, WIDE) == (7, digest(state_of(70, width=WIDE)))


def test_a_new_agents_writer_does_not_write_again_what_its_predecessor_has_written(bench):
    bench.begin()
    number = bench.keep(70, 7, True)
    bench.until_written(number)
    bench.signal(signal.SIGKILL)
    bench.begin(attempt=2)  # with a page that says nothing
    report = bench.until_written(number)
    assert report["checkpoint"]["step"] == 7
    assert report["count"] == 0
    assert len(bench.events("checkpoint")) == 1


EVALUATED = {"metrics": {"accuracy": 0.9}, "history": [[6, {"accuracy": 0.5}], [7, {"accuracy": 0.9}]]}
"""What a snapshot of step 7 says after the evaluation of step 7; before it, it says what `meta_of(6)` does."""
NOT_YET = {"history": [[6, {"accuracy": 0.5}]]}


def says(store):
    loaded = store.load_newest()
    return {"metrics": loaded.manifest.metrics, "history": loaded.extra["history"]}


def test_a_state_that_was_written_before_its_evaluation_is_written_again_with_the_metrics(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True, 4, "", NOT_YET))
    assert says(bench.store)["metrics"] == {"accuracy": 0.5}
    bench.until_written(bench.keep(70, 7, True, 4, "", EVALUATED))
    assert says(bench.store) == EVALUATED
    assert on_disk(bench.store) == (7, digest(state_of(70)))


def test_a_new_agents_writer_does_not_take_a_checkpoint_from_before_the_evaluation_for_the_one_with_the_metrics(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True, 4, "", NOT_YET))
    bench.signal(signal.SIGKILL)
    number = bench.keep(70, 7, True, 4, "", EVALUATED)
    bench.begin(attempt=2)
    bench.until_written(number)
    assert says(bench.store) == EVALUATED


def copied_to(home):
    return sorted(path.parent.name for path in home.glob("step-*/manifest.json"))


@pytest.mark.parametrize("last", [7, 8, 9, 10])
def test_the_last_checkpoint_is_copied_to_the_second_home_whatever_its_number(bench, tmp_path, last):
    home = tmp_path / "home"
    bench.begin({"checkpoint.mirror_url": f"file://{home}", "checkpoint.mirror_every": 3})
    for step in range(7, last + 1):
        bench.until_written(bench.keep(step * 10, step, True))
    assert bench.close(60.0) is None
    assert copied_to(home) == [f"step-{step:09d}" for step in sorted({*range(7, last + 1, 3), last})]


def until_it_listens(pid):
    """A writer that has only just been forked would die of the signal by which it is asked to end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16) >> (persister.END_SIGNAL - 1) & 1:
        assert time.monotonic() < deadline
        time.sleep(LOOK_SECONDS)


def test_what_a_killed_writer_may_not_have_copied_is_copied_by_its_successor(bench, tmp_path):
    home = tmp_path / "home"
    bench.begin({"checkpoint.mirror_url": f"file://{home}", "checkpoint.mirror_every": 3})
    for step in (7, 8):
        bench.until_written(bench.keep(step * 10, step, True))
    bench.signal(signal.SIGKILL)
    assert bench.deaths(1) == [True]
    until_it_listens(bench.writer())
    assert bench.close(60.0) is None
    assert "step-000000008" in copied_to(home)


def test_a_final_checkpoint_that_gets_its_metrics_later_has_them_in_the_second_home_too(bench, tmp_path):
    home = tmp_path / "home"
    bench.begin({"checkpoint.mirror_url": f"file://{home}", "checkpoint.mirror_every": 3})
    for changes in (NOT_YET, EVALUATED):
        bench.until_written(bench.keep(70, 7, True, 4, "", changes))
    assert bench.close(60.0) is None
    assert json.loads((home / "step-000000007" / "manifest.json").read_text())["metrics"] == EVALUATED["metrics"]


def test_a_state_that_is_not_finite_is_refused_with_its_name_and_the_next_good_one_is_written(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    for name in ("model.1.running_var", "optimizer.0.weight.momentum_buffer", "ema.3.bias"):
        number = bench.keep(80, 8, True, 4, name)
        failed = bench.until_failed(number)
        assert (failed["cause"], failed["step"]) == ("diverged", 8)
        assert failed["message"] == f"{name} is not finite after step 8: not saved, and the last checkpoint is good; lower optim.lr"
    assert bench.store.steps() == [7]
    report = bench.until_written(bench.keep(90, 9, True))
    assert report["failed"] is None
    assert bench.store.steps() == [7, 9]


def test_a_writer_whose_run_was_taken_over_publishes_nothing(bench):
    bench.begin(attempt=3)
    (bench.run_dir / "attempt").write_text("5\n")
    number = bench.keep(70, 7, True)
    failed = bench.until_failed(number)
    assert failed["cause"] == "peer_loss"
    assert "has been taken over by another start of this run (attempt 5, ours is 3)" in failed["message"]
    assert bench.store.steps() == []
    assert not (bench.store.root / "latest").exists()


@pytest.mark.parametrize("number_on_disk", ["3", "2", "rubbish"])
def test_an_attempt_on_disk_that_is_not_newer_is_no_fence(bench, number_on_disk):
    bench.begin(attempt=3)
    (bench.run_dir / "attempt").write_text(number_on_disk)
    assert bench.until_written(bench.keep(70, 7, True))["failed"] is None


def test_an_attempt_that_this_agent_has_only_just_drawn_is_its_own(bench):
    bench.begin(attempt=3)
    (bench.run_dir / "attempt").write_text("4\n")
    number = bench.keep(70, 7, True)
    bench.begin_attempt(4)
    bench.until_written(number)
    assert bench.store.steps() == [7]


def test_a_place_that_cannot_be_written_is_reported_tried_again_and_forgotten_when_it_can(bench):
    bench.begin()
    bench.store.root.write_text("in the way")
    number = bench.keep(70, 7, True)
    failed = bench.until_failed(number, times=2)
    assert failed["cause"] == "data_error"
    assert "a checkpoint cannot be written below" in failed["message"]
    assert len(bench.events("note")) == 1, "said once, however often it is tried"
    bench.store.root.unlink()
    assert bench.until_written(number)["failed"] is None
    assert on_disk(bench.store) == (7, digest(state_of(70)))


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: only root may mount a small file system; what a full disk does to the writer was not tested")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT RUN: cannot mount a small file system here ({done.stderr.strip()}); full disks were not tested")
    yield place
    subprocess.run(["umount", "-l", place], check=True)  # the writer still has its diary open there


def test_a_full_disk_is_reported_with_the_remedy_and_the_request_is_served_when_there_is_room(parent, small_disk):
    bench = parent.bench(small_disk)
    bench.begin()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(7 * 1024 * 1024))
    number = bench.keep(70, 7, True)
    failed = bench.until_failed(number, times=2)
    assert failed["cause"] == "data_error"
    assert "No space left" in failed["message"] or "MB are needed and" in failed["message"]
    assert failed["message"].endswith("free space or lower checkpoint.keep")
    assert bench.store.steps() == []
    ballast.unlink()
    bench.until_written(number)
    assert on_disk(bench.store) == (7, digest(state_of(70)))


def test_the_diary_is_whole_after_all_that(bench):
    bench.begin()
    for step in (1, 2, 3):
        bench.until_written(bench.keep(step, step, True))
    assert [event["step"] for event in read_events(bench.run_dir / "events.jsonl")] == [1, 2, 3]
