"""TensorBoard files, read back with TensorBoard's own reader."""

import logging
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.telemetry.tensorboard import TensorBoard, _checksum

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)


def curve(folder, tag="train/loss"):
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_the_checksum_is_the_published_one():
    # RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8A9136AA, masked here as TFRecord does
    assert struct.unpack("<I", _checksum(bytes(32)))[0] == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_scalars_arrive_in_order_with_their_times(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    for step in (10, 20):
        board.scalars(step, {"train/loss": step / 10, "train/lr": 0.5}, wall_time=1e9 + step)
    board.close()
    assert curve(tmp_path / "tensorboard") == [(10, 1.0), (20, 2.0)]
    assert curve(tmp_path / "tensorboard", "train/lr") == [(10, 0.5), (20, 0.5)]
    accumulator = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert [event.wall_time for event in accumulator.Scalars("train/loss")] == [1e9 + 10, 1e9 + 20]


def test_a_resumed_run_hides_the_steps_that_the_fault_undid(tmp_path):
    before = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        before.scalars(step, {"train/loss": 1.0}, wall_time=1.0)
    before.close()
    after = TensorBoard(tmp_path)
    after.purge(21)
    after.scalars(30, {"train/loss": 3.0}, wall_time=2.0)
    after.close()
    assert curve(tmp_path) == [(10, 1.0), (20, 1.0), (30, 3.0)]


def test_a_file_torn_by_a_kill_keeps_all_whole_values(tmp_path):
    board = TensorBoard(tmp_path)
    for step in (1, 2):
        board.scalars(step, {"train/loss": 1.0}, wall_time=1.0)
    board.close()
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 3)
    assert curve(tmp_path) == [(1, 1.0)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**62), st.floats(width=32, allow_nan=False, allow_infinity=False), st.text("abc/_é", min_size=1, max_size=300))
def test_any_step_value_and_name_is_read_back(tmp_path_factory, step, value, tag):
    folder = tmp_path_factory.mktemp("tensorboard")
    board = TensorBoard(folder)
    board.scalars(step, {tag: value}, wall_time=1.0)
    board.close()
    assert curve(folder, tag) == [(step, value)]


def test_nothing_is_made_before_the_first_value(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    board.purge(5)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    board = TensorBoard(tmp_path / "tensorboard")
    with caplog.at_level(logging.WARNING):
        board.scalars(1, {"a": 1.0}, 1.0)
        board.scalars(2, {"a": 1.0}, 1.0)
        board.close()
    assert ["TensorBoard files end here: cannot write" in record.getMessage() for record in caplog.records] == [True]


def test_a_full_disk_ends_the_file_and_not_the_run(tmp_path, monkeypatch, caplog):
    board = TensorBoard(tmp_path)
    board.scalars(1, {"train/loss": 1.0}, 1.0)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:5]))
    board.scalars(2, {"train/loss": 1.0}, 1.0)
    monkeypatch.setattr(os, "write", real_write)
    board.scalars(3, {"train/loss": 1.0}, 1.0)
    board.close()
    assert curve(tmp_path) == [(1, 1.0)]
    assert len(caplog.records) == 1
