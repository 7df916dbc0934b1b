"""A corpus of values that cannot work, each with the words that its refusal must hold."""

import pytest
from chart import HELMS, template

SPREAD = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}]

REFUSED_WITH_A_SENTENCE = {
    "ranks that do not divide the global batch": (
        {"replicas": 3},
        "3 ranks (replicas 3 x 1 processes) cannot share 8 micro-batches equally",
    ),
    "a global batch that cannot be cut": ({"config": {"data": {"global_batch": 60}}}, "make it a multiple of 8"),
    "nccl without GPUs": (
        {"gpusPerReplica": 0, "config": {"distributed": {"backend": "nccl"}}},
        "but gpusPerReplica is 0; set gpusPerReplica to at least 1",
    ),
    "cuda without GPUs": ({"gpusPerReplica": 0, "config": {"distributed": {"device": "cuda"}}}, "device to cpu and backend to gloo"),
    "two nccl ranks on one GPU": ({"procsPerReplica": 2}, "nccl refuses two ranks on one GPU"),
    "a node-bound claim in pods that must spread": (
        {"topology": "workers", "topologySpreadConstraints": SPREAD},
        "binds them all to one node",
    ),
    "the same by anti-affinity": ({"topology": "workers", "affinity": {"podAntiAffinity": {"x": []}}}, "binds them all to one node"),
    "a one-pod claim in all pods": (
        {"topology": "workers", "checkpoint": {"accessModes": ["ReadWriteOncePod"]}},
        "can be mounted by one pod",
    ),
    "restricted with a master": ({"podSecurity": {"level": "restricted"}}, "set topology to workers"),
    "two sources of data": ({"data": {"claim": "images", "download": True}}, "the data comes from one of them"),
    "a data path without a claim": ({"data": {"path": "images"}}, "name the claim"),
    "a preset that does not exist": ({"preset": "demos"}, 'preset "demos" does not exist; known are smoke, demo and cluster-16'),
    "a node count in config": ({"config": {"distributed": {"nodes": 2}}}, "config.distributed.nodes is the chart's business: set replicas"),
    "an upper bound of nodes in config": ({"config": {"distributed": {"max_nodes": 4}}}, "max_nodes is the chart's business: set replicas"),
    "a grace of its own in config": (
        {"config": {"fault_tolerance": {"preemption_grace_seconds": 60}}},
        "set job.terminationGracePeriodSeconds",
    ),
    "more nodes than pods": ({"config": {"distributed": {"min_nodes": 5}}}, "min_nodes 5 is more than replicas 4"),
    "a run name in config": ({"config": {"run": {"name": "x"}}}, "the release's name is the run's name"),
    "a place for the cache in config": ({"config": {"data": {"seed_cache_dir": "/x"}}}, "where the image's builder puts decoded images"),
    "a download that config overrules": (
        {"data": {"download": True}, "config": {"data": {"source": "sample"}}},
        "data.download is true, but config.data.source is sample; drop one of them",
    ),
    "workers that give up before their master may begin": (
        {"config": {"distributed": {"peer_timeout_seconds": 359}}},
        "peer_timeout_seconds 359 is too short beside fault_tolerance.lock_wait_seconds 300",
    ),
    "a master that waits longer than its workers": (
        {"config": {"fault_tolerance": {"lock_wait_seconds": 1000}, "distributed": {"peer_timeout_seconds": 1000}}},
        "make it at least 1060, or leave it out",
    ),
    "no job, and its claim deleted": (
        {"job": {"enabled": False}, "checkpoint": {"keep": False}},
        "would delete the claim, and every checkpoint on it",
    ),
    "silences longer than an adopted job's hungAfter": (
        {"trainingRun": {"enabled": False}, "config": {"fault_tolerance": {"start_limit_seconds": 1200}}},
        "adopts the job with its default hungAfter of 1200 s",
    ),
    "a run that saves nothing": ({"config": {"checkpoint": {"every_seconds": 0, "every_steps": None}}}, "every_seconds"),
}
REFUSED_BY_THE_SCHEMA = {
    "an unknown key": ({"replica": 4}, "replica"),
    "an unknown key below": ({"checkpoint": {"sise": "1Gi"}}, "sise"),
    "an unknown key of the run's configuration": ({"config": {"optim": {"learning_rate": 1}}}, "learning_rate"),
    "a word for a number": ({"replicas": "four"}, "replicas"),
    "no pods at all": ({"replicas": 0}, "replicas"),
    "negative GPUs": ({"gpusPerReplica": -1}, "gpusPerReplica"),
    "an unknown topology": ({"topology": "ring"}, "topology"),
    "a size without sense": ({"checkpoint": {"size": "big"}}, "size"),
    "an access mode that does not exist": ({"checkpoint": {"accessModes": ["RWO"]}}, "accessModes"),
    "root": ({"podSecurity": {"runAsUser": 0}}, "runAsUser"),
    "a tag in the repository": ({"image": {"repository": "trainer:1"}}, "repository"),
    "half a digest": ({"image": {"digest": "sha256:abc"}}, "digest"),
    "a negative learning rate": ({"config": {"optim": {"lr": -1}}}, "lr"),
    "a word that is no interval": ({"config": {"checkpoint": {"every_seconds": "often"}}}, "every_seconds"),
    "one checkpoint only": ({"config": {"checkpoint": {"keep": 1}}}, "keep"),
    "a grace period too short for a checkpoint": ({"job": {"terminationGracePeriodSeconds": 1}}, "terminationGracePeriodSeconds"),
    "a path out of the claim": ({"data": {"claim": "images", "path": "../x"}}, "path"),
    "a name too long": ({"fullnameOverride": "a" * 43}, "fullnameOverride"),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("case", REFUSED_WITH_A_SENTENCE | REFUSED_BY_THE_SCHEMA)
def test_is_refused_with_words_that_help(case, helm, tmp_path):
    values, words = (REFUSED_WITH_A_SENTENCE | REFUSED_BY_THE_SCHEMA)[case]
    render = template(tmp_path, values, helm=helm)
    assert render.code != 0
    assert words in render.error


@pytest.mark.parametrize("helm", HELMS)
def test_the_guard_is_refused_where_kubernetes_has_no_admission_policies(helm, tmp_path):
    old = ("--kube-version", "1.29.9")
    guarded = template(tmp_path, {"guard": {"enabled": True}}, helm=helm, arguments=old)
    assert "guard.enabled needs Kubernetes 1.30 or newer, which has ValidatingAdmissionPolicy, but this is v1.29.9" in guarded.error
    assert template(tmp_path, helm=helm, arguments=old).code == 0
    assert template(tmp_path, {"guard": {"enabled": True}}, helm=helm, arguments=("--kube-version", "1.30.0")).code == 0


def test_a_release_name_that_is_too_long_is_refused_by_helm(tmp_path):
    assert "53" in template(tmp_path, release="a" * 54).error
