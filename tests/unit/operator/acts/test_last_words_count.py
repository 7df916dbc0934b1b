"""What node 0 says in its termination message is taken over at once: the pod, and its word, may be gone at the next look."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_facts import NOW, a_document, a_job, a_look, a_pod, a_run, the_pods

from ddp_operator.api.words import Phase
from ddp_operator.decide.decide import decide
from ddp_operator.decide.facts import Termination

SAID = {"step": 19, "total_steps": 100, "checkpoint_step": 10, "checkpoint_saved_at": NOW - 60, "checkpoint_bytes": 7}


def ended(step, durable, code=143):
    words = {"cause": "preemption", "exit": code, "step": step, "durable_step": durable, "message": ""}
    return Termination(exit_code=code, message=json.dumps(words), finished_at=NOW - 1)


def after_a_pause(**of_the_master):
    look = a_look(a_document(**SAID))
    running = decide(a_run(job=a_job(), pods=the_pods(), progress=look), NOW).status
    master = a_pod("master-0", deleted_at=NOW + 5, **of_the_master)
    paused = a_run(job=a_job(suspend=True, generation=2), pods=(master,), progress=look, status=running)
    return decide(paused, NOW + 1).status


def test_step_and_checkpoint_of_a_leaving_node_0_are_the_last_word():
    status = after_a_pause(phase="Failed", ended=ended(23, 23))
    assert status.phase is Phase.SUSPENDED
    assert (status.progress.step, status.progress.percent) == (23, 23)
    assert (status.checkpoint.step, status.checkpoint.bytes) == (23, 7)
    assert status.checkpoint.saved_at.timestamp() == NOW - 1


def test_they_are_written_although_numbers_were_written_a_moment_ago():
    before = after_a_pause()
    look = a_look(a_document(**SAID))
    master = a_pod("master-0", phase="Failed", deleted_at=NOW + 5, ended=ended(23, 23))
    facts = a_run(job=a_job(suspend=True, generation=2), pods=(master,), progress=look, status=before)
    written = decide(facts, NOW + 2).status
    assert written.checkpoint.step == 23
    again = decide(replace(facts, status=written, pods=()), NOW + 3).status
    assert again.checkpoint == written.checkpoint


@pytest.mark.parametrize("words", [(5, 5), (10**9, 10**9), (-1, -1), ("23", None), (None, [1])])
def test_older_steps_and_nonsense_change_nothing(words):
    status = after_a_pause(phase="Failed", ended=ended(*words))
    assert (status.progress.step, status.checkpoint.step) == (19, 10)


def test_news_from_before_the_loss_do_not_make_a_run_run_again():
    look = a_look(a_document(**SAID))
    trained = decide(a_run(progress=look), NOW).status
    lost = (*(pod for pod in the_pods() if pod.replica != "worker-1"), a_pod("worker-1", deleted_at=NOW + 30))
    hit = decide(a_run(pods=lost, progress=look, status=trained), NOW + 1).status
    assert hit.phase is Phase.RESTARTING
    successor = replace(a_pod("worker-1"), uid="uid-of-its-successor", created_at=NOW + 2, started_at=NOW + 3)
    back = (*(pod for pod in the_pods() if pod.replica != "worker-1"), successor)
    gathered = decide(a_run(pods=back, progress=look, status=hit), NOW + 4).status
    assert gathered.phase is Phase.RESTARTING
    news = replace(look, heard_at=NOW + 6, asked_at=NOW + 6, answered_at=NOW + 6)
    assert decide(a_run(pods=back, progress=news, status=gathered), NOW + 7).status.phase is Phase.RUNNING
