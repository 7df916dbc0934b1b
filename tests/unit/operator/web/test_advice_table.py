import re
import shlex

import pytest

from ddp_operator.api.advice import TABLE, advise
from ddp_operator.api.words import Cause, PendingReason, Phase

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
