"""Who reaches whom: pods of one run each other, scrapers and helm test the telemetry port, and the web only where the data is there."""

import pytest
from chart import pods, template

CPU = {"gpusPerReplica": 0}
WEB = [{"port": 80, "protocol": "TCP"}, {"port": 443, "protocol": "TCP"}]


def policy(tmp_path, values=None, release="ddp-demo"):
    return template(tmp_path, CPU | (values or {}), release=release).one("NetworkPolicy")


def reaches_the_web(policy):
    return {"ports": WEB} in policy["spec"]["egress"]


@pytest.mark.parametrize(
    ("values", "opens"),
    [
        ({}, False),
        ({"preset": ""}, False),
        ({"preset": "cluster-16"}, True),
        ({"data": {"download": True}}, True),
        ({"config": {"data": {"source": "download"}}}, True),
        ({"networkPolicy": {"allowWebEgress": True}}, True),
        ({"config": {"checkpoint": {"mirror_url": "s3://bucket/run"}}}, True),
        ({"config": {"checkpoint": {"mirror_url": None}}}, False),
        ({"preset": "cluster-16", "config": {"data": {"source": "sample"}}}, False),
        ({"preset": "cluster-16", "data": {"claim": "images"}}, False),
    ],
)
def test_the_web_is_open_where_the_data_or_a_second_home_is_there(values, opens, tmp_path):
    assert reaches_the_web(policy(tmp_path, values)) is opens


def test_the_policy_outlives_an_upgrade_and_knows_the_old_pods_and_the_new(tmp_path):
    renders = [template(tmp_path, CPU | {"replicas": replicas}) for replicas in (4, 8)]
    old, new = (render.one("NetworkPolicy") for render in renders)
    assert old == new
    assert renders[0].one("PyTorchJob")["metadata"]["name"] != renders[1].one("PyTorchJob")["metadata"]["name"]
    for render in renders:
        for role, pod in pods([render.one("PyTorchJob")]):
            assert new["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), role


def test_every_port_is_open_to_pods_of_the_same_run_and_to_nobody_else(tmp_path):
    run = {"podSelector": {"matchLabels": {"ddp-operator.io/run": "ddp-demo"}}}
    spec = policy(tmp_path)["spec"]
    assert spec["podSelector"] == run["podSelector"]
    assert [rule for rule in spec["ingress"] if "ports" not in rule] == [{"from": [run]}]
    assert [rule for rule in spec["egress"] if "ports" not in rule] == [{"to": [run]}]
    assert {port["port"] for rule in spec["ingress"] for port in rule.get("ports", [])} == {"telemetry"}


def test_two_releases_in_a_namespace_do_not_reach_each_other(tmp_path):
    assert policy(tmp_path, release="one")["spec"]["podSelector"] != policy(tmp_path, release="two")["spec"]["podSelector"]
