"""Documents that repeat the code's tables say the same as the code."""

import re
from pathlib import Path

import pytest

from ddp_trainer.errors import EXITS

REPOSITORY = Path(__file__).resolve().parents[2]


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


def test_relative_links_of_the_readme_lead_somewhere():
    readme = (REPOSITORY / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (REPOSITORY / target).exists(), target


def test_the_environment_is_read_by_the_command_line_only():
    allowed = {"cli.py": "the one reader", "zygote.py": "sets a child's environment", "cache.py": "finds the user's cache folder"}
    readers = {p.name for p in (REPOSITORY / "trainer").rglob("*.py") if re.search(r"os\.(environ|getenv)", p.read_text())}
    assert readers <= allowed.keys()
