"""A status that another version of the operator wrote: what it says in known words is kept, and what was begun is never forgotten."""

import copy

import pytest
from object_bodies import claim_body, job_body, pod_body, run_body
from pydantic import ValidationError

from ddp_operator.api.trainingrun import LEDGER_ENTRIES, TrainingRunSpec, TrainingRunStatus
from ddp_operator.api.words import Act, Cause, Phase
from ddp_operator.decide.decide import decide
from ddp_operator.observe import memory, slim
from ddp_operator.observe.world import World

AT = "2026-01-02T03:04:05Z"
STATUS = {
    "phase": "Running",
    "intent": {"action": "GangRestart", "cause": "Hang", "startedAt": AT, "jobUid": "u", "fromGeneration": 3},
    "restarts": {"total": 3, "failures": 2, "preemptions": 1},
    "ledger": [{"at": AT, "cause": "Crash", "exitCode": 1}, {"at": AT, "cause": "NodeLost", "node": "n"}],
    "incident": {"openedAt": AT, "lastLossAt": AT, "replicas": ["worker-0"]},
    "incarnations": {"master-0": "abc/0", "worker-0": "def/1"},
    "timing": {"startedAt": AT, "suspendedSeconds": 7},
    "stoppedByUs": "DeadlineExceeded",
}


def spoiled(path, value):
    status = copy.deepcopy(STATUS)
    spot = status
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    return status


PLACES = [("intent",), ("restarts",), ("ledger", 1), ("incident",), ("timing",)]


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_key_at_any_depth_costs_nothing(place):
    whole = TrainingRunStatus.model_validate(STATUS)
    assert memory.status(spoiled((*place, "inventedLater"), {"deep": [1]})) == (whole, [], "")


def test_an_unknown_key_at_the_top_is_named():
    status, lost, unreadable = memory.status(STATUS | {"inventedLater": 1})
    assert (status, lost, unreadable) == (TrainingRunStatus.model_validate(STATUS), ["inventedLater"], "")


def test_a_wish_stays_strict():
    with pytest.raises(ValidationError):
        TrainingRunSpec.model_validate({"jobRef": {"name": "a"}, "policy": {"inventedLater": 1}})


def test_the_ledger_is_salvaged_entry_by_entry_and_the_newest_are_kept():
    status, lost, unreadable = memory.status(spoiled(("ledger", 0, "cause"), "InventedLater"))
    assert [entry.cause for entry in status.ledger] == [Cause.NODE_LOST]
    assert (lost, unreadable) == (["ledger"], "")
    entries = [{"at": AT, "cause": "Crash", "step": step} for step in range(LEDGER_ENTRIES + 5)]
    assert [entry.step for entry in memory.status({"ledger": entries})[0].ledger] == list(range(5, LEDGER_ENTRIES + 5))


def test_objects_are_salvaged_field_by_field():
    status, _, unreadable = memory.status(spoiled(("timing", "suspendedSeconds"), "long") | {"incarnations": {"a": "b/0", "c": 5}})
    assert (status.timing.started_at is not None, status.timing.suspended_seconds) == (True, 0)
    assert status.incarnations == {"a": "b/0"}
    assert unreadable == ""


def world_with(status):
    world = World()
    for kind, body in (("run", run_body(status=status)), ("job", job_body()), ("claim", claim_body()), ("pod", pod_body())):
        world.replace(kind, (), [body])
    return world


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("intent", "action"), "InventedLater"),
        (("intent",), "soon"),
        (("restarts", "failures"), "many"),
        (("restarts",), []),
        (("stoppedByUs",), "InventedLater"),
    ],
)
def test_a_run_whose_memory_cannot_be_read_is_left_alone_with_a_sentence(path, value, caplog):
    world = world_with(spoiled(path, value))
    facts = world.facts_of("team", "demo")
    assert not facts.pods_are_known
    assert f"status.{path[0]}" in facts.memory_is_unreadable
    assert "left alone" in caplog.text
    decision = decide(facts, 2e9)
    assert (decision.status, decision.actions) == (facts.status, ())


def test_a_status_that_is_no_object_is_left_alone():
    assert world_with("Running").facts_of("team", "demo").memory_is_unreadable


@pytest.mark.parametrize("status", [None, {}, STATUS, spoiled(("phase",), "InventedLater"), STATUS | {"intent": None}])
def test_any_other_run_is_looked_after(status):
    facts = world_with(status).facts_of("team", "demo")
    assert facts.pods_are_known
    assert facts.memory_is_unreadable == ""


def test_the_intent_of_a_newer_operator_is_still_finished():
    facts = world_with(spoiled(("intent", "inventedLater"), 1) | {"phase": "InventedLater"}).facts_of("team", "demo")
    assert (facts.status.intent.action, facts.status.phase) == (Act.GANG_RESTART, Phase.PENDING)
    assert slim.run(run_body(status=STATUS)).note == ""
