"""Status, actions and adoption against real HTTP: what is sent, and what is done if the object is not the one looked at."""

from dataclasses import replace

import pytest

from ddp_operator.act.actions import carry_out
from ddp_operator.act.adopt import NameTakenError, adopt, run_name
from ddp_operator.act.status import ConflictError, write_status
from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.api.words import Phase
from ddp_operator.decide.decision import DeletePod, ResumeJob, SuspendJob
from ddp_operator.decide.facts import JobFacts
from ddp_operator.observe import slim

RUNNING = TrainingRunStatus(phase=Phase.RUNNING, message="all is well")
BOUND = 5.0


def make_run(server, **spec):
    return slim.run(
        server.put("trainingruns", {"metadata": {"name": "demo", "namespace": "default"}, "spec": {"jobRef": {"name": "demo"}, **spec}})
    ).facts


def make_job(server, spec=None, **meta):
    spec = {"runPolicy": {"cleanPodPolicy": "None"}} if spec is None else spec
    return server.put("pytorchjobs", {"metadata": {"name": "demo", "namespace": "default", **meta}, "spec": spec})


def suspend(job, kind=SuspendJob):
    meta = job["metadata"]
    return kind(job="demo", uid=meta["uid"], generation=meta["generation"], why="a test")


async def test_a_status_is_written_once_and_nothing_but_the_status(server, api):
    facts = make_run(server)
    body = await write_status(api, facts, RUNNING, timeout_seconds=BOUND)
    assert body["status"]["phase"] == "Running"
    assert server.get("trainingruns", "demo")["spec"] == {"jobRef": {"name": "demo"}}
    again = slim.run(body).facts
    assert await write_status(api, again, RUNNING, timeout_seconds=BOUND) is None
    assert [method for method, plural, _ in server.writes] == ["PUT"]


async def test_a_status_decided_from_an_old_version_is_a_conflict(server, api):
    facts = make_run(server)
    make_run(server, checkpoint={"path": "/elsewhere"})
    with pytest.raises(ConflictError):
        await write_status(api, facts, RUNNING, timeout_seconds=BOUND)
    assert "status" not in server.get("trainingruns", "demo")


@pytest.mark.parametrize("is_made_again", [False, True])
async def test_a_status_of_a_deleted_run_is_a_conflict(server, api, is_made_again):
    facts = make_run(server)
    server.remove("trainingruns", "demo")
    if is_made_again:
        facts = replace(facts, resource_version=make_run(server).resource_version)
    with pytest.raises(ConflictError):
        await write_status(api, facts, RUNNING, timeout_seconds=BOUND)


@pytest.mark.parametrize("spec", [{"runPolicy": {"cleanPodPolicy": "None"}}, {"pytorchReplicaSpecs": {}}], ids=["policy", "no-policy"])
async def test_a_job_is_suspended_and_resumed_whether_or_not_it_has_a_run_policy(server, api, spec):
    job = await carry_out(api, "default", suspend(make_job(server, spec)), timeout_seconds=BOUND)
    assert job["spec"]["runPolicy"]["suspend"] is True
    assert {**job["spec"]["runPolicy"], "suspend": 0} == {**spec.get("runPolicy", {}), "suspend": 0}
    job = await carry_out(api, "default", suspend(job, ResumeJob), timeout_seconds=BOUND)
    assert job["spec"]["runPolicy"]["suspend"] is False


async def test_a_job_whose_status_changed_meanwhile_is_suspended_all_the_same(server, api):
    job = make_job(server)
    server.put("pytorchjobs", {**job, "status": {"conditions": []}})
    assert await carry_out(api, "default", suspend(job), timeout_seconds=BOUND)


async def test_a_job_whose_spec_was_changed_by_somebody_is_left_alone(server, api):
    for spec in ({"runPolicy": {"suspend": True}}, {}):
        job = make_job(server)
        changed = make_job(server, spec)
        with pytest.raises(ConflictError):
            await carry_out(api, "default", suspend(job, ResumeJob), timeout_seconds=BOUND)
        assert server.get("pytorchjobs", "demo") == changed


async def test_a_namesake_of_a_deleted_job_is_left_alone(server, api):
    job = make_job(server)
    server.remove("pytorchjobs", "demo")
    namesake = make_job(server)
    with pytest.raises(ConflictError):
        await carry_out(api, "default", suspend(job), timeout_seconds=BOUND)
    assert server.get("pytorchjobs", "demo") == namesake
    server.remove("pytorchjobs", "demo")
    with pytest.raises(ConflictError):
        await carry_out(api, "default", suspend(job), timeout_seconds=BOUND)


async def test_a_pod_is_deleted_only_if_it_is_the_one_that_was_meant(server, api):
    pod = server.put("pods", {"metadata": {"name": "w0", "namespace": "default"}})
    with pytest.raises(ConflictError):
        await carry_out(api, "default", DeletePod("w0", "another", 0, "a test"), timeout_seconds=BOUND)
    assert server.get("pods", "w0")
    for _ in range(2):  # gone already is as good
        await carry_out(api, "default", DeletePod("w0", pod["metadata"]["uid"], 0, "a test"), timeout_seconds=BOUND)
    assert server.get("pods", "w0") is None


@pytest.mark.parametrize(
    ("label", "name"), [("", "demo"), ("wanted", "wanted"), ("Not_A_Name", "demo"), ("a" * 60 + ".b", "a" * 60 + ".b")]
)
def test_an_adopted_run_is_called_as_its_label_says_or_as_its_job(label, name):
    assert run_name(JobFacts(name="demo", uid="u", run=label)) == name


async def test_adoption_makes_one_run_that_goes_with_its_job(server, api):
    job = JobFacts(name="demo", uid="job-uid")
    first, second = [await adopt(api, "default", job, timeout_seconds=BOUND) for _ in range(2)]
    assert first == second
    (owner,) = first["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "demo", "uid": "job-uid"}
    assert slim.run(first).facts.is_adopted


async def test_a_name_that_another_jobs_run_has_is_not_taken(server, api):
    make_run(server)
    with pytest.raises(NameTakenError, match=r"exists, for job 'demo'.*ddp-operator.io/run"):
        await adopt(api, "default", JobFacts(name="other", uid="u", run="demo"), timeout_seconds=BOUND)
    assert server.get("trainingruns", "demo")["spec"]["jobRef"]["name"] == "demo"
