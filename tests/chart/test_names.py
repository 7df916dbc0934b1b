"""Names: a change that matters makes a new job, one that does not leaves it alone, and every pod's name stays a DNS label."""

import re

import pytest
from chart import template

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


def test_long_names_that_begin_alike_stay_apart(tmp_path):
    assert job_name(tmp_path, release="a" * 50 + "x") != job_name(tmp_path, release="a" * 50 + "y")


def test_two_releases_share_no_object_names(tmp_path):
    one, two = ({(o["kind"], o["metadata"]["name"]) for o in template(tmp_path, CPU, release=name).objects} for name in ("one", "two"))
    assert not one & two


def test_the_config_map_is_the_jobs_own_and_never_changes(tmp_path):
    render = template(tmp_path, CPU)
    assert render.one("ConfigMap")["metadata"]["name"] == render.one("PyTorchJob")["metadata"]["name"]
    assert render.one("ConfigMap")["immutable"] is True
