"""The suite's own eyes: a state, a sample or a step that is not what it should be is seen."""

import json
from types import SimpleNamespace

import pytest
import torch
from drill import Drill  # noqa: F401  # makes `runs` importable
from outcome import different, lost_steps, wrong_samples
from table import Row, Sight, closing

BATCH, STEPS = 4, 6


def told(events):
    return SimpleNamespace(of_kind=lambda kind: [event for event in events if event["kind"] == kind])


def lines(first, end, started):
    return [{"time": started + i, "first": p, "last": p + 1, "count": 2} for i, p in enumerate(range(first * BATCH, end * BATCH, 2))]


@pytest.fixture
def written(tmp_path):
    """Two generations: steps 0 to 3, of which 3 is done again by the second, which goes on to the end."""
    events = [
        {"kind": "form", "time": 0.0, "attempt": 1},
        {"kind": "first_step", "time": 1.0, "attempt": 1},
        {"kind": "form", "time": 90.0, "attempt": 2},  # superseded before it found a state
        {"kind": "form", "time": 100.0, "attempt": 3},
        {"kind": "resume", "time": 101.0, "attempt": 3, "step": 3},
    ]
    logs = {"1": lines(0, 4, 1.0), "2": lines(3, STEPS, 102.0)}

    def check(change=None):
        if change:
            change(logs)
        for name, written in logs.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
        return wrong_samples(told(events), tmp_path, BATCH, STEPS)

    return check


def test_work_that_was_done_again_counts_once(written):
    assert written() == []


def test_a_sample_left_out_is_seen(written):
    assert written(lambda logs: logs["2"].pop()) == ["2 samples left out, first in step 5"]


def test_a_sample_used_twice_is_seen(written):
    assert written(lambda logs: logs["1"].append(logs["1"][0])) == ["2 samples twice, first in step 0"]


def test_a_sample_in_another_batch_is_seen(written):
    assert written(lambda logs: logs["2"][-1].update(last=99)) == ["a micro-batch of 2 samples spans 22 to 99"]


def test_one_bit_and_a_missing_tensor_are_seen():
    state = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert different(state, {name: tensor.clone() for name, tensor in state.items()}) == []
    assert different(state, {**state, "a": torch.tensor([1.0, 1.0, 1.0000001])}) == ["a"]
    assert different({"a": state["a"]}, state) == ["b"]
    assert different({}, state) == ["a", "b"]


def test_lost_steps_are_counted_from_what_was_trained(tmp_path):
    metrics = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    metrics += [{"kind": "resume", "step": 2}, {"kind": "resume", "step": 2}, {"kind": "train", "step": 3}, {"kind": "resume", "step": 3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    assert lost_steps(SimpleNamespace(run_dir=tmp_path)) == 1


def test_a_row_is_good_only_if_all_its_facts_hold():
    sight = Sight()
    sight.fact("exit 0", holds=True)
    assert sight.row("a", "b").good
    sight.fact("2 tensors differ", holds=False)
    row = sight.row("a", "b")
    assert not row.good
    assert "NOT AS EXPECTED: 2 tensors differ" in row.line
    assert row.line.endswith("| BAD |")
    assert Row("a", "b", "no root", ran=False).line.endswith("| left out |")


def test_what_could_not_be_tried_is_not_counted_as_done():
    good, bad, left_out = Row("a", "b", "c"), Row("a", "b", "c", good=False), Row("a", "b", "no root", ran=False)
    assert closing([good, bad], 1.0) == "2 rows, 1 not as expected, 1.0 min"
    assert closing([good, left_out, left_out], 1.0) == "1 rows, 0 not as expected, 2 left out, 1.0 min"
