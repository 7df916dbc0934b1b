"""Reading a progress document from somebody who means harm, or from another version."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.errors import DataError
from ddp_trainer.telemetry.document import MAX_BYTES, Progress, clean, parse

GOOD = Progress(run="demo", attempt=1, phase="training", step=5, updated_at=10.0, world_size=2)


def changed(**values):
    return json.dumps({**json.loads(GOOD.to_bytes()), **values}).encode()


def test_what_was_written_is_read_back():
    assert parse(GOOD.to_bytes()) == GOOD


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"", "not understood"),
        (b"<html>busy</html>", "Invalid JSON"),
        (b"[" * 60_000, "not understood"),
        (b'{"a":' * 10_000, "not understood"),
        (b"\xff\xfe", "not understood"),
        (b"null", "not understood"),
        (b" " * (MAX_BYTES + 1), "larger than 65536 bytes"),
        (changed(surprise=1), "surprise"),
        (changed(step="5"), "step"),
        (changed(step=-1), "step"),
        (changed(step=10**30), "step"),
        (changed(step=True), "step"),
        (changed(loss=float("nan")), "loss"),
        (changed(loss=1e308), "loss"),
        (changed(phase="resting"), "phase"),
        (changed(run="x" * 257), "run"),
        (changed(run="\x1b[2Jdemo"), "run"),
        (changed(note="two\nlines"), "note"),
        (changed(goodput_ratio=1.5), "goodput_ratio"),
        (changed(ranks=[{"rank": 0}]), "ranks.0"),
        (changed(gpus=[{"index": i, "name": "g"} for i in range(33)]), "gpus"),
    ],
)
def test_a_bad_document_is_refused_and_says_what_is_wrong(document, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        parse(document)
    sentence = str(caught.value)
    assert len(sentence) < 600
    assert sentence.isprintable()


def test_another_schema_version_is_named():
    with pytest.raises(DataError, match="schema version 2 and this program reads 1"):
        parse(changed(schema_version=2, brand_new={}))


def test_a_key_with_terminal_codes_is_not_echoed():
    with pytest.raises(DataError) as caught:
        parse(changed(**{"\x1b[31mred": 1}))
    assert str(caught.value).isprintable()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_crash(document):
    with pytest.raises(DataError):
        parse(document)


@given(st.text())
def test_cleaned_text_is_always_accepted(text):
    assert Progress(run=clean(text), attempt=1, phase="training", updated_at=1.0, world_size=1).to_bytes()
