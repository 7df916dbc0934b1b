"""The guard, as text: what it matches and what it holds fixed. That the API server evaluates it so is for the end-to-end cases."""

from chart import template

VALUES = {"gpusPerReplica": 0, "guard": {"enabled": True}}


def guard(tmp_path, release="ddp-demo", namespace="default", **values):
    render = template(tmp_path, VALUES | values, release=release, arguments=("-n", namespace))
    return render, {item["metadata"]["name"]: item["spec"] for item in render.objects if item["kind"] == "ValidatingAdmissionPolicy"}


def test_there_is_none_unless_it_is_asked_for(tmp_path):
    assert not [
        item for item in template(tmp_path, {"gpusPerReplica": 0}).objects if "Policy" in item["kind"] and "Admission" in item["kind"]
    ]


def test_each_policy_is_bound_and_denies(tmp_path):
    render, policies = guard(tmp_path)
    bindings = [item["spec"] for item in render.objects if item["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert [binding["policyName"] for binding in bindings] == [*policies]
    assert all(binding["validationActions"] == ["Deny"] for binding in bindings)


def test_names_differ_between_releases_of_all_namespaces(tmp_path):
    places = [("b-c", "a"), ("c", "a-b"), ("c", "a"), ("b-c", "a-b")]
    names = [name for release, namespace in places for name in guard(tmp_path, release, namespace, fullnameOverride="same")[1]]
    assert len(set(names)) == len(names) == 8


def test_edits_of_replica_counts_and_processes_are_refused_and_others_are_not(tmp_path):
    _, policies = guard(tmp_path)
    spec = next(spec for spec in policies.values() if spec["matchConstraints"]["resourceRules"][0]["resources"] == ["pytorchjobs"])
    assert spec["matchConstraints"]["resourceRules"][0]["operations"] == ["UPDATE"]
    assert spec["matchConstraints"]["objectSelector"] == {"matchLabels": {"ddp-operator.io/run": "ddp-demo"}}
    replicas, processes = spec["validations"]
    assert "variables.after[kind].?replicas == variables.before[kind].?replicas" in replicas["expression"]
    assert processes["expression"] == "object.spec.?nprocPerNode == oldObject.spec.?nprocPerNode"
    assert not any("suspend" in validation["expression"] for validation in spec["validations"])  # Kueue's, and the operator's


def test_scaling_is_matched_by_the_jobs_name_since_a_scale_has_no_labels(tmp_path):
    render, policies = guard(tmp_path)
    spec = next(spec for spec in policies.values() if spec["matchConstraints"]["resourceRules"][0]["resources"] == ["pytorchjobs/scale"])
    assert "objectSelector" not in spec["matchConstraints"]
    assert [condition["expression"] for condition in spec["matchConditions"]] == [
        f"request.name == '{render.one('PyTorchJob')['metadata']['name']}'"
    ]
    assert [validation["expression"] for validation in spec["validations"]] == ["object.spec.?replicas == oldObject.spec.?replicas"]


def test_a_refusal_says_what_to_do_instead(tmp_path):
    _, policies = guard(tmp_path)
    messages = [validation["message"] for spec in policies.values() for validation in spec["validations"]]
    assert len(messages) == 3
    assert all("use helm upgrade --reuse-values --set replicas=N, which makes a new job that resumes" in message for message in messages)
