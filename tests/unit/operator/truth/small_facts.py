"""Facts of a small job in good order, to be changed by a test: a Master and three Workers, one node each."""

from dataclasses import replace

from ddp_operator.api.trainingrun import CheckpointSpec, JobRef, Policy, TrainingRunSpec, TrainingRunStatus
from ddp_operator.decide.facts import ClaimFacts, JobFacts, PodFacts, ProgressFacts, ProgressLook, RunFacts

NOW = 1_750_000_000.0
"""The operator's clock."""
BORN = NOW - 3600.0
CLAIM = "ddp-demo-checkpoints"


def a_pod(replica="worker-0", **changes):
    """A pod that runs; `phase="Pending"` and the like make others."""
    facts = PodFacts(
        name=f"ddp-demo-{replica}",
        uid=f"uid-of-{replica}",
        replica=replica,
        phase="Running",
        node=f"node-{replica}",
        ip="10.0.0.1",
        created_at=BORN,
        started_at=BORN + 10.0,
        is_ready=True,
        container_is_ready=True,
        progress_port=9400,
        holds_gpus=1,
    )
    return replace(facts, **changes)


def a_waiting_pod(replica="worker-0", **changes):
    """A pod that was made and does not run yet."""
    waiting = {"phase": "Pending", "node": "", "ip": "", "started_at": 0.0, "is_ready": False, "container_is_ready": False}
    return a_pod(replica, **{**waiting, **changes})


def the_pods(workers=3, **changes_of_all):
    """All pods of `a_job`."""
    return tuple(a_pod(replica, **changes_of_all) for replica in ("master-0", *(f"worker-{i}" for i in range(workers))))


def a_job(workers=3, *, master=True, policy="ExitCode", **changes):
    """A job of 1 + workers pods (or workers only)."""
    replicas = ({"Master": 1} if master else {}) | {"Worker": workers}
    facts = JobFacts(
        name="ddp-demo",
        uid="uid-of-the-job",
        resource_version="100",
        created_at=BORN,
        replicas=replicas,
        restart_policy=dict.fromkeys(replicas, policy),
        claims=(CLAIM,),
    )
    return replace(facts, **changes)


def a_claim(**changes):
    """The checkpoint volume: 10 GiB, bound."""
    facts = ClaimFacts(name=CLAIM, phase="Bound", requested_bytes=10 << 30, capacity_bytes=10 << 30, used_by=("ddp-demo",))
    return replace(facts, **changes)


def a_document(**changes):
    """What node 0 says in the middle of training."""
    facts = ProgressFacts(
        run="ddp-demo",
        attempt=1,
        phase="training",
        updated_at=NOW - 1.0,
        step=500,
        total_steps=1000,
        epoch=2.0,
        epochs=4.0,
        loss=0.512345,
        accuracy=0.8123,
        samples_per_second=12345.6,
        eta_seconds=4800.0,
        world_size=4,
        checkpoint_step=480,
        checkpoint_saved_at=NOW - 20.0,
        checkpoint_bytes=90_000_000,
        checkpoint_verified=True,
        volume_total_bytes=10 << 30,
        volume_free_bytes=5 << 30,
    )
    return replace(facts, **changes)


def a_look(document=None, **changes):
    """The answer of a moment ago."""
    facts = ProgressLook(
        document=document or a_document(), pod_uid="uid-of-master-0", heard_at=NOW - 1.0, asked_at=NOW - 1.0, answered_at=NOW - 1.0
    )
    return replace(facts, **changes)


def a_run(**changes):
    """A run that trains well."""
    facts = RunFacts(
        namespace="default",
        name="ddp-demo",
        uid="uid-of-the-run",
        generation=1,
        resource_version="200",
        created_at=BORN,
        spec=TrainingRunSpec(job_ref=JobRef(name="ddp-demo"), checkpoint=CheckpointSpec(claim_name=CLAIM), policy=Policy(hung_after="10m")),
        status=TrainingRunStatus(),
        job=a_job(),
        pods=the_pods(),
        claims=(a_claim(),),
        progress=a_look(),
    )
    return replace(facts, **changes)
