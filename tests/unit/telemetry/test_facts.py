"""The facts page, within one process."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.errors import DataError
from ddp_trainer.telemetry import facts as facts_module
from ddp_trainer.telemetry.facts import CELL_BYTES, FactsPage

ESSENTIAL = {"rank": 3, "pid": 77, "phase": "training", "step": 12, "total_steps": 99, "attempt": 2, "updated_at": 1.5}


@pytest.fixture
def page(tmp_path: Path):
    made = FactsPage.create(tmp_path / "facts", slots=2)
    yield made
    made.close()


def test_a_slot_that_was_never_written_reads_as_none(page):
    assert page.read(0) is None


def test_the_newest_facts_win_and_slots_are_apart(page):
    for step in range(5):
        page.write(0, {"step": step})
    page.write(1, {"step": 100})
    assert page.read(0) == {"step": 4}
    assert page.read(1) == {"step": 100}


def test_two_mappings_of_a_page_see_the_same_facts(page):
    other = FactsPage.open(page.path)
    other.write(0, {"step": 1})
    page.write(0, {"step": 2})
    other.write(0, {"step": 3})
    assert page.read(0) == other.read(0) == {"step": 3}
    other.close()


def test_a_cleared_slot_is_forgotten_and_can_be_used_again(page):
    page.write(0, {"step": 1})
    page.write(0, {"step": 2})
    page.clear(0)
    assert page.read(0) is None
    page.write(0, {"step": 3})
    assert page.read(0) == {"step": 3}


def test_a_torn_newest_cell_leaves_the_facts_before_it_readable(page):
    page.write(0, {"step": 1})
    page.write(0, {"step": 2})
    newest = max((0, 1), key=lambda cell: page._header(0, cell)[0])
    start = page._start(0, newest)
    page._memory[start + 20] ^= 0xFF
    assert page.read(0) == {"step": 1}


def test_a_slot_torn_in_both_cells_reads_as_none_after_bounded_tries(page):
    for step in (1, 2):
        page.write(0, {"step": step})
    for cell in (0, 1):
        page._memory[page._start(0, cell) + 20] ^= 0xFF
    assert page.read(0) is None


def test_facts_too_large_for_a_slot_lose_their_largest_optional_fields_only(page):
    page.write(0, {**ESSENTIAL, "note": "x" * CELL_BYTES, "loss": 1.25})
    assert page.read(0) == {**ESSENTIAL, "loss": 1.25}


def test_values_without_a_json_form_are_written_as_text_rather_than_raise(page):
    page.write(0, {"step": 1, "device": Path("/dev/x")})
    assert page.read(0) == {"step": 1, "device": "/dev/x"}


def test_create_replaces_an_older_page_under_the_same_name(page):
    page.write(0, {"step": 1})
    fresh = FactsPage.create(page.path, slots=1)
    assert fresh.read(0) is None
    fresh.close()


def test_opening_something_else_is_refused_with_its_name(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(DataError, match=r"other is not a facts page"):
        FactsPage.open(path)


def test_opening_a_page_of_another_size_is_refused(page):
    with page.path.open("r+b") as file:
        file.truncate(CELL_BYTES)
    with pytest.raises(DataError, match="not a facts page"):
        FactsPage.open(page.path)


def test_a_missing_page_is_refused_with_what_makes_it(tmp_path):
    with pytest.raises(DataError, match=r"agent makes it"):
        FactsPage.open(tmp_path / "none")


def test_a_page_that_has_no_room_is_an_error_and_not_a_later_bus_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(facts_module.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left.*larger /dev/shm"):
        FactsPage.create(tmp_path / "facts", slots=2)
    assert list(tmp_path.iterdir()) == []


def test_a_slot_outside_the_page_is_refused(page):
    with pytest.raises(IndexError, match="slot 2"):
        page.write(2, {})


def test_unlink_removes_the_file_and_may_be_called_twice(page):
    page.unlink()
    page.unlink()
    assert not page.path.exists()
    page.write(0, {"step": 1})
    assert page.read(0) == {"step": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=8), min_size=1, max_size=5))
def test_whatever_json_is_written_last_is_what_is_read(tmp_path_factory, documents):
    page = FactsPage.create(tmp_path_factory.mktemp("page") / "facts", slots=1)
    for document in documents:
        page.write(0, document)
        assert page.read(0) == json.loads(json.dumps(document))
    page.close()
