"""What a pod's body must say before its node counts as lost, and whose pods they are when a job is made again under its old name."""

import pytest
from object_bodies import JOB_UID, job_body, pod_body, run_body

from ddp_operator.decide.classify import is_node_lost
from ddp_operator.observe import slim
from ddp_operator.observe.world import World

DEMO = ("team", "demo")
AT = "2026-01-02T04:00:00Z"


def two_containers(*, ready, containers_ready, sidecar=True, ready_reason="", pod_reason=""):
    """A pod of a trainer that is well and a side-car."""
    body = pod_body()
    kept = [c for c in body["status"]["conditions"] if c["type"] not in {"Ready", "ContainersReady"}]
    said = {"type": "Ready", "status": ready, "lastTransitionTime": AT} | ({"reason": ready_reason} if ready_reason else {})
    kept += [said] + ([{"type": "ContainersReady", "status": containers_ready, "lastTransitionTime": AT}] if containers_ready else [])
    body["status"]["conditions"] = kept
    body["status"]["containerStatuses"][0]["ready"] = sidecar
    assert body["status"]["containerStatuses"][1] | {"name": "pytorch", "ready": True} == body["status"]["containerStatuses"][1]
    return body | {"status": body["status"] | ({"reason": pod_reason} if pod_reason else {})}


CASES = {
    "a side-car that has ended": ({"ready": "False", "containers_ready": "False", "sidecar": False}, False),
    "the same with the kubelet's reason": (
        {"ready": "False", "containers_ready": "False", "sidecar": False, "ready_reason": "ContainersNotReady"},
        False,
    ),
    "a kubelet that says nothing of containers": ({"ready": "False", "containers_ready": None, "sidecar": False}, False),
    "the node controller's word, against the kubelet's last": ({"ready": "False", "containers_ready": "True"}, True),
    "unknown": ({"ready": "Unknown", "containers_ready": "True"}, True),
    "a reason of the condition": ({"ready": "False", "containers_ready": "False", "ready_reason": "NodeStatusUnknown"}, True),
    "a reason of the pod": ({"ready": "False", "containers_ready": "False", "pod_reason": "NodeLost"}, True),
    "a closed readiness gate": ({"ready": "False", "containers_ready": "True", "ready_reason": "ReadinessGatesNotReady"}, False),
    "all is well": ({"ready": "True", "containers_ready": "True"}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_only_the_node_controllers_word_makes_a_node_lost(name):
    given, is_lost = CASES[name]
    assert is_node_lost(slim.pod(two_containers(**given))[1].facts) is is_lost


def owned(name, uid, owner_uid):
    body = pod_body(name, uid=uid)
    body["metadata"]["ownerReferences"][0]["uid"] = owner_uid
    return body


def world_of(*pods):
    world = World()
    world.put_run(run_body())
    world.put_job(job_body())
    for pod in pods:
        world.put("pod", pod)
    return world


def test_pods_of_a_job_that_had_the_name_before_do_not_count():
    world = world_of(owned("demo-master-0", "new", JOB_UID), owned("demo-worker-0", "old", "uid-of-the-job-before"))
    assert [pod.uid for pod in world.facts_of(*DEMO).pods] == ["new"]


def test_an_old_node_zero_is_not_asked_for_the_new_jobs_progress():
    world = world_of(owned("demo-master-0", "old", "uid-of-the-job-before"))
    assert world.node_zero(*DEMO) is None
    world.put("pod", owned("demo-master-0", "new", JOB_UID))
    assert world.node_zero(*DEMO).uid == "new"


def test_pods_without_a_known_owner_count():
    body = pod_body()
    del body["metadata"]["ownerReferences"]
    assert len(world_of(body).facts_of(*DEMO).pods) == 1


def test_pods_come_into_sight_with_the_job_that_made_them():
    world = world_of(owned("demo-master-0", "new", "uid-of-the-next-job"))
    assert world.facts_of(*DEMO).pods == ()
    world.take_dirty()
    world.drop_job("team", "demo")
    world.put_job(job_body(uid="uid-of-the-next-job", version=99))
    assert DEMO in world.take_dirty()
    assert [pod.uid for pod in world.facts_of(*DEMO).pods] == ["new"]


# --- several runs of one job


def a_rival(name, created="2026-01-02T03:04:00Z", *, adopted=False, **meta):
    owner = {"ownerReferences": [{"kind": "PyTorchJob", "name": "demo"}]} if adopted else {}
    return run_body(name, creationTimestamp=created, **owner, **meta)


@pytest.mark.parametrize(
    ("rivals", "actor"),
    [
        ([a_rival("b"), a_rival("a")], "a"),
        ([a_rival("b", "2026-01-01T00:00:00Z"), a_rival("a")], "b"),
        ([a_rival("b", "2026-01-01T00:00:00Z", adopted=True), a_rival("a")], "a"),
        ([a_rival("b", adopted=True), a_rival("a", adopted=True)], "a"),
        ([a_rival("b"), a_rival("a", "2026-01-01T00:00:00Z", deletionTimestamp=AT)], "b"),
        ([a_rival("b"), a_rival("a", "never")], "b"),
    ],
)
def test_of_several_runs_of_one_job_exactly_one_acts(rivals, actor):
    for order in (rivals, rivals[::-1]):
        world = World()
        for body in order:
            world.put_run(body)
        assert [name for namespace, name in world.names() if world.acts(namespace, name)] == [actor]


def test_runs_of_different_jobs_or_namespaces_are_no_rivals():
    world = World()
    for body in (run_body("a", job="a"), run_body("b", job="b"), run_body("a", namespace="other", job="b", uid="third")):
        world.put_run(body)
    assert all(world.acts(*key) for key in world.names())
    assert not world.acts("team", "nobody")


def test_rivals_are_looked_at_again_when_the_acting_one_comes_or_goes_and_not_at_its_writes():
    world = World()
    world.put_run(a_rival("b"))
    world.take_dirty()
    world.put_run(a_rival("a", version=11))
    assert set(world.take_dirty()) == {("team", "a"), ("team", "b")}
    world.put_run(a_rival("a", version=12, status={"phase": "Running"}))
    assert set(world.take_dirty()) == {("team", "a")}
    world.put_run(a_rival("a", version=13, status={"phase": "Running"}, deletionTimestamp=AT))
    assert set(world.take_dirty()) == {("team", "a"), ("team", "b")}
    world.drop_run("team", "a")
    assert ("team", "b") in world.take_dirty()
    assert world.acts("team", "b")
