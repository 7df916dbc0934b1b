"""Every object that the chart makes, in every case and both overlays, fits its kind's schema: see kinds.py for what that covers."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from chart import CASES, CRD, ROOT, case_values, needs, template
from kinds import schemas

OVERLAYS = ["cpu", "gpu"]
pytestmark = needs("kubeconform", "crd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemas")
    for kind, schema in schemas(CRD).items():
        (folder / f"{kind.lower()}.json").write_text(json.dumps(schema), encoding="utf-8")
    return folder


def conform(text, folder):
    """kubeconform's verdicts: what is wrong with each object of the text, by kind; and which kinds it saw."""
    command = ["kubeconform", "-strict", "-verbose", "-output", "json", "-schema-location", f"{folder}/{{{{.ResourceKind}}}}.json", "-"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=text, timeout=60)
    found = json.loads(done.stdout)["resources"]
    return {item["kind"]: item["msg"] for item in found if item["status"] != "statusValid"}, {item["kind"] for item in found}


def overlay(folder: Path) -> list[Path]:
    """The files of an overlay. Ours only list files and folders, which is all that is understood here."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    paths = [folder / entry for entry in kustomization["resources"]]
    return [file for path in paths for file in (overlay(path) if path.is_dir() else [path])]


@pytest.mark.parametrize("case", CASES)
def test_every_object_of_a_render_fits_its_schema(case, folder, tmp_path):
    render = template(tmp_path, case_values(case))
    wrong, kinds = conform(render.text, folder)
    assert wrong == {}
    assert kinds == {item["kind"] for item in render.objects}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_of_an_overlay_fits_its_schema(name, folder):
    files = overlay(ROOT / "manifests/overlays" / name)
    wrong, kinds = conform("\n---\n".join(path.read_text() for path in files), folder)
    assert wrong == {}
    assert kinds == {"ConfigMap", "NetworkPolicy", "PersistentVolumeClaim", "PyTorchJob", "ServiceAccount"}


def test_every_object_of_the_operators_manifests_fits_its_schema(folder):
    files = overlay(ROOT / "manifests/operator")
    own = [path.read_text() for path in files if path.name not in {"namespace.yaml", "trainingruns.yaml"}]  # kinds of no chart
    wrong, kinds = conform("\n---\n".join(own), folder)
    assert wrong == {}
    expected = {"ClusterRole", "ClusterRoleBinding", "Deployment", "NetworkPolicy", "Role", "RoleBinding", "Service", "ServiceAccount"}
    assert kinds == expected


@needs("kubectl")
@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_makes_of_an_overlay_what_its_files_say(name):
    folder = ROOT / "manifests/overlays" / name
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True, timeout=60)
    made = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
    assert made == {item["kind"]: item for item in (yaml.safe_load(path.read_text()) for path in overlay(folder))}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("PyTorchJob", "spec.runPolicy.cleanPods", "Running"),
        ("PyTorchJob", "spec.pytorchReplicaSpecs.Worker.template.spec.tolerance", []),
        ("PyTorchJob", "spec.nprocPerNode", 1),
        ("Pod", "spec.securityContext.runAsRoot", False),
        ("Pod", "spec.automountServiceAccountToken", "no"),
        ("ConfigMap", "data.number", 1),
        ("ConfigMap", "metadata.labels.app", "a b"),
        ("ServiceAccount", "token", False),
        ("PersistentVolumeClaim", "spec.accessModes", ["RWO"]),
        ("PersistentVolumeClaim", "spec.resources.requests.storage", "10GB"),
        ("NetworkPolicy", "spec.podSelector.labels", {}),
        ("ResourceClaimTemplate", "spec.spec.devices.requests", [{"name": "gpus", "deviceClassName": "x"}]),
        ("ValidatingAdmissionPolicy", "spec.validation", []),
        ("ValidatingAdmissionPolicyBinding", "spec.validationActions", ["Refuse"]),
        ("ServiceAccount", "metadata.name", 123),
        ("TrainingRun", "spec.policy.hungAfter", 960),
        ("TrainingRun", "spec.policy.onHang", "Restart"),
        ("Deployment", "spec.template.spec.readOnly", True),
        ("ClusterRole", "rules", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}]),
    ],
)
def test_a_wrong_field_would_be_noticed(kind, path, value, folder, tmp_path):
    values = case_values("everything")
    item = next(item for item in template(tmp_path, values).objects if item["kind"] == kind)
    *parents, last = path.split(".")
    node = item
    for parent in parents:
        node = node[parent]
    node[last] = value
    wrong, _ = conform(yaml.safe_dump(item), folder)
    assert last in wrong[kind]
