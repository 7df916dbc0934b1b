"""TensorBoard files, read back with TensorBoard's own reader."""

import importlib
import logging

import pytest

from ddp_trainer.telemetry.tensorboard import TensorBoard

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)


def curve(folder, tag="train/loss"):
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_scalars_arrive_in_order(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    for step in (10, 20):
        board.scalars(step, {"train/loss": step / 10}, wall_time=float(step))
    board.close()
    assert curve(tmp_path / "tensorboard") == [(10, 1.0), (20, 2.0)]


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


def test_nothing_is_imported_or_made_before_the_first_value(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_is_off_with_one_line(tmp_path, monkeypatch, caplog):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    board = TensorBoard(tmp_path / "tensorboard")
    with caplog.at_level(logging.INFO):
        board.scalars(1, {"a": 1.0}, 1.0)
        board.scalars(2, {"a": 1.0}, 1.0)
        board.close()
    assert [record.getMessage() for record in caplog.records] == ["TensorBoard files are off: the package tensorboard is not installed"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    board = TensorBoard(tmp_path / "tensorboard")
    board.scalars(1, {"a": 1.0}, 1.0)
    board.close()
    assert ["TensorBoard files are off: cannot write" in record.getMessage() for record in caplog.records] == [True]
