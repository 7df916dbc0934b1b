"""The page about the operator names every word that a status may say."""

import re
from pathlib import Path

import pytest

from ddp_operator.api.words import (
    PREEMPTION_CAUSES,
    Cause,
    CheckpointReason,
    ConditionType,
    EventReason,
    PendingReason,
    Phase,
    StorageReason,
)

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "operator.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", [*Phase, *PendingReason, *Cause, *ConditionType])
def test_every_word_has_a_row_that_explains_it(word):
    assert re.search(rf"^\| {word} \| \S", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("condition", "words"), [("CheckpointFresh", CheckpointReason), ("StorageHealthy", StorageReason)])
def test_every_reason_of_a_condition_has_a_row_that_says_when_it_is_true_or_false(condition, words):
    found = re.findall(rf"^\| (\w+) \| {condition} \| (?:True|False|Unknown)\b", PAGE, flags=re.MULTILINE)
    assert found == [str(word) for word in words]


def test_every_event_has_a_row():
    table = PAGE.split("<!-- event-reasons -->")[1].split("<!-- /event-reasons -->")[0]
    assert re.findall(r"^\| (\w+) \| \S", table, flags=re.MULTILINE) == ["event", *EventReason]


@pytest.mark.parametrize("cause", sorted(PREEMPTION_CAUSES))
def test_what_is_not_the_runs_fault_is_said_to_spend_preemptions(cause):
    assert re.search(rf"^\| {cause} \| [^|]+ \| preemptions \|$", PAGE, flags=re.MULTILINE)


def test_nothing_else_is_said_to_spend_preemptions():
    assert set(re.findall(r"^\| (\w+) \| [^|]+ \| preemptions \|$", PAGE, flags=re.MULTILINE)) == set(PREEMPTION_CAUSES)
