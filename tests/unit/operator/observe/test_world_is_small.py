"""A thousand runs of four pods must stay below 25 MB: the operator's own bar is 150 MB, and Python with its libraries takes half of it."""

import gc
import json
import tracemalloc

from object_bodies import claim_body, document_body, job_body, pod_body, run_body

from ddp_operator.api.trainingrun import LEDGER_ENTRIES
from ddp_operator.api.words import ConditionType
from ddp_operator.decide.facts import ProgressLook
from ddp_operator.observe import slim
from ddp_operator.observe.document import parse
from ddp_operator.observe.packed import PackedRun
from ddp_operator.observe.world import World

RUNS = 12
BYTES_PER_RUN = 25_000
AT = "2026-01-02T03:04:05Z"


def long_status(index):
    return {
        "phase": "Running",
        "conditions": [
            {
                "type": kind.value,
                "status": "True",
                "observedGeneration": 1,
                "lastTransitionTime": AT,
                "reason": "Because",
                "message": f"{kind} {index}",
            }
            for kind in ConditionType
        ],
        "ledger": [
            {
                "at": AT,
                "cause": "Crash",
                "pod": f"run-{index}-worker-{entry % 3}",
                "message": f"rank {entry} of {index} died",
                "step": entry * index,
            }
            for entry in range(LEDGER_ENTRIES)
        ],
        "progress": {"step": index, "loss": "0.25", "updatedAt": AT},
        "timing": {"startedAt": AT, "lastProgressAt": AT},
    }


def fresh(body):
    """As read from the wire: no text shared with another object."""
    return json.loads(json.dumps(body))


def fill(world, runs):
    for index in range(runs):
        name = f"run-{index}"
        world.put_run(fresh(run_body(name, job=name, status=long_status(index), spec={"checkpoint": {"claimName": f"{name}-claim"}})))
        world.put_job(fresh(job_body(name, uid=f"job-{index}")))
        world.put_claim(fresh(claim_body(f"{name}-claim")))
        for replica in ("master-0", "worker-0", "worker-1", "worker-2"):
            world.put("pod", fresh(pod_body(f"{name}-{replica}", job=name)))
        world.put_progress("team", name, ProgressLook(parse(json.dumps(document_body(run=name)).encode()), heard_at=1.5 + index))


def test_run_with_a_full_ledger_and_four_pods_takes_few_kilobytes():
    fill(World(), 1)  # what is shared by all runs exists then
    gc.collect()
    tracemalloc.start()
    try:
        world = World()
        fill(world, RUNS)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world.names()) == RUNS
    assert taken / RUNS < BYTES_PER_RUN


def test_packed_status_is_the_same_when_it_is_unpacked():
    facts = slim.run(run_body(status=long_status(3))).facts
    assert PackedRun.of(facts).unpacked() == facts
    assert len(facts.status.ledger) == LEDGER_ENTRIES
