"""What the training operator, Kubernetes and the trainer need of the PyTorchJob, claim by claim."""

import json

import pytest
from chart import CHART, template

from ddp_trainer import config as configuration

CPU = {"gpusPerReplica": 0}


def pods(job):
    return {role: spec["template"] for role, spec in job["spec"]["pytorchReplicaSpecs"].items()}


def config(render):
    return json.loads(render.one("ConfigMap")["data"]["config.json"])


def container(template_):
    return template_["spec"]["containers"][0]


@pytest.mark.parametrize("preset", ["", "smoke", "demo", "cluster-16"])
@pytest.mark.parametrize(("replicas", "gpus"), [(1, 0), (4, 0), (4, 1), (2, 4), (8, 1)])
def test_every_preset_gives_a_configuration_that_the_trainer_takes(preset, replicas, gpus, tmp_path):
    raw = config(template(tmp_path, {"preset": preset, "replicas": replicas, "gpusPerReplica": gpus}))
    checked = configuration.validate(raw, "the chart's ConfigMap")
    assert (checked.distributed.nodes, checked.world_size) == (replicas, replicas * max(1, gpus))
    assert (checked.run.name, checked.telemetry.host) == ("ddp-demo", "0.0.0.0")


def test_growing_keeps_the_runs_identity(tmp_path):
    digests = set()
    for replicas in (1, 2, 4, 8):
        digests.add(configuration.validate(config(template(tmp_path, CPU | {"replicas": replicas})), "x").digest())
    assert len(digests) == 1


def test_the_users_config_wins_over_preset_and_chart_also_with_false_zero_and_null(tmp_path):
    values = CPU | {"config": {"data": {"flip": False, "cutout": 0, "micro_batches": 4}, "optim": {"momentum": 0, "nesterov": False}}}
    raw = config(template(tmp_path, values))
    assert (raw["data"]["flip"], raw["data"]["cutout"], raw["data"]["micro_batches"]) == (False, 0, 4)
    assert (raw["optim"]["momentum"], raw["optim"]["nesterov"]) == (0, False)


@pytest.mark.parametrize(
    ("resources", "procs", "threads"),
    [
        ({"requests": {"cpu": "250m"}}, 1, 1),
        ({"requests": {"cpu": "8"}}, 1, 8),
        ({"requests": {"cpu": 2}, "limits": {"cpu": 8}}, 2, 4),
        ({"limits": {"cpu": "7500m"}}, 1, 7),
        ({"limits": {"cpu": "2.5"}}, 1, 2),
        ({"limits": {"memory": "1Gi"}, "requests": None}, 1, 1),
    ],
)
def test_cpu_threads_are_what_the_pod_was_promised(resources, procs, threads, tmp_path):
    values = CPU | {"resources": {"requests": {"cpu": None}, **resources}, "procsPerReplica": procs, "replicas": 1}
    assert config(template(tmp_path, values))["precision"]["threads_per_rank"] == threads


ON_CPU = {"distributed": {"device": "cpu", "backend": "gloo"}}


@pytest.mark.parametrize(
    ("values", "threads"),
    [
        ({"gpusPerReplica": 1}, None),
        ({"gpusPerReplica": 1, "config": ON_CPU}, 6),
        ({"gpusPerReplica": 2, "replicas": 2, "config": ON_CPU}, 3),
        ({"gpusPerReplica": 0, "config": {"distributed": {"device": "auto"}}}, 6),
        ({"gpusPerReplica": 0, "config": {"precision": {"threads_per_rank": 2}}}, 2),
        ({"gpusPerReplica": 0, "preset": "smoke"}, 6),
    ],
)
def test_the_device_that_results_decides_whether_cpu_threads_are_counted(values, threads, tmp_path):
    raw = config(template(tmp_path, {"resources": {"requests": {"cpu": "6"}}, **values}))
    assert raw["precision"].get("threads_per_rank") == threads


@pytest.mark.parametrize(
    ("values", "lock_wait", "peer_timeout"),
    [
        ({}, 300, 360),
        ({"job": {"terminationGracePeriodSeconds": 15}}, 195, 300),
        ({"job": {"terminationGracePeriodSeconds": 900}}, 1080, 1140),
        ({"config": {"fault_tolerance": {"lock_wait_seconds": 500.5}}}, 500.5, 561),
        ({"config": {"distributed": {"peer_timeout_seconds": 4000}}}, 300, 4000),
    ],
)
def test_workers_wait_for_their_master_longer_than_it_waits_for_its_predecessor(values, lock_wait, peer_timeout, tmp_path):
    checked = configuration.validate(config(template(tmp_path, CPU | values)), "x")
    assert checked.fault_tolerance.lock_wait_seconds == lock_wait
    assert checked.distributed.peer_timeout_seconds == peer_timeout >= lock_wait + 60


@pytest.mark.parametrize(("period", "grace"), [(15, 7), (30, 15), (60, 30), (120, 90), (900, 870)])
def test_a_node_has_left_before_the_kubelet_kills_it(period, grace, tmp_path):
    render = template(tmp_path, CPU | {"job": {"terminationGracePeriodSeconds": period}})
    assert configuration.validate(config(render), "x").fault_tolerance.preemption_grace_seconds == grace < period
    assert {pod["spec"]["terminationGracePeriodSeconds"] for pod in pods(render.one("PyTorchJob")).values()} == {period}


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"every_seconds": "auto", "mtbf_seconds": 7200, "max_lost_seconds": 60},
        {"every_seconds": "auto", "every_steps": None},
        {"every_seconds": None, "every_steps": 100},
        {"memory_every_steps": "auto"},
        {"memory_every_steps": 0, "keep_every": 1000, "keep_best": "accuracy"},
        {"write_megabytes_per_second": 50.5, "mirror_url": "s3://bucket/run", "mirror_every": 3},
    ],
)
def test_the_trainer_is_given_the_users_checkpoint_policy(checkpoint, tmp_path):
    raw = config(template(tmp_path, CPU | {"config": {"checkpoint": checkpoint}}))
    assert checkpoint.items() <= raw["checkpoint"].items()
    configuration.validate(raw, "the chart's ConfigMap")


@pytest.mark.parametrize("distributed", [{"min_nodes": 2}, {"min_nodes": 4, "rejoin_wait_seconds": 5}, {"min_nodes": None}])
def test_a_job_may_be_elastic(distributed, tmp_path):
    raw = config(template(tmp_path, CPU | {"config": {"distributed": distributed}}))
    assert configuration.validate(raw, "the chart's ConfigMap").distributed.min_nodes == distributed["min_nodes"]


def test_the_default_memory_holds_a_process_and_the_masters_snapshots(tmp_path):
    process_bytes = 850 * 2**20  # ResNet-50 at batch 64 as `make bench` prints it
    state_bytes = 3 * 94 * 10**6  # of the largest model in a preset: parameters and AdamW's two moments
    for pod in pods(template(tmp_path, CPU).one("PyTorchJob")).values():
        request = container(pod)["resources"]["requests"]["memory"]
        assert int(request.removesuffix("Gi")) * 2**30 > process_bytes + 3 * state_bytes


@pytest.mark.parametrize("values", [{}, {"preset": "cluster-16"}, {"config": {"data": {"image_size": 64}}}])
def test_the_cache_can_be_written_and_what_the_image_brings_is_its_seed(values, tmp_path):
    render = template(tmp_path, CPU | values)
    data = config(render)["data"]
    assert (data["cache_dir"], data["seed_cache_dir"]) == ("/cache", "/opt/ddp/cache")
    for pod in pods(render.one("PyTorchJob")).values():
        assert {"name": "cache", "mountPath": "/cache"} in container(pod)["volumeMounts"]


@pytest.mark.parametrize("section", ["telemetry", "fault_tolerance", "data", "distributed"])
def test_a_section_that_the_chart_writes_into_may_be_the_users_too(section, tmp_path):
    mine = {"telemetry": {"log_every_steps": 3}, "fault_tolerance": {"stop_grace_seconds": 9}, "data": {"flip": False}}
    mine["distributed"] = {"collective_timeout_seconds": 77}
    raw = config(template(tmp_path, CPU | {"config": {section: mine[section]}}))
    assert mine[section].items() <= raw[section].items()


def test_the_logs_end_stands_in_for_last_words_that_could_not_be_written(tmp_path):
    for pod in pods(template(tmp_path, {}).one("PyTorchJob")).values():
        assert container(pod)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_master_is_one_and_the_rest_are_workers(tmp_path):
    job = template(tmp_path, {"replicas": 4}).one("PyTorchJob")
    specs = job["spec"]["pytorchReplicaSpecs"]
    assert {role: spec["replicas"] for role, spec in specs.items()} == {"Master": 1, "Worker": 3}
    assert {spec["restartPolicy"] for spec in specs.values()} == {"ExitCode"}
    assert job["spec"]["runPolicy"] == {"cleanPodPolicy": "Running"}


def test_one_replica_is_a_master_alone(tmp_path):
    assert list(template(tmp_path, {"replicas": 1}).one("PyTorchJob")["spec"]["pytorchReplicaSpecs"]) == ["Master"]


@pytest.mark.parametrize(
    ("values", "expected"), [({}, "1"), ({"gpusPerReplica": 4, "replicas": 2}, "4"), (CPU, "1"), (CPU | {"procsPerReplica": 2}, "2")]
)
def test_nproc_per_node_is_always_a_number(values, expected, tmp_path):
    assert template(tmp_path, values).one("PyTorchJob")["spec"]["nprocPerNode"] == expected


def test_only_the_master_mounts_the_claim(tmp_path):
    mounts = {}
    for role, pod in pods(template(tmp_path, {}).one("PyTorchJob")).items():
        volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "checkpoints")
        mounts[role] = "persistentVolumeClaim" in volume
    assert mounts == {"Master": True, "Worker": False}


def test_workers_alone_are_told_their_rank_and_the_first_ones_address(tmp_path):
    render = template(tmp_path, CPU | {"topology": "workers"})
    job = render.one("PyTorchJob")
    worker = pods(job)["Worker"]
    environment = {entry["name"]: entry for entry in container(worker)["env"]}
    assert environment["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['training.kubeflow.org/replica-index']"
    assert environment["MASTER_ADDR"]["value"] == f"{job['metadata']['name']}-worker-0"
    assert worker["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def test_a_claim_for_many_needs_no_common_node(tmp_path):
    job = template(tmp_path, CPU | {"topology": "workers", "checkpoint": {"accessModes": ["ReadWriteMany"]}}).one("PyTorchJob")
    assert "affinity" not in pods(job)["Worker"]["spec"]


def test_there_is_a_liveness_probe_and_no_other(tmp_path):
    for pod in pods(template(tmp_path, {}).one("PyTorchJob")).values():
        assert container(pod)["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert not {"readinessProbe", "startupProbe"} & set(container(pod))


def test_gpus_are_a_limit_and_their_taint_is_tolerated(tmp_path):
    pod = pods(template(tmp_path, {"gpusPerReplica": 2, "gpu": {"resourceName": "example.com/gpu"}}).one("PyTorchJob"))["Master"]
    assert container(pod)["resources"]["limits"] == {"example.com/gpu": 2}
    assert "example.com/gpu" in {toleration["key"] for toleration in pod["spec"]["tolerations"]}


def test_a_claim_that_stays_says_so_to_helm_and_argo(tmp_path):
    kept = template(tmp_path, {}).one("PersistentVolumeClaim")["metadata"]["annotations"]
    assert kept["helm.sh/resource-policy"] == "keep"
    assert "Prune=false" in kept["argocd.argoproj.io/sync-options"]
    assert "annotations" not in template(tmp_path, {"checkpoint": {"keep": False}}).one("PersistentVolumeClaim")["metadata"]


def test_a_claim_of_gpus_is_named_after_what_it_asks_for(tmp_path):
    names = set()
    for gpus, device in ((1, "gpu.nvidia.com"), (2, "gpu.nvidia.com"), (2, "mig.nvidia.com")):
        values = {"replicas": 1, "gpusPerReplica": gpus, "gpu": {"mode": "dra", "deviceClassName": device}}
        render = template(tmp_path, values)
        wanted = render.one("ResourceClaimTemplate")
        (request,) = wanted["spec"]["spec"]["devices"]["requests"]
        assert (request["exactly"]["count"], request["exactly"]["deviceClassName"]) == (gpus, device)
        (claim,) = pods(render.one("PyTorchJob"))["Master"]["spec"]["resourceClaims"]
        assert claim["resourceClaimTemplateName"] == wanted["metadata"]["name"]
        names.add(wanted["metadata"]["name"])
    assert len(names) == 3


def test_without_the_job_nothing_but_the_operator_is_rendered(tmp_path):
    alone = template(tmp_path, {"job": {"enabled": False}})
    assert alone.of("trainer") == []
    assert alone.of("operator") == template(tmp_path, {}).of("operator")
    assert template(tmp_path, {"job": {"enabled": False}, "operator": {"enabled": False}}).objects == []


def test_presets_are_the_configs(tmp_path):
    configs = {path.name: path.read_text() for path in (CHART.parent / "configs").glob("*.json")}
    assert {path.name: path.read_text() for path in (CHART / "presets").glob("*.json")} == configs
