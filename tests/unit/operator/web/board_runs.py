"""Runs as the dashboard may meet them: one of each phase, and one whose every text is hostile."""

import math
from datetime import UTC, datetime

from ddp_operator.api.trainingrun import TrainingRunSpec, TrainingRunStatus
from ddp_operator.api.words import Phase
from ddp_operator.decide.facts import PodFacts, ProgressFacts, ProgressLook, RunFacts, Termination
from ddp_operator.web.board import Glance, runs_page
from ddp_operator.web.history import History
from ddp_operator.web.server import Sources

NOW = 1_790_000_000.0
HOSTILE = "</td></script><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>\"'`{{7*7}}${7*7}"


def at(seconds_ago):
    return datetime.fromtimestamp(NOW - seconds_ago, UTC)


def entry(seconds_ago, cause, recovered_after=None, **more):
    recovered = None if recovered_after is None else at(seconds_ago - recovered_after)
    return {"at": at(seconds_ago), "cause": cause, "recovered_at": recovered, **more}


def condition(type_, status, reason, message="", seconds_ago=300):
    return {
        "type": type_,
        "status": status,
        "observed_generation": 1,
        "last_transition_time": at(seconds_ago),
        "reason": reason,
        "message": message,
    }


def run(name="resnet", phase=Phase.RUNNING, *, namespace="team-a", age=4000.0, pods=(), document=None, spec=None, **status):
    return RunFacts(
        namespace=namespace,
        name=name,
        uid=f"{namespace}/{name}",
        generation=1,
        resource_version="1",
        created_at=NOW - age,
        spec=TrainingRunSpec.model_validate({"jobRef": {"name": f"{name}-7f3a91"}, **(spec or {})}),
        status=TrainingRunStatus.model_validate({"phase": phase, "phase_since": at(600), **status}),
        pods=tuple(pods),
        progress=ProgressLook(document=document),
    )


def progress(step, total=9000, **more):
    made = {"step": step, "total_steps": total, "percent": 100 * step // total, "epoch": f"{4 * step / total:.1f}/4", "loss": "0.8412"}
    return made | {"accuracy": "71.3%", "samples_per_second": "5,214", "eta": "31m12s", "world_size": 4, "updated_at": at(4)} | more


def document(step, loss=1.0, **more):
    return ProgressFacts(run="resnet", attempt=1, phase="training", updated_at=NOW, step=step, total_steps=9000, loss=loss, **more)


def pod(replica, **more):
    made = {"uid": replica, "phase": "Running", "node": "gpu-node-3.example.internal", "created_at": NOW - 3000, "started_at": NOW - 2900}
    return PodFacts(name=f"resnet-7f3a91-{replica}", replica=replica, **(made | more))


def full():
    """A run that has seen much."""
    ledger = [
        entry(3100, "Preempted", 55, pod="resnet-7f3a91-worker-2", node="gpu-node-1.example.internal", exit_code=143, step=1210,
              durable_step=1200, lost_steps=0, message="PreemptionByScheduler: made room for a pod of higher priority"),
        entry(1900, "OOMKilled", 90, pod="resnet-7f3a91-worker-0", exit_code=137, step=3790, durable_step=3600, lost_steps=12,
              message="the container was killed above its memory limit of 16Gi"),
        entry(700, "Hang", 240, pod="resnet-7f3a91-master-0", exit_code=161, step=6001, durable_step=6000, lost_steps=40,
              action="GangRestart", message="no step for 10m; ranks 2 and 3 stood in all_reduce"),
    ]  # fmt: skip
    return run(
        pods=[
            pod("master-0", holds_gpus=1),
            pod("worker-0", restart_count=1, ended_before=Termination(137, reason="OOMKilled")),
            pod("worker-10", phase="Pending", node="", unscheduled_reason="Unschedulable", unscheduled_message="0/6 nodes fit"),
            pod("worker-2", deleted_at=NOW - 20),
        ],
        document=document(6900, 0.8412),
        reason="",
        message="4 of 4 pods run; step 6,900 of 9,000",
        progress=progress(6900),
        checkpoint={"step": 6600, "saved_at": at(75), "bytes": 97_517_568, "verified": True},
        replicas={"desired": 4, "running": 4},
        restarts={"total": 3, "failures": 2, "preemptions": 1, "by_operator": 1, "in_process": 4},
        ledger=ledger,
        claims=[
            {"name": "resnet-checkpoints", "phase": "Bound", "capacity_bytes": 20 * 2**30, "used_bytes": 9 * 2**30, "used_percent": 45,
             "used_by": ["resnet", "resnet-eval"]},
            {"name": "shared-data", "phase": "Bound", "capacity_bytes": 100 * 2**30, "used_bytes": 91 * 2**30, "used_percent": 91,
             "used_by": ["resnet"]},
        ],
        timing={"pending_since": at(3980), "started_at": at(3900), "running_at": at(3860), "goodput_ratio": "0.962", "lost_steps": 52},
        conditions=[
            condition("Ready", "True", "Training", "it trains healthily"),
            condition("Reconciling", "False", "Settled"),
            condition("CheckpointFresh", "True", "Fresh", "the newest durable step is 75s old"),
            condition("StorageHealthy", "True", "RoomEnough", "45% of resnet-checkpoints is used"),
            condition("Succeeded", "False", "NotFinished"),
        ],
    )  # fmt: skip


def hostile():
    """Every text that anybody but us can choose."""
    return run(
        "evil",
        Phase.HUNG,
        namespace="team-b",
        pods=[pod("master-0", node=HOSTILE, message=HOSTILE, reason=HOSTILE, phase="Failed"), pod(HOSTILE, waiting_reason=HOSTILE)],
        reason=HOSTILE[:60],
        message=HOSTILE,
        progress=progress(1, note=HOSTILE, loss=HOSTILE[:60], eta=HOSTILE[:60], epoch=HOSTILE[:60], samples_per_second=HOSTILE[:60]),
        claims=[{"name": HOSTILE, "phase": HOSTILE[:60], "used_percent": 100, "used_by": [HOSTILE, "b"]}],
        ledger=[entry(60, "Crash", pod=HOSTILE, node=HOSTILE, message=HOSTILE)],
        conditions=[condition("Ready", "False", HOSTILE[:60], HOSTILE)],
        timing={"pending_since": at(100), "goodput_ratio": HOSTILE[:60]},
    )


def cast():
    """One run of each phase, beside the full one and the hostile one."""
    fresh = {"step": 1200, "saved_at": at(40), "bytes": 5 * 10**9, "verified": False}
    stale = {"step": 800, "saved_at": at(2400), "bytes": 5 * 10**9, "verified": True}
    return [
        full(),
        run("bert-large-pretrain-wikipedia-seed-17", Phase.RESTARTING, reason="NodeLost", message="worker-2 is Unschedulable",
            progress=progress(1222), checkpoint=fresh, restarts={"preemptions": 3}, replicas={"desired": 16, "running": 15}),
        run("vit-b16", Phase.PENDING, reason="Unschedulable", message="2 of 4 pods wait: 0/6 nodes are available", age=50.0),
        run("gpt2-small", Phase.SAVING, progress=progress(8999, eta="1s"), checkpoint=fresh, namespace="team-b"),
        run("unet", Phase.STARTING, namespace="team-b", age=20.0),
        run("sweep-lr-03", Phase.FAILED, reason="Diverged", message="loss was nan at step 411",
            progress=progress(411, loss="nan", eta=""), checkpoint=stale,
            conditions=[condition("CheckpointFresh", "False", "Stale")], restarts={"failures": 20, "preemptions": 3}),
        run("mnist", Phase.SUCCEEDED, progress=progress(9000, eta=""), checkpoint=fresh),
        run("paused", Phase.SUSPENDED, progress=progress(4000, eta=""), checkpoint=stale, namespace="team-b"),
        hostile(),
    ]  # fmt: skip


def remembered(runs):
    """A history in which each run that has made progress has a curve, and a checkpoint each five minutes."""
    history, training = History(), [one for one in runs if one.status.progress]
    for step in range(0, 6900, 30):
        loss = 0.8 + 1.5 * math.exp(-step / 1500) + 0.05 * math.sin(step)
        seen = document(step, loss, checkpoint_saved_at=NOW - 3860 + step // 600 * 330)
        history.note([(one.namespace, one.name, seen) for one in training])
    return history


def found_in(runs):
    return lambda namespace, name: next((one for one in runs if (one.namespace, one.name) == (namespace, name)), None)


def overview_of(runs, history, *more):
    return runs_page([Glance.of(one) for one in runs], found_in(runs), history, *more)


def sources_of(runs, **more):
    """The pages' sources over a function that gives runs."""

    def find(namespace, name):
        return found_in(runs())(namespace, name)

    return Sources(**{"runs": runs, "run": find, "clock": lambda: NOW, **more})
