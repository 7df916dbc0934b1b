"""What `helm install` prints: commands for this release that do what they say."""

import os
import subprocess

import pytest
import yaml
from chart import CHART, HELMS


def can_dry_run(helm):
    """Helm 3 asks a cluster even for a dry run."""
    return subprocess.run([helm, "version", "--short"], check=True, capture_output=True, text=True, timeout=60).stdout.startswith("v4")


@pytest.fixture(scope="module")
def helm():
    found = [name for name in HELMS if can_dry_run(name)]
    if not found:
        pytest.skip("only Helm 4 prints the notes without a cluster")
    return found[0]


@pytest.fixture
def notes(helm, tmp_path):
    def print_notes(values=None):
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values or {}))
        command = [helm, "install", "ddp-demo", str(CHART), "-n", "team", "--dry-run=client", "-f", str(tmp_path / "values.yaml")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env={**os.environ, "KUBECONFIG": os.devnull})
        return done.stdout.split("NOTES:\n")[1], done.stdout

    return print_notes


def test_commands_are_those_of_this_release(notes):
    said, render = notes({"topology": "workers"})
    first = next(line for line in said.splitlines() if " logs -f " in line).split()[5]
    job = next(item for item in yaml.safe_load_all(render.split("MANIFEST:\n")[1].split("NOTES:")[0]) if item["kind"] == "PyTorchJob")
    assert first == f"{job['metadata']['name']}-worker-0"
    assert "kubectl -n team get pytorchjobs,pods -l ddp-operator.io/run=ddp-demo" in said
    assert "helm -n team test ddp-demo" in said
    assert ".state.terminated.message" in said


def test_an_upgrade_keeps_the_other_values_and_says_what_must_stay(notes):
    said, _ = notes({"replicas": 2})
    assert "helm -n team upgrade ddp-demo helm/ --reuse-values --set replicas=4" in said
    assert "exit code 3" in said
    assert "helm -n team rollback ddp-demo" in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "It stays after `helm uninstall`"),
        ({"checkpoint": {"keep": False}}, "which `helm uninstall` deletes"),
        ({"checkpoint": {"existingClaim": "mine"}}, "the existing claim mine"),
        ({"job": {"enabled": False}}, "nothing trains in this release"),
    ],
)
def test_the_claims_fate_is_told(notes, values, words):
    assert words in notes(values)[0]


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ({"clusterWide": True}, "there must be no other operator"),
        ({}, "there must be no operator for the whole cluster"),
        ({"enabled": False}, None),
    ],
)
def test_who_installs_an_operator_is_told_how_to_see_another_leader(notes, operator, words):
    said = notes({"operator": operator})[0]
    assert ("kubectl get leases -A --field-selector metadata.name=ddp-operator" in said) is (words is not None)
    assert words is None or words in said
