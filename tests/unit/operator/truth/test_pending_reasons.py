"""What a run waits for, as a table: the pods, and the sentence."""

from dataclasses import replace

import pytest
from facts_strategies import claims, clocks, jobs, pods
from hypothesis import given, settings
from hypothesis import strategies as st
from small_facts import CLAIM, NOW, a_claim, a_job, a_pod, a_waiting_pod, the_pods

from ddp_operator.api.words import PendingReason
from ddp_operator.decide.waiting import IMPORTANCE, WHAT_TO_DO, waiting

NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 No preemption victims found."
ELSEWHERE = "2 node(s) didn't match PersistentVolume's node affinity"
NO_VOLUME = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/3 nodes are available"
NO_CLAIM = '0/3 nodes are available: persistentvolumeclaim "ddp-demo-checkpoints" not found. not found'
FRESH = {"created_at": NOW - 5}

OF_ONE_POD = {
    "no GPU": (
        {"unscheduled_reason": "Unschedulable", "unscheduled_message": NO_GPU},
        PendingReason.UNSCHEDULABLE,
        "1 of 4 pods wait: worker-1: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu; free or add what is missing, or ask for less",
    ),
    "unschedulable without a word": ({"unscheduled_reason": "Unschedulable"}, PendingReason.UNSCHEDULABLE, "worker-1: Unschedulable;"),
    "gated": ({"unscheduled_reason": "SchedulingGated"}, PendingReason.QUEUED, "worker-1: its scheduling is gated;"),
    "gang scheduler": (
        {"unscheduled_reason": "Unschedulable", "unscheduled_message": "pod group is not ready, 3 Pending, 4 minAvailable"},
        PendingReason.QUEUED,
        "pod group is not ready",
    ),
    "its volume's node is gone": (
        {
            "unscheduled_reason": "Unschedulable",
            "unscheduled_message": f"0/3 nodes are available: {ELSEWHERE}, 2 node(s) had untolerated taint(s).",
        },
        PendingReason.CLAIM,
        "the node that its volume is on",
    ),
    "its volume's node is full": (
        {"unscheduled_reason": "Unschedulable", "unscheduled_message": f"0/3 nodes are available: 1 Insufficient cpu, {ELSEWHERE}."},
        PendingReason.UNSCHEDULABLE,
        "Insufficient cpu",
    ),
    "unbound claim": ({"unscheduled_reason": "Unschedulable", "unscheduled_message": NO_VOLUME}, PendingReason.CLAIM, "unbound immediate"),
    "no such claim": ({"unscheduled_reason": "Unschedulable", "unscheduled_message": NO_CLAIM}, PendingReason.CLAIM, "not found"),
    "image": (
        {"node": "n", "waiting_reason": "ImagePullBackOff", "waiting_message": 'Back-off pulling image "x:1"'},
        PendingReason.IMAGE,
        '1 of 4 pods wait: worker-1: Back-off pulling image "x:1"; check the image\'s name and tag, and the pull secret',
    ),
    "image of an init container": (
        {"node": "n", "is_initialising": True, "waiting_reason": "ErrImagePull"},
        PendingReason.IMAGE,
        "ErrImagePull",
    ),
    "init container": ({"node": "n", "is_initialising": True}, PendingReason.INIT, "worker-1: its init containers run;"),
    "container": ({"node": "n", "waiting_reason": "ContainerCreating"}, PendingReason.CONTAINER, "worker-1: ContainerCreating;"),
    "config map": (
        {"node": "n", "waiting_reason": "CreateContainerConfigError", "waiting_message": 'configmap "c" not found'},
        PendingReason.CONTAINER,
        'CreateContainerConfigError: configmap "c" not found;',
    ),
    "kubelet is silent": ({"node": "n"}, PendingReason.NODE, "worker-1: node n has not taken it up; look at the node"),
    "kubelet has had no time": ({"node": "n", **FRESH}, PendingReason.CONTAINER, "its container is being made"),
    "not scheduled yet": (FRESH, PendingReason.CONTAINER, "it is being scheduled"),
    "failed": ({"phase": "Failed"}, PendingReason.NO_PODS, "it has failed and is not replaced yet"),
    "ending": ({"phase": "Running", "deleted_at": NOW + 9}, PendingReason.NO_PODS, "it is ending"),
    "does not end": ({"phase": "Running", "node": "n", "deleted_at": NOW - 9}, PendingReason.NODE, "it does not end on node n"),
    "unknown phase": ({"phase": "Unknown", "node": "n"}, PendingReason.NODE, "node n does not answer"),
}


@pytest.mark.parametrize(("changes", "reason", "words"), OF_ONE_POD.values(), ids=OF_ONE_POD)
def test_one_pod_of_four_waits(changes, reason, words):
    others = [pod for pod in the_pods() if pod.replica != "worker-1"]
    found = waiting(a_job(), [*others, a_waiting_pod("worker-1", **changes)], [a_claim()], NOW)
    assert found is not None
    assert found[0] is reason
    assert words in found[1]
    assert found[1].endswith((WHAT_TO_DO[reason], "it is ending"))


def test_a_running_pod_on_a_node_that_does_not_answer_is_waited_for():
    lost = a_pod("worker-2", is_ready=False, unready_since=NOW - 60)
    reason, sentence = waiting(a_job(), [*the_pods()[:3], lost], [], NOW)
    assert (reason, sentence) == (PendingReason.NODE, "1 of 4 pods wait: worker-2: node node-worker-2 does not answer; look at the node")


def test_nobody_is_waited_for_while_all_run_or_have_ended():
    assert waiting(a_job(), the_pods(), [a_claim()], NOW) is None
    assert waiting(a_job(), [*the_pods()[:3], a_pod("worker-2", phase="Succeeded")], [a_claim()], NOW) is None


def test_a_job_that_is_not_there():
    assert waiting(None, (), (), NOW)[0] is PendingReason.JOB_NOT_FOUND


def test_no_pods_at_all_points_at_the_training_operator():
    reason, sentence = waiting(a_job(), (), (), NOW)
    assert reason is PendingReason.NO_PODS
    assert sentence.startswith("none of 4 pods is made yet; check that Kubeflow's training operator runs")


def test_missing_pods_are_counted_and_the_first_is_named():
    assert "2 of 4 pods wait: worker-1: its pod is not made yet" in waiting(a_job(), the_pods()[:2], (), NOW)[1]


def test_worker_2_comes_before_worker_10():
    pods = [a_waiting_pod(f"worker-{i}", node="n", waiting_reason="ContainerCreating") for i in (10, 2)]
    assert "2 of 2 pods wait: worker-2" in waiting(a_job(2, master=False, replicas={}), pods, (), NOW)[1]


def test_the_reason_that_only_a_person_can_end_goes_first():
    image = a_waiting_pod("worker-2", node="n", waiting_reason="ErrImagePull")
    room = a_waiting_pod("worker-0", unscheduled_reason="Unschedulable")
    init = a_waiting_pod("worker-1", node="n", is_initialising=True)
    assert waiting(a_job(), [init, room, image], (), NOW)[0] is PendingReason.IMAGE
    assert waiting(a_job(), [init, room], (), NOW)[0] is PendingReason.UNSCHEDULABLE


def test_the_successor_speaks_for_a_pod_that_is_ending():
    old = a_pod("worker-0", uid="old", deleted_at=NOW - 60)
    young = a_waiting_pod("worker-0", uid="young", node="n", waiting_reason="ContainerCreating")
    assert waiting(a_job(1), [a_pod("master-0"), old, young], (), NOW)[0] is PendingReason.CONTAINER


def test_a_claim_that_waits_for_its_first_consumer_is_no_reason():
    pending = a_claim(phase="Pending")
    pod = a_waiting_pod("worker-0", unscheduled_reason="Unschedulable", unscheduled_message=NO_GPU)
    assert waiting(a_job(1), [a_pod("master-0"), pod], [pending], NOW)[0] is PendingReason.UNSCHEDULABLE
    assert waiting(a_job(1), the_pods(1), [pending], NOW) is None


def test_a_volume_that_is_long_in_the_making_is_a_reason():
    pod = a_waiting_pod("worker-0", created_at=NOW - 60)
    reason, sentence = waiting(a_job(1), [a_pod("master-0"), pod], [a_claim(phase="Pending", message="provisioning")], NOW)
    assert reason is PendingReason.CLAIM
    assert f"the volume of claim {CLAIM} is being made: provisioning" in sentence
    assert waiting(a_job(1), [a_pod("master-0"), replace(pod, **FRESH)], [a_claim(phase="Pending")], NOW)[0] is PendingReason.CONTAINER


def test_a_lost_claim_is_a_reason():
    pod = a_waiting_pod("worker-0", node="n", waiting_reason="ContainerCreating")
    assert waiting(a_job(1), [a_pod("master-0"), pod], [a_claim(phase="Lost")], NOW)[0] is PendingReason.CLAIM
    assert waiting(a_job(1), [a_pod("master-0"), pod], [a_claim(name="other", phase="Lost")], NOW)[0] is PendingReason.CONTAINER


def test_a_quota_that_keeps_pods_from_being_made_is_told():
    job = a_job(conditions={"Failing": ("True", "x", 'pods "w" is forbidden: exceeded quota: gpu', NOW)})
    reason, sentence = waiting(job, (), (), NOW)
    assert reason is PendingReason.QUOTA
    assert "exceeded quota: gpu" in sentence


def test_a_paused_job_waits_only_for_its_queue():
    assert waiting(a_job(suspend=True), (), (), NOW) is None
    reason, sentence = waiting(a_job(suspend=True, queue="team-a"), (), (), NOW)
    assert reason is PendingReason.QUEUED
    assert "queue team-a" in sentence


def test_every_reason_has_a_place_and_a_remedy():
    assert set(IMPORTANCE) == set(WHAT_TO_DO) == set(PendingReason)


@settings(max_examples=60)
@given(job=jobs | st.none(), pods=st.lists(pods, max_size=3), claims=st.lists(claims, max_size=2), now=clocks)
def test_whatever_is_seen_gives_one_short_line_in_any_order(job, pods, claims, now):
    found = waiting(job, pods, claims, now)
    assert found is None or (found[0] in PendingReason and 0 < len(found[1]) <= 1024)
    if len({pod.replica for pod in pods}) == len(pods):  # of twins, which the API forbids, the first speaks
        assert waiting(job, pods[::-1], claims, now) == found
