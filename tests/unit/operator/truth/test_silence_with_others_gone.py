"""The last other run may end, the clock may be set, the operator may be new: a hang is still acted upon, and a cut network is not."""

from dataclasses import replace

import pytest
from test_whose_silence import BOUND, NOW, TIMEOUT, restarts, silent

from ddp_operator.api.words import Phase
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import SuspendJob
from ddp_operator.decide.facts import ProgressLook, Termination
from ddp_operator.decide.silence import ALONE, RARELY_SECONDS

ANSWERED = BOUND * 0.3
"""The last other run answered so long after the silence began, in the first half of the bound, and then ended."""


@pytest.mark.parametrize("bounds", [3, 100, 10_000])
def test_a_hang_is_acted_upon_although_the_last_other_run_has_ended_soon_after_it_began(bounds):
    seconds = BOUND * bounds
    last = seconds - ANSWERED
    assert restarts(replace(silent(seconds, TIMEOUT, others_asked=last, others_answered=last), created_at=0.0))


def test_it_takes_as_long_as_for_a_run_that_was_always_alone():
    early, late = BOUND * ALONE - 10, BOUND * ALONE + 10
    found = [restarts(silent(s, TIMEOUT, others_asked=s - ANSWERED, others_answered=s - ANSWERED)) for s in (early, late)]
    assert found == [False, True]


def test_others_that_are_asked_now_and_then_are_no_runs_that_have_ended():
    short = 60.0
    facts = silent(short * 10, TIMEOUT, others_asked=RARELY_SECONDS - 1, others_answered=short * 9.9)
    spec = facts.spec.model_copy(update={"policy": facts.spec.policy.model_copy(update={"hung_after": "60s"})})
    assert not restarts(replace(facts, spec=spec))
    assert restarts(replace(facts, spec=spec, others_asked_at=NOW - RARELY_SECONDS - 1))


@pytest.mark.parametrize("seconds", [BOUND + 60, BOUND * 3])
def test_answers_from_before_the_clock_was_set_back_tell_nothing(seconds):
    assert not restarts(silent(seconds, TIMEOUT, others_asked=-3600.0, others_answered=-3600.0))
    assert not restarts(silent(seconds, TIMEOUT, others_asked=1.0, others_answered=-3600.0))


def test_what_an_operator_before_this_one_could_not_reach_is_not_restarted_before_it_was_asked():
    cut = silent(BOUND * 3, TIMEOUT, others_asked=1.0)
    hung = decide(cut, NOW).status
    assert hung.phase is Phase.HUNG
    unasked = replace(cut, status=hung, progress=ProgressLook(), others_asked_at=0.0)
    assert decide(unasked, NOW + 5).status.phase is Phase.HUNG
    assert not restarts(unasked)


def test_a_clock_that_was_just_set_ahead_kills_no_gang_of_which_a_pod_has_ended():
    facts = silent(1.0, "")
    lead, worker = facts.pods
    ended = replace(worker, phase="Failed", ended=Termination(1, finished_at=NOW - 3600))
    look = replace(facts.progress, heard_at=NOW - 3601, answered_at=NOW - 3600, asked_at=NOW - 3600, unanswered_since=0.0)
    facts = replace(facts, pods=(lead, ended), job=replace(facts.job, restart_policy=dict.fromkeys(facts.job.replicas, "OnFailure")))
    assert not restarts(replace(facts, progress=look))
    asked_since = replace(look, asked_at=NOW, answered_at=NOW)
    assert restarts(replace(facts, progress=asked_since))


def test_a_cut_stays_one_when_the_clock_is_set_ahead_before_the_next_look():
    cut = silent(BOUND * 2.5, TIMEOUT, others_asked=5.0)
    assert [action for action in decide(cut, NOW + BOUND * 1.1).actions if isinstance(action, SuspendJob)] == []
