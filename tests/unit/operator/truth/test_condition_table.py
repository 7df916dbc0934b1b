"""Conditions, and what kstatus (helm --wait, Flux, Argo CD) makes of them."""

from dataclasses import replace

import pytest
from facts_strategies import clocks, run_facts
from hypothesis import given, settings
from small_facts import BORN, NOW, a_document, a_look, a_run, the_pods

from ddp_operator.api.trainingrun import LedgerEntry, OpenIncident, TimingStatus, TrainingRunStatus
from ddp_operator.api.words import Cause, CheckpointReason, ConditionType, PendingReason, Phase, StorageReason
from ddp_operator.decide.conditions import checkpoint_freshness, conditions
from ddp_operator.decide.facts import ProgressLook
from ddp_operator.decide.phases import true_phase
from ddp_operator.decide.wording import moment

OLD = {"checkpoint_saved_at": NOW - 700, "updated_at": NOW - 1}


def kstatus(generation, status):
    """The rules of cli-utils' pkg/kstatus for an object of a kind that it does not know."""
    if status.observed_generation != generation:
        return "InProgress"
    of_type = {condition.type: condition.status for condition in status.conditions}
    if of_type.get(ConditionType.RECONCILING) == "True":
        return "InProgress"
    if of_type.get(ConditionType.STALLED) == "True":
        return "Failed"
    ready = of_type.get(ConditionType.READY)
    return {"True": "Current", "False": "InProgress", "Unknown": "InProgress", None: "Current"}[ready]


def told(phase, before=None, now=NOW, reason="", **changes):
    status = (before or TrainingRunStatus()).model_copy(update={"phase": phase, "reason": reason, "message": "m", "observed_generation": 1})
    facts = a_run(status=status, **changes)
    return status.model_copy(update={"conditions": conditions(facts, now)})


def of_type(status, kind):
    return next(condition for condition in status.conditions if condition.type is kind)


# phase: Ready, Reconciling, Stalled, Running, Succeeded, kstatus
TABLE = {
    Phase.PENDING: ("False", "True", "False", "False", "Unknown", "InProgress"),
    Phase.STARTING: ("False", "True", "False", "False", "Unknown", "InProgress"),
    Phase.RUNNING: ("True", "False", "False", "True", "Unknown", "Current"),
    Phase.SAVING: ("True", "False", "False", "True", "Unknown", "Current"),
    Phase.RESTARTING: ("False", "True", "False", "False", "Unknown", "InProgress"),
    Phase.HUNG: ("False", "True", "False", "False", "Unknown", "InProgress"),
    Phase.SUSPENDED: ("False", "False", "False", "False", "Unknown", "InProgress"),
    Phase.SUCCEEDED: ("True", "False", "False", "False", "True", "Current"),
    Phase.FAILED: ("False", "False", "True", "False", "False", "Failed"),
}
KINDS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.RUNNING, ConditionType.SUCCEEDED)


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_has_its_conditions_and_its_kstatus(phase):
    status = told(phase)
    assert tuple(of_type(status, kind).status for kind in KINDS) == TABLE[phase][:5]
    assert kstatus(1, status) == TABLE[phase][5]
    assert kstatus(2, status) == "InProgress"  # the spec has been changed since


def test_all_conditions_are_there_on_first_sight():
    assert [condition.type for condition in told(Phase.PENDING).conditions] == list(ConditionType)


def test_a_transition_time_moves_only_when_the_status_does():
    first = told(Phase.RUNNING)
    saving = told(Phase.SAVING, first, NOW + 50)
    assert of_type(saving, ConditionType.READY).last_transition_time == moment(NOW)
    failed = told(Phase.FAILED, saving, NOW + 99, reason="Diverged")
    ready = of_type(failed, ConditionType.READY)
    assert (ready.status, ready.reason, ready.message, ready.last_transition_time) == ("False", "Diverged", "m", moment(NOW + 99))
    assert of_type(failed, ConditionType.RECONCILING).last_transition_time == moment(NOW)


def test_the_same_look_later_gives_the_same_conditions():
    first = told(Phase.RUNNING)
    assert told(Phase.RUNNING, first, NOW + 50).conditions == first.conditions


def test_a_new_generation_is_observed():
    assert {condition.observed_generation for condition in told(Phase.RUNNING, generation=7).conditions} == {7}


def test_without_a_reason_the_phase_is_one():
    assert of_type(told(Phase.RUNNING), ConditionType.READY).reason == "Running"
    assert of_type(told(Phase.PENDING, reason="OfAnotherVersion"), ConditionType.READY).reason == "Pending"


def test_what_is_only_reported_stands_in_the_message_of_ready():
    before = TrainingRunStatus(overdue="NoProgress")
    assert of_type(told(Phase.RUNNING, before), ConditionType.READY).message == "m; NoProgress is only reported"
    assert of_type(told(Phase.FAILED, before), ConditionType.READY).message == "m"
    assert of_type(told(Phase.RUNNING, before), ConditionType.RUNNING).message == "m"


def trains_since(at, **changes):
    return TrainingRunStatus(timing=TimingStatus(running_at=moment(at)), **changes)


def freshness(phase=Phase.RUNNING, now=NOW, status=None, **changes):
    return checkpoint_freshness(a_run(status=status or trains_since(BORN), **changes), phase, now)


def a_loss(at, recovered_at):
    return LedgerEntry(at=moment(at), cause=Cause.EVICTED, recovered_at=None if recovered_at is None else moment(recovered_at))


def test_a_young_checkpoint_is_fresh():
    assert freshness()[:2] == ("True", "CheckpointFresh")


def test_a_checkpoint_is_stale_after_stale_after_of_training():
    found = freshness(progress=a_look(a_document(**OLD)))
    assert found[:2] == ("False", "CheckpointStale")
    assert found.message == "the newest durable step 480 was saved at 2025-06-15T14:55:00Z, more than 10m of training ago"


def test_only_the_time_since_the_last_pause_counts():
    resumed, look = trains_since(NOW - 500), a_look(a_document(**OLD))
    assert freshness(status=resumed, progress=look).status == "True"
    assert freshness(status=resumed, progress=look, now=NOW + 101).status == "False"


def test_what_losses_took_does_not_count_and_what_was_trained_between_them_does():
    """A worker was lost every 8 minutes: each new pod began the time anew, and it was called fresh for hours."""
    hours = a_look(a_document(checkpoint_saved_at=NOW - 3600, updated_at=NOW - 1))
    for took_seconds, status in ((60, "False"), (460, "True")):
        losses = [a_loss(at, at + took_seconds) for at in range(int(NOW) - 3590, int(NOW) - 480, 480)]
        known = trains_since(BORN, ledger=losses)
        assert freshness(status=known, progress=hours, pods=the_pods(started_at=NOW - 100)).status == status


def test_a_loss_without_recovery_took_the_time_until_the_next_or_ended_with_a_pause():
    hours = a_look(a_document(checkpoint_saved_at=NOW - 3600, updated_at=NOW - 1))
    crash_loop = [a_loss(NOW - 3500, None), a_loss(NOW - 1000, NOW - 550)]
    assert freshness(status=trains_since(BORN, ledger=crash_loop), progress=hours).status == "False"
    assert freshness(status=trains_since(BORN, ledger=[*crash_loop, a_loss(NOW - 450, NOW - 300)]), progress=hours).status == "True"
    open_one = OpenIncident(opened_at=moment(NOW - 3500), last_loss_at=moment(NOW - 3500))
    assert freshness(status=trains_since(BORN, ledger=crash_loop[:1], incident=open_one), progress=hours).status == "True"
    paused = trains_since(NOW - 700, ledger=[a_loss(NOW - 3500, None)])
    assert freshness(status=paused, progress=hours).status == "False"


@pytest.mark.parametrize("skew", [-86_400.0, 0.0, 86_400.0])
def test_a_wrong_clock_in_the_pod_does_no_harm(skew):
    young = a_document(checkpoint_saved_at=NOW - 20 + skew, updated_at=NOW - 1 + skew)
    old = a_document(checkpoint_saved_at=NOW - 700 + skew, updated_at=NOW - 1 + skew)
    assert freshness(progress=a_look(young)).status == "True"
    assert freshness(progress=a_look(old)).status == "False"


def test_a_run_without_any_checkpoint_is_stale_in_the_end():
    nothing = a_look(a_document(checkpoint_step=None))
    assert freshness(progress=nothing, status=trains_since(NOW - 500))[:2] == ("Unknown", "NoCheckpointYet")
    assert freshness(progress=nothing)[:2] == ("False", "NoCheckpointYet")


def test_what_is_stored_counts_while_node_0_says_nothing():
    from ddp_operator.decide.progress import checkpoint_status

    for age, status in ((20, "True"), (700, "False")):
        stored = trains_since(BORN, checkpoint=checkpoint_status(a_document(checkpoint_saved_at=NOW - age), NOW))
        assert freshness(progress=ProgressLook(), status=stored).status == status


def test_nobody_knows_for_a_foreign_image():
    assert freshness(progress=ProgressLook())[:2] == ("Unknown", "NotKnown")


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.STARTING, Phase.RESTARTING, Phase.HUNG, Phase.SUSPENDED, Phase.FAILED])
def test_while_it_does_not_train_the_last_word_stands(phase):
    for look in (a_look(), a_look(a_document(**OLD))):
        running = told(Phase.RUNNING, progress=look)
        later = told(phase, running, NOW + 99_999, progress=look)
        before, after = (of_type(status, ConditionType.CHECKPOINT_FRESH) for status in (running, later))
        assert before == after


def test_a_document_ages_while_nothing_is_heard():
    silent = a_look(heard_at=NOW - 590)
    assert freshness(progress=silent).status == "False"
    assert freshness(progress=a_look(heard_at=NOW - 570)).status == "True"


def test_a_finished_foreign_run_is_not_known_to_be_fresh():
    assert freshness(Phase.SUCCEEDED, progress=ProgressLook())[:2] == ("Unknown", "NotKnown")


def test_a_finished_run_is_fresh():
    assert freshness(Phase.SUCCEEDED, NOW + 99_999)[:2] == ("True", "Finished")


@settings(max_examples=60)
@given(facts=run_facts(), now=clocks)
def test_every_run_has_conditions_that_settle_at_once(facts, now):
    truth = true_phase(facts, now, has_trained=True)
    status = facts.status.model_copy(update={"phase": truth.phase, "reason": truth.reason, "message": truth.message})
    first = status.model_copy(update={"conditions": conditions(replace(facts, status=status), now)})
    assert TrainingRunStatus.model_validate_json(first.model_dump_json(by_alias=True)) == first
    assert conditions(replace(facts, status=first), now) == first.conditions
    closed = {ConditionType.CHECKPOINT_FRESH: {*CheckpointReason}, ConditionType.STORAGE_HEALTHY: {*StorageReason}}
    for condition in first.conditions:
        assert condition.reason in closed.get(condition.type, {*Phase, *PendingReason, *Cause})
    assert kstatus(first.observed_generation, first) in {"Current", "InProgress", "Failed"}
    assert (kstatus(first.observed_generation, first) == "Failed") == (truth.phase is Phase.FAILED)
