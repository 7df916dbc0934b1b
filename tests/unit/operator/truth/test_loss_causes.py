"""Why a pod was lost, as a table: what is seen of it, and the cause."""

import itertools
import json
from dataclasses import replace

import pytest
from facts_strategies import pods, terminations
from hypothesis import given
from hypothesis import strategies as st
from small_facts import NOW, a_pod, a_waiting_pod

from ddp_operator.api.words import Cause
from ddp_operator.decide.classify import FINAL_CAUSES, Loss, classify, last_words, root_cause
from ddp_operator.decide.facts import Termination

FOREIGN = {"progress_port": 0}


def words(cause, message="it broke", **more):
    return json.dumps({"rank": 3, "exit": 1, "step": 120, "durable_step": 100, "cause": cause, "message": message, **more}) + "\n"


def end(code, message="", reason="Error", at=NOW - 5):
    return Termination(exit_code=code, reason=reason, message=message, finished_at=at)


DELETED = {"deleted_at": NOW + 20, "grace_seconds": 30.0}  # asked for at NOW - 10
OF_POD_AND_END = {
    # what the trainer says
    "user error": ({}, end(1, words("user_error")), Cause.USER_ERROR),
    "config error": ({}, end(2, words("config_error")), Cause.CONFIG_ERROR),
    "data error": ({}, end(3, words("data_error", "cannot read /data")), Cause.DATA_ERROR),
    "full volume": ({}, end(3, words("data_error", "cannot write /runs/x: No space left on device; free space")), Cause.VOLUME_FULL),
    "full quota": ({}, end(3, words("data_error", "cannot write: Disk quota exceeded")), Cause.VOLUME_FULL),
    "diverged": ({}, end(4, words("diverged")), Cause.DIVERGED),
    "no progress": ({}, end(5, words("no_progress")), Cause.NO_PROGRESS),
    "crash": ({}, end(160, words("crash", "killed by SIGSEGV")), Cause.CRASH),
    "a rank killed by SIGKILL stays a crash": ({}, end(160, words("crash", "killed by SIGKILL; likely out of memory")), Cause.CRASH),
    "unless the reason says so": ({}, end(160, words("crash", "killed by SIGKILL"), reason="OOMKilled"), Cause.OOM_KILLED),
    "hang": ({}, end(161, words("hang")), Cause.HANG),
    "peer loss": ({}, end(162, words("peer_loss")), Cause.PEER_LOST),
    "preempted, and nobody says by whom": ({}, end(143, words("preemption")), Cause.PREEMPTED),
    "words that are not ours": ({}, end(1, '{"cause": "aliens"}'), Cause.USER_ERROR),
    "words that are a list": ({}, end(161, "[1, 2]"), Cause.HANG),
    "deep nesting": ({}, end(161, "[" * 4000), Cause.HANG),
    "half a line": ({}, end(4, words("diverged")[:40]), Cause.DIVERGED),
    "a log's tail that ends with the line": ({}, end(1, "INFO x\n" + words("diverged")), Cause.DIVERGED),
    # bare exit codes
    "1": ({}, end(1), Cause.USER_ERROR),
    "2": ({}, end(2), Cause.CONFIG_ERROR),
    "3": ({}, end(3), Cause.DATA_ERROR),
    "4": ({}, end(4), Cause.DIVERGED),
    "5": ({}, end(5), Cause.NO_PROGRESS),
    "3 of a foreign image": (FOREIGN, end(3), Cause.USER_ERROR),
    "5 of a foreign image": (FOREIGN, end(5), Cause.USER_ERROR),
    "161 of a foreign image": (FOREIGN, end(161), Cause.CRASH),
    "127": ({}, end(127), Cause.CONFIG_ERROR),
    "134": ({}, end(134), Cause.CRASH),
    "137": ({}, end(137), Cause.CRASH),
    "137, out of memory": ({}, end(137, reason="OOMKilled"), Cause.OOM_KILLED),
    "139": ({}, end(139), Cause.CRASH),
    "143": ({}, end(143), Cause.PREEMPTED),
    "160": ({}, end(160), Cause.CRASH),
    "161": ({}, end(161), Cause.HANG),
    "162": ({}, end(162), Cause.PEER_LOST),
    "255": ({}, end(255), Cause.CRASH),
    "-9": ({}, end(-9), Cause.CRASH),
    "0": ({}, end(0), Cause.UNKNOWN),
    "a command that is not there": ({}, end(128, reason="StartError"), Cause.CONFIG_ERROR),
    "a container that the kubelet lost": ({}, end(137, reason="ContainerStatusUnknown"), Cause.NODE_LOST),
    # the pod's own reason goes first
    "evicted": ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, end(137, reason="OOMKilled"), Cause.EVICTED),
    "evicted for ephemeral storage": ({"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds"}, None, Cause.EVICTED),
    "node lost": ({"reason": "NodeLost"}, None, Cause.NODE_LOST),
    "node shut down": ({"reason": "Terminated"}, end(143, words("preemption")), Cause.NODE_LOST),
    "preempted by the kubelet": ({"reason": "Preempting"}, None, Cause.PREEMPTED),
    "refused by the kubelet": ({"reason": "UnexpectedAdmissionError"}, None, Cause.EVICTED),
    "no GPU left on the node": ({"reason": "OutOfnvidia.com/gpu"}, None, Cause.EVICTED),
    "the pod's deadline": ({"reason": "DeadlineExceeded"}, end(137), Cause.DEADLINE_EXCEEDED),
    # told to leave
    "preempted": ({"disruption": "PreemptionByScheduler", **DELETED}, end(143, words("preemption")), Cause.PREEMPTED),
    "tainted node": ({"disruption": "DeletionByTaintManager", **DELETED}, None, Cause.NODE_LOST),
    "drained": ({"disruption": "EvictionByEvictionAPI", **DELETED}, end(143), Cause.EVICTED),
    "node pressure": ({"disruption": "TerminationByKubelet"}, end(137), Cause.EVICTED),
    "some other disruption": ({"disruption": "Whim"}, end(143), Cause.EVICTED),
    "a mistake in the code, while told to leave": ({"disruption": "EvictionByEvictionAPI"}, end(1, words("user_error")), Cause.USER_ERROR),
    "deleted": (DELETED, end(143, words("preemption")), Cause.POD_DELETED),
    "deleted, and killed after its grace period": (DELETED, end(137), Cause.POD_DELETED),
    "deleted with its peers": (DELETED, end(162, words("peer_loss")), Cause.POD_DELETED),
    "deleted, not ended yet": (DELETED, None, Cause.POD_DELETED),
    "dead before it was deleted": (DELETED, end(137, at=NOW - 60), Cause.CRASH),
    "crashed while it was deleted": (DELETED, end(160, words("crash")), Cause.CRASH),
    # not seen to end
    "vanished": ({}, None, Cause.POD_DELETED),
    "its node does not answer": ({"is_ready": False, "unready_since": NOW - 60}, None, Cause.NODE_LOST),
    "unready with its container is not a lost node": (
        {"is_ready": False, "container_is_ready": False, "unready_since": 1.0},
        None,
        Cause.POD_DELETED,
    ),
    "no image": ({"phase": "Pending", "waiting_reason": "ImagePullBackOff"}, None, Cause.IMAGE_PULL),
    "a missing secret": ({"phase": "Pending", "waiting_reason": "CreateContainerConfigError"}, None, Cause.CONFIG_ERROR),
    "failed without a word": ({"phase": "Failed"}, None, Cause.UNKNOWN),
}


@pytest.mark.parametrize(("pod", "ended", "cause"), OF_POD_AND_END.values(), ids=OF_POD_AND_END)
def test_a_loss_has_its_cause(pod, ended, cause):
    assert classify(a_pod(**pod), ended).cause is cause


def test_the_trainers_words_are_kept_and_say_which_rank():
    loss = classify(a_pod("worker-2"), end(1, words("user_error", "KeyError: 'x'")))
    assert (loss.exit_code, loss.message, loss.pod, loss.node) == (1, "rank 3: KeyError: 'x'", "ddp-demo-worker-2", "node-worker-2")
    assert (loss.step, loss.durable_step, loss.at, loss.is_explained) == (120, 100, NOW - 5, True)


def test_a_signal_is_named():
    assert classify(a_pod(), end(139)).message == "ended with exit code 139 (SIGSEGV)"


def test_what_is_read_off_a_code_is_not_explained():
    assert not classify(a_pod(), end(1)).is_explained


def test_escaped_control_characters_and_half_surrogates_do_not_get_through():
    loss = classify(a_pod(), end(1, '{"cause": "user_error", "message": "a\\u001b[31mb\\ud800c\\u202ed\\n"}'))
    assert loss.message == "a [31mb?c d"
    loss.message.encode()


@pytest.mark.parametrize("step", ["1e999", "-1", "NaN", "true", '"7"', "null", "[]", "9" * 400])
def test_odd_numbers_in_last_words_are_no_steps(step):
    line = f'{{"cause": "hang", "step": {step}, "durable_step": {step}, "rank": {step}, "message": "m"}}'
    read = last_words(line)
    assert read.cause is Cause.HANG
    assert 0 <= read.step <= 2**53


@given(pod=pods, ended=st.none() | terminations)
def test_every_pod_has_one_short_clean_cause(pod, ended):
    loss = classify(pod, ended)
    assert loss.cause in Cause
    assert len(loss.message) <= 256
    loss.message.encode()
    assert "\n" not in loss.message
    assert 0 <= loss.step <= 2**53


# --- the root cause of an incident


def lost(cause, code=None, *, at=NOW, pod="p", said=True):
    return Loss(cause, code, "m", pod, "n", at, 0, is_explained=said)


MATTERS_MORE = {
    "an out-of-memory kill explains lost peers": (lost(Cause.OOM_KILLED, 137), lost(Cause.PEER_LOST, 162, at=NOW - 9)),
    "a crash explains lost peers": (lost(Cause.CRASH, 160), lost(Cause.PEER_LOST, 162, at=NOW - 9)),
    "a deletion explains lost peers": (lost(Cause.POD_DELETED, said=False), lost(Cause.PEER_LOST, 162, at=NOW - 9)),
    "a crash explains a deletion": (lost(Cause.CRASH, 139, said=False), lost(Cause.POD_DELETED, at=NOW - 9, said=False)),
    "a crash explains a SIGTERM": (lost(Cause.CRASH, 139, said=False), lost(Cause.PREEMPTED, 143, at=NOW - 9, said=False)),
    "a preemption that is said explains crashes": (lost(Cause.PREEMPTED, 143), lost(Cause.CRASH, 134, at=NOW - 9)),
    "a lost node explains crashes": (lost(Cause.NODE_LOST), lost(Cause.CRASH, 134, at=NOW - 9)),
    "a final cause that is said wins": (lost(Cause.USER_ERROR, 1), lost(Cause.OOM_KILLED, 137, at=NOW - 9)),
    "an exit 1 that nobody explains does not": (lost(Cause.OOM_KILLED, 137), lost(Cause.USER_ERROR, 1, at=NOW - 9, said=False)),
    "but it explains a crash": (lost(Cause.USER_ERROR, 1, said=False), lost(Cause.CRASH, 134, at=NOW - 9, said=False)),
    "of equals the one that is said": (lost(Cause.CRASH, 160), lost(Cause.CRASH, 139, at=NOW - 9, said=False)),
    "then the first": (lost(Cause.CRASH, 160, at=NOW - 9), lost(Cause.CRASH, 160, pod="a")),
    "a time that is not known is not the first": (lost(Cause.CRASH, 160), lost(Cause.CRASH, 160, at=0.0, pod="a")),
    "then by name": (lost(Cause.CRASH, 160, pod="a"), lost(Cause.CRASH, 160, pod="b")),
    "anything explains nothing": (lost(Cause.PEER_LOST, 162), lost(Cause.UNKNOWN, at=NOW - 9)),
}


@pytest.mark.parametrize(("winner", "echo"), MATTERS_MORE.values(), ids=MATTERS_MORE)
def test_the_root_cause(winner, echo):
    assert root_cause([winner, echo]) is winner
    assert root_cause([echo, winner]) is winner


def test_without_losses_nothing_is_known():
    assert root_cause([]).cause is Cause.UNKNOWN


losses = st.builds(
    lost,
    st.sampled_from(Cause),
    st.sampled_from([None, 1, 143, 162]),
    at=st.integers(0, 3).map(float),
    pod=st.sampled_from("abc"),
    said=st.booleans(),
)


@given(st.lists(losses, min_size=1, max_size=4))
def test_the_root_cause_does_not_depend_on_the_order(found):
    assert len({root_cause(list(order)) for order in itertools.permutations(found)}) == 1


@given(st.lists(losses, min_size=1, max_size=4), losses)
def test_another_loss_only_replaces_the_root_cause_by_itself(found, another):
    before = root_cause(found)
    assert root_cause([*found, another]) in (before, another)
    assert root_cause([before, *found]) == before


def test_a_final_cause_that_is_said_beats_all_others():
    for final, other in itertools.product(FINAL_CAUSES, set(Cause) - FINAL_CAUSES):
        assert root_cause([lost(other, 137, at=1.0), lost(final, 3)]).cause is final


def test_a_waiting_pod_that_was_never_scheduled_is_deleted_not_unknown():
    assert classify(a_waiting_pod(), None).cause is Cause.POD_DELETED
    assert classify(replace(a_waiting_pod(), node="n"), None).node == "n"
