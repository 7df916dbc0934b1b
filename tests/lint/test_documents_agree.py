"""Documents that repeat the code's tables say the same as the code."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from ddp_operator.api.trainingrun import CheckpointSpec
from ddp_trainer.config import FaultToleranceSection, RunConfig
from ddp_trainer.errors import EXITS
from ddp_trainer.telemetry.events import KINDS
from ddp_trainer.telemetry.metrics import METRICS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FAULTS = REPOSITORY / "docs" / "fault-tolerance.md"


def anchors(page):
    """The places of a page that a link may name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leaves(section, prefix):
    """Every key below a part of the schema, and the part itself."""
    yield prefix
    for name, field in section.model_fields.items():
        yield from leaves(field.annotation, f"{prefix}.{name}") if hasattr(field.annotation, "model_fields") else [f"{prefix}.{name}"]


@pytest.mark.parametrize("end", EXITS, ids=lambda end: end.cause)
def test_every_exit_stands_in_the_page_about_exit_codes(end):
    row = f"| {end.code} | {end.cause} | {end.meaning} | {'yes' if end.retried else 'no'} |"
    assert row in (REPOSITORY / "docs" / "exit-codes.md").read_text().splitlines()


def test_the_reading_list_names_files_that_exist_and_begin_with_a_docstring():
    readme = (REPOSITORY / "README.md").read_text()
    listed = re.findall(r"^\d+\. `([^`]+\.py)`", readme, flags=re.MULTILINE)
    assert len(listed) > 5
    for path in listed:
        assert (REPOSITORY / path).read_text().startswith('"""'), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_readme_leads_to_every_page():
    readme = (REPOSITORY / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("end", EXITS, ids=lambda end: end.cause)
def test_the_page_about_faults_says_how_every_ending_comes_about(end):
    assert re.search(rf"^\| {end.cause} \| {end.code} \| \S.* \|$", FAULTS.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("key", FaultToleranceSection.model_fields)
def test_the_page_about_faults_has_every_key_with_its_default(key):
    default = FaultToleranceSection.model_fields[key].default
    assert re.search(rf"^\| `{key}` \| {re.escape(str(default))} \| \S.* \|$", FAULTS.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_the_configuration_that_a_page_names_exist(page):
    known = {leaf for name, field in RunConfig.model_fields.items() for leaf in leaves(field.annotation, name)}
    values = yaml.safe_load((REPOSITORY / "helm" / "values.yaml").read_text())
    known |= {f"{name}.{key}" for name, below in values.items() if isinstance(below, dict) for key in below}
    known |= {f"checkpoint.{to_camel(key)}" for key in CheckpointSpec.model_fields}  # of a TrainingRun, on the operator's page
    sections = "|".join(RunConfig.model_fields)
    named = re.findall(rf"(?:`|--set )(?:config\.)?((?:{sections})\.\w+)", page.read_text())
    assert {key for key in named if not key.endswith(".py")} <= known


@pytest.mark.parametrize("key", ["every_seconds", "memory_every_steps", "mtbf_seconds", "mirror_url", "keep"])
def test_the_page_about_faults_leads_to_the_key_of_each_tier(key):
    assert f"`checkpoint.{key}" in FAULTS.read_text()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_page_about_observing_has_every_metric(metric):
    row = f"| `{metric.name}` | {metric.type} | {', '.join(metric.labels) or '-'} | {metric.meaning} |"
    assert row in (REPOSITORY / "docs" / "observing.md").read_text().splitlines()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_page_about_observing_has_every_event(kind):
    row = f"| `{kind.name}` | {kind.meaning} | {', '.join(f'`{field}`' for field in kind.fields)} |"
    assert row in (REPOSITORY / "docs" / "observing.md").read_text().splitlines()


def test_the_environment_is_read_by_the_command_line_only():
    allowed = {"cli.py": "the one reader", "zygote.py": "sets a child's environment", "cache.py": "finds the user's cache folder"}
    readers = {p.name for p in (REPOSITORY / "trainer").rglob("*.py") if re.search(r"os\.(environ|getenv)", p.read_text())}
    assert readers <= allowed.keys()
