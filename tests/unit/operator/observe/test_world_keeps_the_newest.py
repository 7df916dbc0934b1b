import asyncio

import pytest
from object_bodies import claim_body, job_body, pod_body, run_body

from ddp_operator.decide.facts import PodFacts, ProgressFacts, ProgressLook
from ddp_operator.observe.shelf import BURIED
from ddp_operator.observe.world import World

DEMO = ("team", "demo")
TRACKED = {"ddp-operator.io/track": "true"}


def world_with(*things, listed=("run", "job", "claim", "pod")) -> World:
    """Things are (kind, body); then each kind counts as listed."""
    world = World()
    for kind, body in things:
        world.put(kind, body)
    for kind in listed:
        world.replace(kind, (), [body for known, body in things if known == kind])
    world.take_dirty()
    return world


def dirty(world: World) -> list[tuple[str, str]]:
    return list(world.take_dirty())


def test_facts_of_a_run_join_job_pods_claims_and_progress():
    pods = [pod_body(f"demo-worker-{index}") for index in (10, 2, 0)] + [
        pod_body("demo-master-0"),
        pod_body("demo-worker-0", namespace="other"),
    ]
    world = world_with(("run", run_body()), ("job", job_body()), ("claim", claim_body()), *(("pod", pod) for pod in pods))
    world.put_progress(*DEMO, ProgressLook(heard_at=5.0))
    facts = world.facts_of(*DEMO)
    assert facts.job.desired == 4
    assert [pod.replica for pod in facts.pods] == ["master-0", "worker-0", "worker-2", "worker-10"]
    assert [(claim.name, claim.used_by) for claim in facts.claims] == [("demo-checkpoints", ("demo",))]
    assert facts.progress.heard_at == 5.0
    assert facts.pods_are_known
    assert world.facts_of("team", "other") is None


def test_older_version_never_replaces_a_newer_one_of_any_kind():
    for kind, make in (("run", run_body), ("job", job_body), ("claim", claim_body), ("pod", pod_body)):
        world = world_with(("run", run_body()), ("job", job_body()), ("claim", claim_body()), ("pod", pod_body()))
        world.put(kind, make(version=30))
        newest = world.facts_of(*DEMO)
        stale = make(version=20)
        stale["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        world.put(kind, stale)
        assert world.facts_of(*DEMO) == newest, kind
        world.put(kind, {**stale, "metadata": {**stale["metadata"], "resourceVersion": "40"}})
        assert world.facts_of(*DEMO) != newest, kind


def test_version_that_is_no_number_is_believed():
    world = world_with(("job", job_body()), ("run", run_body()))
    world.put_job({**job_body(spec={}), "metadata": {**job_body()["metadata"], "resourceVersion": "opaque"}})
    assert world.facts_of(*DEMO).job.replicas == {}


def test_each_change_marks_the_runs_that_it_concerns_and_no_others():
    other = run_body("other", job="other")
    second = run_body("second", job="else", spec={"checkpoint": {"claimName": "demo-checkpoints"}})
    world = world_with(
        ("run", run_body()), ("run", other), ("run", second), ("job", job_body()), ("claim", claim_body()), ("pod", pod_body())
    )
    changes = {
        "pod": (lambda: world.put("pod", pod_body(version=11, status={"phase": "Failed"})), [DEMO]),
        "new pod": (lambda: world.put("pod", pod_body("demo-worker-1")), [DEMO]),
        "pod gone": (lambda: world.drop_pod("team", "demo-worker-1"), [DEMO]),
        "job": (lambda: world.put_job(job_body(version=12, status={})), [DEMO]),
        "claim": (lambda: world.put_claim(claim_body(version=12, status={"phase": "Lost"})), [DEMO, ("team", "second")]),
        "progress": (lambda: world.put_progress(*DEMO, ProgressLook(error="x")), [DEMO]),
        "run": (
            lambda: world.put_run(run_body("other", job="other", version=12, spec={"policy": {"maxRestarts": 1}})),
            [("team", "other")],
        ),
        "run gone": (lambda: world.drop_run("team", "second"), [DEMO, ("team", "second")]),
        "job gone": (lambda: world.drop_job("team", "demo"), [DEMO]),
    }
    for what, (change, expected) in changes.items():
        change()
        assert sorted(dirty(world)) == sorted(expected), what


def test_what_changes_nothing_marks_nothing():
    world = world_with(("run", run_body()), ("job", job_body()), ("claim", claim_body()), ("pod", pod_body()))
    for kind, make in (("run", run_body), ("job", job_body), ("claim", claim_body), ("pod", pod_body)):
        world.put(kind, make())
        world.put(kind, make(version=99))
        world.replace(kind, (), [make(version=99)])
    world.put_progress(*DEMO, ProgressLook(asked_at=5.0, answered_at=5.0))
    world.put_progress("team", "nobody", ProgressLook(error="x"))
    assert dirty(world) == []
    assert world.facts_of(*DEMO).resource_version == "99"


def test_dirty_runs_come_in_the_order_of_their_first_change():
    world = world_with()
    for name in ("zebra", "ant", "mole", "ant"):
        world.put_run(run_body(name, job=name, version=len(name)))
    assert dirty(world) == [("team", "zebra"), ("team", "ant"), ("team", "mole")]
    assert dirty(world) == []


def test_deletion_is_for_good_and_a_list_made_before_does_not_bring_it_back():
    for kind, make in (("run", run_body), ("job", job_body), ("claim", claim_body), ("pod", pod_body)):
        world = world_with((kind, make()))
        world.drop_pod("team", "demo-worker-0") if kind == "pod" else getattr(world, f"drop_{kind}")("team", make()["metadata"]["name"])
        world.replace(kind, (), [make()], version=10)
        assert world._shelves[kind].keys() == set(), kind


def test_late_deletion_of_a_predecessor_leaves_the_successor():
    world = world_with(("run", run_body()), ("job", job_body(uid="old")))
    world.put_job(job_body(uid="new", version=20))
    world.drop_job("team", "demo", "old")
    assert world.facts_of(*DEMO).job.uid == "new"
    world.put_job(job_body(uid="old", version=30))
    assert world.facts_of(*DEMO).job.uid == "new", "a deleted object came back"


def test_stale_predecessor_does_not_replace_its_successor():
    world = world_with(("run", run_body()), ("job", job_body(uid="new", version=20)))
    world.put_job(job_body(uid="old", version=10))
    assert world.facts_of(*DEMO).job.uid == "new"


def test_list_drops_what_it_lacks_only_in_its_namespaces():
    world = world_with(("pod", pod_body()), ("pod", pod_body(namespace="other")), ("run", run_body()), ("run", run_body(namespace="other")))
    world.replace("pod", ("team",), [])
    assert world.facts_of(*DEMO).pods == ()
    assert len(world.facts_of("other", "demo").pods) == 1


def test_list_does_not_drop_what_is_newer_than_itself():
    world = world_with(("run", run_body()), ("pod", pod_body(version=50)))
    world.replace("pod", (), [], version=49)
    assert len(world.facts_of(*DEMO).pods) == 1
    world.replace("pod", (), [], version=51)
    assert world.facts_of(*DEMO).pods == ()


def test_object_that_a_list_lacked_may_be_listed_again():
    world = world_with(("run", run_body()), ("pod", pod_body()))
    world.replace("pod", (), [])
    world.replace("pod", (), [pod_body()])
    assert len(world.facts_of(*DEMO).pods) == 1


def test_store_that_was_set_back_is_believed_in_the_end(caplog):
    world = world_with(("run", run_body()), ("job", job_body(version=1000)))
    world.replace("job", (), [job_body(version=1000)], version=2000)
    restored = job_body(version=70, spec={"runPolicy": {"suspend": True}})
    for _ in range(2):
        world.replace("job", (), [restored], version=80)
        assert not world.facts_of(*DEMO).job.suspend
    world.replace("job", (), [restored], version=80)
    world.replace("job", (), [restored], version=80)
    assert world.facts_of(*DEMO).job.suspend
    assert "set back" in caplog.text


def test_absence_says_nothing_before_everything_was_listed_once():
    world = World(("team",))
    world.put_run(run_body())
    for kind in ("pod", "job", "claim", "run"):
        assert not world.facts_of(*DEMO).pods_are_known or kind == "run"
        assert not world.is_complete()
        world.take_dirty()
        world.replace(kind, ("team",), [run_body()] if kind == "run" else [])
        assert dirty(world) == [DEMO], kind
    assert world.is_complete()


def test_completeness_needs_every_namespace():
    world = World(("team", "other"))
    for kind in ("pod", "job", "claim", "run"):
        world.replace(kind, ("team",), [])
    assert not world.is_complete()
    for kind in ("pod", "job", "claim", "run"):
        world.replace(kind, ("other",), [])
    assert world.is_complete()


def test_tracked_jobs_that_no_run_names_wait_for_adoption():
    world = world_with(
        ("job", job_body("b", uid="b", labels=TRACKED)), ("job", job_body("a", uid="a", labels=TRACKED)), ("job", job_body("c", uid="c"))
    )
    assert [job.name for _, job in world.unadopted()] == ["a", "b"]
    world.put_run(run_body("whatever", job="a"))
    assert [job.name for _, job in world.unadopted()] == ["b"]
    world.drop_run("team", "whatever")
    assert [job.name for _, job in world.unadopted()] == ["a", "b"]
    gone = job_body("b", uid="b", labels=TRACKED, version=11)
    gone["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    world.put_job(gone)
    assert [job.name for _, job in world.unadopted()] == ["a"]


def test_nothing_is_adopted_before_runs_were_listed():
    world = world_with(("job", job_body(labels=TRACKED)), listed=("job",))
    assert world.unadopted() == []


async def test_waiting_ends_with_a_change_or_with_the_time():
    world = world_with()
    assert not await world.wait_dirty(0.001)
    asyncio.get_running_loop().call_soon(world.put_run, run_body())
    assert await world.wait_dirty(5)
    assert dirty(world) == [DEMO]
    assert not await world.wait_dirty(0.001)
    asyncio.get_running_loop().call_soon(world.put_job, job_body("lonely", uid="l", labels=TRACKED))
    assert await world.wait_dirty(5)


def test_progress_of_a_successor_starts_empty():
    world = world_with(("run", run_body()))
    document = ProgressFacts(run="demo", attempt=1, phase="training", updated_at=1.0)
    world.put_progress(*DEMO, ProgressLook(document=document))
    world.put_run(run_body(uid="another", version=20))
    assert world.facts_of(*DEMO).progress == ProgressLook()


def test_run_that_names_another_job_is_no_longer_marked_by_the_first():
    world = world_with(("run", run_body()), ("job", job_body()))
    world.put_run(run_body(job="second", version=20))
    world.take_dirty()
    world.put_job(job_body(version=20, status={}))
    assert dirty(world) == []
    assert world.facts_of(*DEMO).job is None


def test_pod_that_is_labelled_anew_changes_its_job():
    world = world_with(("run", run_body()), ("run", run_body("else", job="else")), ("pod", pod_body()))
    moved = pod_body(version=11)
    moved["metadata"]["labels"]["training.kubeflow.org/job-name"] = "else"
    world.put("pod", moved)
    assert sorted(dirty(world)) == [DEMO, ("team", "else")]
    assert (len(world.facts_of(*DEMO).pods), len(world.facts_of("team", "else").pods)) == (0, 1)


def test_memory_of_the_deleted_is_bounded():
    world = world_with()
    for index in range(BURIED + 10):
        world.drop_run("team", "x", f"uid-{index}")
    assert len(world._runs._buried) == BURIED


def test_nothing_is_left_of_what_is_gone():
    things = [("run", run_body()), ("job", job_body()), ("claim", claim_body()), ("pod", pod_body())]
    world = world_with(*things)
    world.put_progress(*DEMO, ProgressLook(error="x"))
    for kind in ("run", "job", "claim", "pod"):
        world.replace(kind, (), [])
    for table in (world._looks, world._pods_of_job, world._runs_of_job, world._claim_users):
        assert len(table) == 0


@pytest.mark.parametrize(
    ("changes", "is_asked"),
    [
        ({}, True),
        ({"phase": "Pending"}, False),
        ({"started_at": 0.0}, False),
        ({"ip": ""}, False),
        ({"progress_port": 0}, False),
        ({"replica": "worker-0"}, False),
    ],
)
def test_only_a_running_node_zero_with_a_port_is_asked(changes, is_asked):
    world = world_with(("run", run_body()), ("job", job_body()))
    pod = PodFacts(
        **{
            "name": "p",
            "uid": "u",
            "replica": "master-0",
            "phase": "Running",
            "started_at": 1.0,
            "ip": "10.0.0.1",
            "progress_port": 1,
            **changes,
        }
    )
    world.put_pod("team", "demo", pod)
    assert (world.node_zero(*DEMO) is not None) == is_asked


@pytest.mark.parametrize(
    "job",
    [
        job_body(spec={**job_body()["spec"], "runPolicy": {"suspend": True}}),
        job_body(status={"conditions": [{"type": "Failed", "status": "True"}]}),
        job_body(status={"conditions": [{"type": "Succeeded", "status": "True"}]}),
        None,
    ],
)
def test_node_zero_of_a_job_that_does_not_train_is_not_asked(job):
    world = world_with(("run", run_body()), ("pod", pod_body("demo-master-0")), *([("job", job)] if job else []))
    assert world.node_zero(*DEMO) is None


def test_node_zero_without_a_master_is_worker_zero():
    workers = job_body(spec={"pytorchReplicaSpecs": {"Worker": {"replicas": 2}}})
    world = world_with(("run", run_body()), ("pod", pod_body("demo-worker-0")), ("job", workers))
    assert world.node_zero(*DEMO).name == "demo-worker-0"


def test_a_claim_made_for_a_run_is_orphaned_when_neither_run_nor_job_uses_it():
    made = claim_body()
    made["metadata"]["labels"] = {"ddp-operator.io/run": "demo"}
    world = world_with(("claim", made), ("claim", claim_body("somebody-elses")))
    assert [(namespace, claim.name) for namespace, claim in world.orphaned_claims()] == [("team", "demo-checkpoints")]
    world.put_job(job_body())
    assert world.orphaned_claims() == []


def test_a_run_knows_when_others_were_asked_and_answered_and_not_itself():
    keys = [("team", name) for name in ("a", "b", "c")]
    world = world_with(*(("run", run_body(name, job=name)) for _, name in keys))

    def others(name):
        facts = world.facts_of("team", name)
        return facts.others_asked_at, facts.others_answered_at

    assert others("a") == (0.0, 0.0)
    world.put_progress("team", "a", ProgressLook(asked_at=5.0, answered_at=5.0))
    assert (others("a"), others("b")) == ((0.0, 0.0), (5.0, 5.0))
    world.put_progress("team", "b", ProgressLook(asked_at=9.0, answered_at=3.0))
    assert (others("a"), others("b"), others("c")) == ((9.0, 3.0), (5.0, 5.0), (9.0, 5.0))
    world.put_progress("team", "a", ProgressLook(asked_at=10.0, answered_at=10.0))
    assert (others("a"), others("b"), others("c")) == ((9.0, 3.0), (10.0, 10.0), (10.0, 10.0))
