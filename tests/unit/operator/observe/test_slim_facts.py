import pytest
from object_bodies import GIB, JOB_UID, claim_body, job_body, pod_body, run_body

from ddp_operator.api.words import Phase
from ddp_operator.decide.facts import PodFacts, Termination
from ddp_operator.observe import slim
from ddp_operator.observe.fields import address, instant, quantity, text

BORN = instant("2026-01-02T03:04:05Z")


def pod_facts(**status) -> PodFacts:
    found = slim.pod(pod_body(status=status))
    assert found is not None
    return found[1].facts


def test_pod_of_a_job_is_read_whole():
    job, seen = slim.pod(pod_body())
    assert job == "demo"
    assert (seen.namespace, seen.name, seen.uid, seen.version) == ("team", "demo-worker-0", "uid-of-team-demo-worker-0", 10)
    assert seen.facts == PodFacts(
        name="demo-worker-0",
        uid="uid-of-team-demo-worker-0",
        replica="worker-0",
        phase="Running",
        node="node-7",
        ip="10.1.2.3",
        created_at=BORN,
        started_at=BORN + 4,
        grace_seconds=60.0,
        is_ready=True,
        container_is_ready=True,
        restart_count=1,
        ended_before=Termination(137, reason="OOMKilled", message='{"cause":"oom"}', finished_at=BORN + 3),
        owner_uid=JOB_UID,
        progress_port=9400,
        holds_gpus=2,
    )


def test_pod_of_another_kind_of_job_is_none_of_ours():
    body = pod_body()
    body["metadata"]["ownerReferences"][0]["kind"] = "TFJob"
    assert slim.pod(body) is None


def test_deleted_pod_has_the_grace_period_it_was_given():
    body = pod_body()
    body["metadata"] |= {"deletionTimestamp": "2026-01-02T04:00:00Z", "deletionGracePeriodSeconds": 5}
    facts = slim.pod(body)[1].facts
    assert (facts.deleted_at, facts.grace_seconds) == (instant("2026-01-02T04:00:00Z"), 5.0)


def test_replica_without_labels_comes_from_the_name():
    body = pod_body(name="demo-worker-12")
    del body["metadata"]["labels"]["training.kubeflow.org/replica-type"]
    assert slim.pod(body)[1].facts.replica == "worker-12"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes\n\x1b[31mred"}]},
            {"phase": "Pending", "unscheduled_reason": "Unschedulable", "unscheduled_message": "0/3 nodes  [31mred"},
        ),
        (
            {"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-02T03:04:05Z"}]},
            {"is_ready": False, "unready_since": BORN},
        ),
        (
            {
                "phase": "Running",
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "False",
                        "reason": "ReadinessGatesNotReady",
                        "lastTransitionTime": "2026-01-02T03:04:05Z",
                    }
                ],
            },
            {"is_ready": False, "unready_since": 0.0},
        ),
        (
            {"phase": "Running", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
            {"disruption": "EvictionByEvictionAPI"},
        ),
        ({"phase": "Running", "conditions": [{"type": "DisruptionTarget", "status": "False", "reason": "x"}]}, {"disruption": ""}),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, {"reason": "Evicted", "message": "low on memory"}),
        ({"phase": "Dreaming"}, {"phase": "Unknown"}),
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"name": "pytorch", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}],
            },
            {"waiting_reason": "ErrImagePull", "waiting_message": "no", "started_at": 0.0},
        ),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "Initialized", "status": "False"}],
                "initContainerStatuses": [
                    {"name": "one", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "two", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
                ],
                "containerStatuses": [{"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}],
            },
            {"is_initialising": True, "waiting_reason": "ImagePullBackOff"},
        ),
        (
            {"phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": {"terminated": {"exitCode": 4, "message": "m"}}}]},
            {"ended": Termination(4, message="m")},
        ),
        ({"phase": "Running", "podIP": "169.254.169.254"}, {"ip": ""}),
        ({"phase": "Running", "podIP": "metadata.google.internal"}, {"ip": ""}),
        ({"phase": "Running", "podIP": "fd00::1"}, {"ip": "fd00::1"}),
    ],
)
def test_pod_status_says(status, expected):
    facts = pod_facts(**status)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_termination_without_an_exit_code_does_not_look_like_success():
    facts = pod_facts(phase="Failed", containerStatuses=[{"name": "pytorch", "state": {"terminated": {"exitCode": "zero"}}}])
    assert facts.ended.exit_code == -1


def test_job_is_read_with_its_defaults():
    facts = slim.job(
        job_body(labels={"ddp-operator.io/track": "true", "ddp-operator.io/run": "nice", "kueue.x-k8s.io/queue-name": "q"})
    ).facts
    assert facts.replicas == {"Master": 1, "Worker": 3}
    assert facts.restart_policy == {"Master": "ExitCode", "Worker": "ExitCode"}
    assert facts.claims == ("demo-checkpoints",)
    assert (facts.is_tracked, facts.run, facts.queue, facts.clean_pod_policy, facts.generation) == (True, "nice", "q", "Running", 3)
    assert facts.conditions["Running"] == ("True", "PyTorchJobRunning", "", BORN + 4)
    assert facts.suspend_manager == "ddp-operator"
    bare = slim.job(job_body(spec={"pytorchReplicaSpecs": {"worker": {}}, "elasticPolicy": {}})).facts
    assert (bare.replicas, bare.restart_policy, bare.clean_pod_policy, bare.is_elastic) == (
        {"Worker": 1},
        {"Worker": "OnFailure"},
        "None",
        True,
    )


def test_claim_sizes_are_bytes():
    facts = slim.claim(claim_body()).facts
    assert (facts.phase, facts.requested_bytes, facts.capacity_bytes) == ("Bound", 10 * GIB, 12 * GIB)


def test_run_is_read_with_spec_and_status():
    owner = [{"kind": "PyTorchJob", "name": "demo"}]
    body = run_body(spec={"policy": {"maxRestarts": 7}}, status={"phase": "Running", "restarts": {"total": 3}}, ownerReferences=owner)
    seen = slim.run(body)
    assert seen.note == ""
    assert seen.facts.spec.policy.max_restarts == 7
    assert (seen.facts.status.phase, seen.facts.status.restarts.total) == (Phase.RUNNING, 3)
    assert seen.facts.is_adopted
    assert not slim.run(run_body()).facts.is_adopted


def test_status_of_another_version_keeps_the_budgets_that_validate():
    seen = slim.run(run_body(status={"phase": "Levitating", "restarts": {"total": 3, "failures": 2}, "invented": 1}))
    assert seen.facts.status.restarts.failures == 2
    assert seen.facts.status.phase == Phase.PENDING
    assert "status.phase" in seen.note
    assert "status.invented" in seen.note


def test_spec_of_another_version_keeps_job_and_known_policy():
    seen = slim.run(run_body(spec={"policy": {"onHung": "Report", "maxRestarts": -4, "later": True}, "checkpoint": "here"}))
    assert seen.facts.spec.job_ref.name == "demo"
    assert (seen.facts.spec.policy.on_hung, seen.facts.spec.policy.max_restarts) == ("Report", 20)
    assert "spec.policy.maxRestarts" in seen.note


def test_run_that_names_no_job_is_none():
    assert slim.run(run_body(job="Not A Name")) is None


def test_equal_policies_are_kept_once():
    one, two = (slim.run(run_body(name=name, spec={"policy": {"maxRestarts": 3}})).facts.spec.policy for name in ("a", "b"))
    assert one is two


@pytest.mark.parametrize(
    ("value", "number_of_bytes"),
    [
        ("10Gi", 10 * GIB),
        ("1.5Ki", 1536),
        ("1e3", 1000),
        ("1E", min(2**53, 10**18)),
        ("500m", 1),
        ("2k", 2000),
        (7, 7),
        ("0", 0),
        ("-5Gi", 0),
        ("1e999999999", 0),
        ("9" * 5000, 0),
        ("١٢", 0),
        ("Gi", 0),
        (True, 0),
        (None, 0),
        ([], 0),
        (10**400, 2**53),
    ],
)
def test_quantities_are_rounded_up_and_bounded(value, number_of_bytes):
    assert quantity(value) == number_of_bytes


@pytest.mark.parametrize("value", ["tomorrow", "9999-99-99T00:00:00Z", "0001-01-01T00:00:00+14:00", "", None, 5, "2" * 99])
def test_no_time_is_zero(value):
    assert instant(value) == 0.0


def test_texts_lose_escapes_direction_marks_and_lone_surrogates():
    assert text("a\x1b[2Jb\u202ec\ud800\n", 100) == "a [2Jb c? "
    assert text("x" * 10**6, 8) == "x" * 8


@pytest.mark.parametrize("value", ["0.0.0.0", "224.0.0.1", "fe80::1", "::", "fe80::1%eth0", "10.0.0", "10.0.0.1/path", 5, None])
def test_no_address_of_a_pod(value):
    assert address(value) == ""
