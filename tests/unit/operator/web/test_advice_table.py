import re
import shlex

import pytest

from ddp_operator.api.advice import OF_CONDITIONS, OF_OVERDUE, TABLE, advise, pod_to_look_at
from ddp_operator.api.words import FINAL_PHASES, Cause, CheckpointReason, PendingReason, Phase, StorageReason

NAMES = {"namespace": "team-a", "run": "resnet", "job": "resnet-1", "pod": "resnet-1-master-0", "claim": "resnet-checkpoints"}


@pytest.mark.parametrize("phase", Phase)
def test_every_state_has_a_sentence_and_a_command_that_a_shell_can_read(phase):
    for reason in ("", "SomethingNew", *PendingReason, *Cause):
        advice = advise(phase, reason, **NAMES)
        assert re.fullmatch(r"[A-Z].*\.", advice.sentence)
        assert shlex.split(advice.command)[0] == "kubectl"
        assert "{" not in advice.command.replace('{"spec":{"runPolicy":{"suspend":false}}}', "")


def test_every_pending_reason_has_its_own_row():
    assert {reason for phase, reason in TABLE if phase is Phase.PENDING} == {"", *PendingReason}


def test_every_reason_in_the_table_is_one_that_a_run_can_have():
    assert {reason for _, reason in TABLE} <= {"", *PendingReason, *Cause}


def test_names_from_the_cluster_cannot_add_a_command():
    advice = advise(Phase.FAILED, "Diverged", **{**NAMES, "pod": "x; rm -rf ~", "namespace": "$(id)"})
    assert shlex.split(advice.command) == ["kubectl", "-n", "$(id)", "logs", "x; rm -rf ~", "--tail=100"]


def test_braces_in_a_name_are_left_alone():
    assert "'{run}'" in advise(Phase.RUNNING, "", **{**NAMES, "run": "{run}"}).command


@pytest.mark.parametrize("missing", ["pod", "claim"])
def test_without_the_name_that_a_command_needs_the_pods_are_listed(missing):
    phase, reason = {"pod": (Phase.FAILED, "Diverged"), "claim": (Phase.PENDING, "ClaimPending")}[missing]
    advice = advise(phase, reason, **{**NAMES, missing: ""})
    assert advice.command == "kubectl -n team-a get pods -l training.kubeflow.org/job-name=resnet-1 -o wide"


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.SAVING])
@pytest.mark.parametrize("worry", [*OF_CONDITIONS, *OF_OVERDUE])
def test_nobody_is_told_that_there_is_nothing_to_do_while_something_is_wrong(phase, worry):
    told = {"overdue": worry} if isinstance(worry, Cause) else {"conditions": {worry[0]: worry[1:]}}
    advice = advise(phase, "", **NAMES, **told)
    assert worry is Cause.PENDING_TOO_LONG or not advice.sentence.startswith("Nothing")
    assert re.fullmatch(r"[A-Z].*\.", advice.sentence)
    assert shlex.split(advice.command)[0] == "kubectl"


def test_every_reason_for_a_condition_to_be_bad_has_a_row():
    bad = {(status, reason) for _, status, reason in OF_CONDITIONS}
    well = {"EnoughRoom", "CheckpointFresh", "Finished", "NotKnown"}
    assert {reason for _, reason in bad} == {*StorageReason, *CheckpointReason} - well
    assert {reason for status, reason in bad if status == "True"} == {"VolumeFilling"}


def test_a_first_checkpoint_that_is_not_due_yet_is_no_worry():
    assert (
        advise(Phase.RUNNING, "", **NAMES, conditions={"CheckpointFresh": ("Unknown", "NoCheckpointYet")}).sentence == "Nothing: it trains."
    )


@pytest.mark.parametrize("phase", sorted(FINAL_PHASES))
def test_an_end_is_told_as_before(phase):
    stale = {"CheckpointFresh": ("False", "CheckpointStale"), "StorageHealthy": ("False", "ClaimMissing")}
    assert advise(phase, "", **NAMES, conditions=stale, overdue="NoProgress") == advise(phase, "", **NAMES)


def test_what_it_waits_for_is_told_before_an_old_word_about_checkpoints():
    stale = {"CheckpointFresh": ("False", "CheckpointStale"), "StorageHealthy": ("False", "VolumeFull")}
    assert advise(Phase.PENDING, "Unschedulable", **NAMES, conditions=stale).sentence.startswith("No node has room")
    missing = {"StorageHealthy": ("False", "ClaimMissing")}
    assert advise(Phase.PENDING, "Unschedulable", **NAMES, conditions=missing).sentence.startswith("A claim that it uses does not exist")


def test_hung_speaks_of_signs_since_no_step_is_what_a_slow_run_makes_too():
    assert advise(Phase.HUNG, Cause.HANG, **NAMES).sentence.startswith("No sign of training for longer than hungAfter")


def test_a_stop_has_taken_the_pods_so_the_ledger_is_shown():
    advice = advise(Phase.FAILED, Cause.NO_PROGRESS, **{**NAMES, "pod": ""}, has_pods=False)
    assert advice.command == "kubectl -n team-a describe trainingrun resnet"


PODS = [("m-0", "Running"), ("w-0", "Running"), ("w-1", "Failed"), ("w-2", "Pending")]


@pytest.mark.parametrize(
    ("phase", "lost", "pods", "chosen"),
    [
        (Phase.PENDING, "m-0", PODS, "w-2"),
        (Phase.PENDING, "", PODS[:2], "m-0"),
        (Phase.RESTARTING, "w-0", PODS, "w-0"),
        (Phase.RESTARTING, "gone", PODS, "w-1"),
        (Phase.RESTARTING, "", [PODS[0], PODS[3]], "w-2"),
        (Phase.FAILED, "w-0", PODS, "w-0"),
        (Phase.FAILED, "", PODS, "w-1"),
        (Phase.FAILED, "w-0", [], ""),
        (Phase.FAILED, "w-0", None, "w-0"),
        (Phase.RUNNING, "w-1", PODS, "m-0"),
        (Phase.HUNG, "w-1", PODS, "m-0"),
        (Phase.PENDING, "w-1", None, ""),
    ],
)
def test_the_pod_is_the_one_that_waits_or_was_lost_and_else_node_0s(phase, lost, pods, chosen):
    assert pod_to_look_at(phase, lost, pods) == chosen
