"""The rows of `make chaos` that matter most, as tests: one for each way in which a run can be hit."""

import pytest
from cases import CASES
from drill import Drill

SHORT = (
    "rank",
    "one_of_a_pair",
    "agent_0",
    "writer",
    "stopped_rank_quickly",
    "stopped_agent",
    "first_agent",
    "everybody",
    "one_window",
    "flipped",
    "not_finite",
    "half_the_world",
    "never_back",
)


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    drill = Drill(tmp_path_factory.mktemp("chaos"))
    yield drill
    drill.close()


@pytest.mark.parametrize("case", SHORT)
def test_the_run_comes_out_as_expected(drill, case):
    try:
        rows = list(CASES[case](drill))
    finally:
        drill.clear()
    assert rows
    assert [row.line for row in rows if not row.good] == []
