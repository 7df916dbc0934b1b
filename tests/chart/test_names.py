"""Names: a change that matters makes a new job, one that does not leaves it alone, and every pod's name stays a DNS label."""

import re

import pytest
from chart import case_values, pods, template

CPU = {"gpusPerReplica": 0}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def job_name(tmp_path, values=None, release="ddp-demo"):
    return template(tmp_path, CPU | (values or {}), release=release).one("PyTorchJob")["metadata"]["name"]


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 8},
        {"image": {"tag": "2"}},
        {"config": {"optim": {"lr": 0.2}}},
        {"podLabels": {"a": "b"}},
        {"checkpoint": {"existingClaim": "c"}},
    ],
)
def test_what_pods_see_makes_a_new_job(change, tmp_path):
    assert job_name(tmp_path, change) != job_name(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": {"size": "20Gi"}},
        {"job": {"cleanPodPolicy": "All"}},
        {"job": {"suspend": True}},
        {"networkPolicy": {"allowWebEgress": True}},
    ],
)
def test_what_pods_do_not_see_keeps_the_job(change, tmp_path):
    assert job_name(tmp_path, change) == job_name(tmp_path)


@pytest.mark.parametrize("release", ["a", "4gpus", "my.release", "a" * 53, "a" * 41 + "-b-c", "x" * 40 + "..y"[:0] + "z"])
def test_pod_names_are_dns_labels(release, tmp_path):
    pod = f"{job_name(tmp_path, release=release)}-worker-9999"
    assert DNS_1035.fullmatch(pod)
    assert len(pod) <= 63


def shape(node):
    """Types instead of values, so that two renders can be compared whatever the names in them."""
    if isinstance(node, dict):
        return {key: shape(value) for key, value in node.items()}
    return [shape(item) for item in node] if isinstance(node, list) else type(node)


@pytest.mark.parametrize("name", ["123", "1e3", "true", "null", "0x10", "1.5"])
@pytest.mark.parametrize("case", ["cpu", "everything"])
def test_a_release_or_namespace_whose_name_yaml_takes_for_something_else_stays_text(name, case, tmp_path):
    one, other = (
        template(tmp_path, case_values(case), release=release, arguments=("-n", release.replace(".", ""))) for release in ("plain", name)
    )
    assert [shape(item) for item in other.objects] == [shape(item) for item in one.objects]


def test_a_users_labels_cannot_replace_the_charts_own(tmp_path):
    own = {"app.kubernetes.io/name": "mine", "ddp-operator.io/run": "other", "team": "a"}
    job = template(tmp_path, CPU | {"podLabels": own, "job": {"labels": own, "queueName": "q"}}).one("PyTorchJob")
    for labels in (job["metadata"]["labels"], *(pod["metadata"]["labels"] for _, pod in pods([job]))):
        assert labels["app.kubernetes.io/name"] == "ddp-trainer"
        assert labels["ddp-operator.io/run"] == "ddp-demo"
        assert labels["team"] == "a"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"


def test_long_names_that_begin_alike_stay_apart(tmp_path):
    assert job_name(tmp_path, release="a" * 50 + "x") != job_name(tmp_path, release="a" * 50 + "y")


def test_two_releases_share_no_object_names(tmp_path):
    one, two = ({(o["kind"], o["metadata"]["name"]) for o in template(tmp_path, CPU, release=name).objects} for name in ("one", "two"))
    assert not one & two


def test_the_config_map_is_the_jobs_own_and_never_changes(tmp_path):
    render = template(tmp_path, CPU)
    assert render.one("ConfigMap")["metadata"]["name"] == render.one("PyTorchJob")["metadata"]["name"]
    assert render.one("ConfigMap")["immutable"] is True
