"""The operator's part of the chart: what it may do, that releases do not meet, and that its bounds come after the trainer's own."""

import json

import pytest
import yaml
from chart import CHART, case_values, pods, template

from ddp_operator.api.trainingrun import Policy, TrainingRun
from ddp_operator.decide import durations
from ddp_operator.settings import Settings
from ddp_trainer.config import DistributedSection, FaultToleranceSection

CPU = {"gpusPerReplica": 0}
TRACK = "ddp-operator.io/track"


def rules(render):
    return [
        (group, resource, frozenset(rule["verbs"]), tuple(rule.get("resourceNames", [])))
        for item in render.of("operator")
        if item["kind"] in {"Role", "ClusterRole"}
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]


def run(tmp_path, values=None):
    return template(tmp_path, CPU | (values or {})).one("TrainingRun")


def seconds(text):
    assert text.endswith("s")
    return int(text[:-1])


def environment(render):
    container = render.one("Deployment", "operator")["spec"]["template"]["spec"]["containers"][0]
    return {item["name"]: item.get("value") or item.get("valueFrom") for item in container["env"]}


@pytest.mark.parametrize("is_wide", [False, True])
def test_it_may_do_this_and_nothing_else(is_wide, tmp_path):
    render = template(tmp_path, CPU | {"operator": {"clusterWide": is_wide}})
    allowed = [
        ("ddp-operator.io", "trainingruns", frozenset({"get", "list", "watch", "create"}), ()),
        ("ddp-operator.io", "trainingruns/status", frozenset({"update"}), ()),
        ("kubeflow.org", "pytorchjobs", frozenset({"get", "list", "watch", "patch"}), ()),
        ("", "pods", frozenset({"list", "watch", "delete"}), ()),
        ("", "persistentvolumeclaims", frozenset({"list", "watch"}), ()),
        ("", "events", frozenset({"create"}), ()),
        ("coordination.k8s.io", "leases", frozenset({"create"}), ()),
        ("coordination.k8s.io", "leases", frozenset({"get", "update"}), ("ddp-operator",)),
    ]
    assert sorted(rules(render), key=str) == sorted(allowed, key=str)


def test_without_adoption_it_may_create_nothing_but_events_and_its_lease(tmp_path):
    creating = {resource for _, resource, verbs, _ in rules(template(tmp_path, {"operator": {"adopt": False}})) if "create" in verbs}
    assert creating == {"events", "leases"}


@pytest.mark.parametrize("is_wide", [False, True])
def test_every_role_is_bound_to_its_account_and_to_nobody_else(is_wide, tmp_path):
    render = template(tmp_path, {"operator": {"clusterWide": is_wide}}, arguments=("-n", "team"))
    account = render.one("ServiceAccount", "operator")["metadata"]["name"]
    bindings = [item for item in render.objects if item["kind"].endswith("Binding")]
    roles = {(item["kind"], item["metadata"]["name"]) for item in render.objects if item["kind"] in {"Role", "ClusterRole"}}
    assert {(item["roleRef"]["kind"], item["roleRef"]["name"]) for item in bindings} == roles
    assert all(item["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}] for item in bindings)
    assert render.one("Deployment", "operator")["spec"]["template"]["spec"]["serviceAccountName"] == account
    assert [kind for kind, _ in roles].count("ClusterRole") == int(is_wide)


def test_it_watches_its_own_namespace_unless_it_is_for_the_cluster(tmp_path):
    arguments = ("-n", "team")
    assert environment(template(tmp_path, {}, arguments=arguments))["DDP_OPERATOR__NAMESPACES"] == "team"
    assert environment(template(tmp_path, {"operator": {"clusterWide": True}}, arguments=arguments))["DDP_OPERATOR__NAMESPACES"] is None


def test_every_variable_is_a_setting(tmp_path):
    known = {f"DDP_OPERATOR__{name.upper()}" for name in Settings.model_fields}
    assert set(environment(template(tmp_path, case_values("everything")))) <= known


def test_operators_of_a_namespace_share_one_lease_and_no_other_name(tmp_path):
    one, two = (template(tmp_path, CPU, release=name) for name in ("one", "two"))
    assert environment(one)["DDP_OPERATOR__LEASE_NAME"] == environment(two)["DDP_OPERATOR__LEASE_NAME"]
    assert not {(o["kind"], o["metadata"]["name"]) for o in one.objects} & {(o["kind"], o["metadata"]["name"]) for o in two.objects}


def test_cluster_wide_names_differ_between_releases_of_all_namespaces(tmp_path):
    names = [
        item["metadata"]["name"]
        for release, namespace in [("b-c", "a"), ("c", "a-b"), ("c", "a"), ("b-c", "a-b")]
        for item in template(
            tmp_path, {"fullnameOverride": "same", "operator": {"clusterWide": True}}, release=release, arguments=("-n", namespace)
        ).objects
        if item["kind"] == "ClusterRole"
    ]
    assert len(set(names)) == len(names) == 4


@pytest.mark.parametrize("release", ["a" * 53, "a" * 52 + "b", "my.release", "123"])
def test_its_name_is_a_dns_label_and_no_other_releases(release, tmp_path):
    name = template(tmp_path, CPU, release=release).one("Service", "operator")["metadata"]["name"]
    assert len(name) <= 63
    assert name[0].isalpha()
    assert "." not in name
    other = template(tmp_path, CPU, release="a" * 50 + "z").one("Service", "operator")["metadata"]["name"]
    assert name != other


def test_its_pods_are_none_of_the_runs(tmp_path):
    """Whoever reaches the ports of a run can run code in it, and the policy opens them to pods with the run's label."""
    render = template(tmp_path, CPU)
    (operator,) = [pod for name, pod in pods(render.objects) if name == "operator"]
    assert "ddp-operator.io/run" not in operator["metadata"]["labels"]
    assert not render.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= operator["metadata"]["labels"].items()


@pytest.mark.parametrize("is_wide", [False, True])
def test_it_reaches_the_telemetry_of_the_runs_and_they_let_it_in(is_wide, tmp_path):
    render = template(tmp_path, CPU | {"operator": {"clusterWide": is_wide}})
    labels = render.one("Deployment", "operator")["spec"]["template"]["metadata"]["labels"]
    name = {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}
    rules_in = render.one("NetworkPolicy")["spec"]["ingress"]
    (inwards,) = [rule for rule in rules_in if any(peer["podSelector"].get("matchLabels") == name for peer in rule["from"])]
    assert inwards["ports"] == [{"port": "telemetry", "protocol": "TCP"}]
    outwards = [rule for rule in render.one("NetworkPolicy", "operator")["spec"]["egress"] if rule["ports"] == inwards["ports"]]
    (peer,) = outwards[0]["to"]
    assert ("namespaceSelector" in peer) is is_wide


@pytest.mark.parametrize(("values", "ports"), [({}, [443, 6443]), ({"apiServerPorts": [443, 16443]}, [443, 16443])])
def test_it_reaches_the_api_server_on_the_ports_that_the_values_name(values, ports, tmp_path):
    rules_out = template(tmp_path, CPU | {"operator": values}).one("NetworkPolicy", "operator")["spec"]["egress"]
    assert [rule["ports"] for rule in rules_out if "to" not in rule] == [[{"port": port, "protocol": "TCP"} for port in ports]]


@pytest.mark.parametrize("ports", [[], [0], [70_000], ["https"], [443, 443]])
def test_ports_that_would_cut_it_off_or_that_no_policy_takes_are_refused(ports, tmp_path):
    refused = template(tmp_path, CPU | {"operator": {"apiServerPorts": ports}})
    assert refused.code != 0
    assert "apiServerPorts" in refused.error


def test_nothing_of_its_selector_changes_with_a_version_or_a_value(tmp_path):
    """A Deployment's selector cannot be changed: an upgrade would be refused."""
    selectors = [
        template(tmp_path, values).one("Deployment", "operator")["spec"]["selector"] for values in ({}, CPU, case_values("everything"))
    ]
    assert selectors[0] == selectors[1] == selectors[2]
    assert "version" not in json.dumps(selectors[0])


def test_the_training_run_names_the_job_and_its_checkpoints(tmp_path):
    render = template(tmp_path, CPU, release="demo")
    found = render.one("TrainingRun")
    assert found["metadata"]["name"] == "demo"
    assert found["spec"]["jobRef"] == {"name": render.one("PyTorchJob")["metadata"]["name"]}
    assert found["spec"]["checkpoint"]["claimName"] == render.one("PersistentVolumeClaim")["metadata"]["name"]
    assert found["spec"]["checkpoint"]["path"] == json.loads(render.one("ConfigMap")["data"]["config.json"])["run"]["name"]


@pytest.mark.parametrize("case", ["default", "everything"])
def test_the_training_run_is_one_that_the_models_take(case, tmp_path):
    TrainingRun.model_validate({"spec": template(tmp_path, case_values(case)).one("TrainingRun")["spec"]})


def test_every_number_of_the_policy_is_written_as_a_number(tmp_path):
    """Helm reads numbers as floats, and prints a million as 1e+06."""
    policy = {"maxRestarts": 10_000, "maxPreemptions": 100_000, "activeDeadlineSeconds": 100_000_000, "pendingDeadlineSeconds": 2_000_000,
              "checkpointStaleAfterSeconds": 3_000_000, "hungAfterSeconds": 500_000, "nodeLostAfterSeconds": 86_000}  # fmt: skip
    spec = run(tmp_path, {"policy": policy})["spec"]
    found = spec["policy"]
    assert (found["maxRestarts"], found["maxPreemptions"]) == (10_000, 100_000)
    assert [found["activeDeadline"], found["pendingDeadline"], found["hungAfter"]] == ["100000000s", "2000000s", "500000s"]
    assert spec["checkpoint"]["staleAfter"] == "3000000s"
    assert found["nodeLostAfter"] == "86060s"


@pytest.mark.parametrize(
    ("values", "longest"),
    [
        ({}, 900),
        ({"config": {"fault_tolerance": {"start_limit_seconds": 30}}}, 600),
        ({"config": {"fault_tolerance": {"start_limit_seconds": 1800.5}}}, 1801),
        ({"config": {"fault_tolerance": {"start_limit_seconds": 30, "save_limit_seconds": 700, "evaluate_limit_seconds": 750}}}, 750),
        ({"config": {"distributed": {"peer_timeout_seconds": 4000}}}, 4000),
        ({"job": {"terminationGracePeriodSeconds": 3600}}, 3840),
    ],
)
def test_a_run_is_called_hung_only_after_all_that_bounds_the_trainers_silence(values, longest, tmp_path):
    assert seconds(run(tmp_path, values)["spec"]["policy"]["hungAfter"]) == longest + 60
    refused = template(tmp_path, CPU | values | {"policy": {"hungAfterSeconds": longest}})
    assert refused.code != 0
    assert f"policy.hungAfterSeconds {longest} is within the {longest} s that the trainer may be silent by its own bounds" in refused.error
    assert seconds(run(tmp_path, values | {"policy": {"hungAfterSeconds": longest + 1}})["spec"]["policy"]["hungAfter"]) == longest + 1


def test_the_trainers_defaults_that_the_chart_repeats_are_the_trainers(tmp_path):
    text = (CHART / "templates/_operator.tpl").read_text()
    both = FaultToleranceSection().model_dump() | DistributedSection().model_dump()
    for key in ("start_limit_seconds", "evaluate_limit_seconds", "save_limit_seconds", "peer_timeout_seconds", "hang_floor_seconds"):
        assert f'"{key}" {both[key]:g}' in text


def test_budgets_and_node_bounds_come_after_the_trainers_and_kubernetes_own(tmp_path):
    policy = run(tmp_path, {"policy": {"noProgressRestarts": 7, "maxRestarts": 12, "nodeLostAfterSeconds": 45}})["spec"]["policy"]
    assert (policy["noProgressRestarts"], policy["maxRestarts"], policy["nodeLostAfter"]) == (9, 12, "105s")


@pytest.mark.parametrize(("every", "stale"), [(15, 600), (None, 600), ("auto", 600), (1000, 3000)])
def test_a_checkpoint_is_stale_after_three_missed_ones(every, stale, tmp_path):
    values = {"config": {"checkpoint": {"every_seconds": every, "every_steps": 10}}}
    assert seconds(run(tmp_path, values)["spec"]["checkpoint"]["staleAfter"]) == stale


@pytest.mark.parametrize(
    ("values", "has_run"),
    [
        ({}, True),
        ({"operator": {"enabled": False}}, False),
        ({"operator": {"enabled": False}, "trainingRun": {"enabled": True}}, True),
        ({"trainingRun": {"enabled": False}}, False),
    ],
)
def test_a_job_has_a_training_run_or_else_the_label_that_has_it_adopted(values, has_run, tmp_path):
    """Both at once would race: an operator could adopt the job before Helm makes the run of the same name, and Helm would fail."""
    render = template(tmp_path, CPU | values)
    assert ("TrainingRun" in {item["kind"] for item in render.objects}) is has_run
    assert (render.one("PyTorchJob")["metadata"]["labels"].get(TRACK) == "true") is not has_run


def test_silences_are_compared_with_the_bound_that_an_adopted_job_really_gets(tmp_path):
    adopted = durations.seconds(Policy().hung_after)
    values = CPU | {"trainingRun": {"enabled": False}}
    assert template(tmp_path, values | {"config": {"fault_tolerance": {"start_limit_seconds": adopted - 1}}}).code == 0
    refused = template(tmp_path, values | {"config": {"fault_tolerance": {"start_limit_seconds": adopted}}})
    assert f"adopts the job with its default hungAfter of {adopted:.0f} s" in refused.error
    assert template(tmp_path, CPU | {"config": {"fault_tolerance": {"start_limit_seconds": adopted}}}).code == 0


def test_the_definition_of_the_training_run_comes_with_the_chart():
    document = yaml.safe_load((CHART / "crds/trainingruns.yaml").read_text())
    assert document["metadata"]["name"] == "trainingruns.ddp-operator.io"


def test_no_object_of_the_operator_is_kept_when_the_release_goes(tmp_path):
    for item in template(tmp_path, case_values("everything")).of("operator"):
        assert "annotations" not in item["metadata"]
        assert "finalizers" not in item["metadata"]
