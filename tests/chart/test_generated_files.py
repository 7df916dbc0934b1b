"""Generated files are as their generator makes them: presets, schema, the table of values, manifests/."""

import subprocess
import sys

import yaml
from chart import CHART, ROOT


def test_nothing_has_drifted_from_its_source():
    done = subprocess.run(
        [sys.executable, "manifests/render.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_value_is_documented_and_known_to_the_schema():
    import json

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    sections = [key for key in values if schema["properties"][key].get("properties") and key != "resources"]
    paths = [key for key in values if key not in sections] + [f"{key}.{below}" for key in sections for below in values[key]]
    assert [path for path in paths if f"| `{path}` |" not in readme] == []
    assert {key for key in schema["properties"] if key not in values} == {"global"}
