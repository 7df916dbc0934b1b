"""A container that starts again in its pod: what the one before it said last holds until the new one speaks, and no longer."""

import json
from dataclasses import replace

from small_facts import NOW, a_document, a_job, a_look, a_run, the_pods

from ddp_operator.decide.decide import decide
from ddp_operator.decide.facts import Termination

WORDS = json.dumps({"cause": "crash", "exit": 160, "step": 900, "durable_step": 890, "message": "boom"})


def shown(look):
    lead, *others = the_pods()
    lead = replace(lead, restart_count=1, started_at=NOW - 600, ended_before=Termination(160, message=WORDS, finished_at=NOW - 620))
    status = decide(a_run(pods=(lead, *others), job=a_job(policy="OnFailure"), progress=look), NOW).status
    return status.progress.step, status.progress.eta, status.checkpoint.step


def test_last_words_hold_until_the_new_container_speaks():
    before = a_look(a_document(step=880, checkpoint_step=870), heard_at=NOW - 630)
    assert shown(before) == (900, "", 890)
    assert shown(replace(before, pod_uid="of-a-pod-before", heard_at=NOW - 1)) == (900, "", 890)


def test_a_new_container_that_goes_on_from_an_older_step_is_believed():
    assert shown(a_look(a_document(step=500, checkpoint_step=480))) == (500, "1h20m", 480)
