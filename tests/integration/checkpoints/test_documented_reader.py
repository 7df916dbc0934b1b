"""The page about checkpoints tells the truth: its reader reads, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_checkpoints import commit, edited, tensors_of

from ddp_trainer.checkpoint.manifest import FORMAT_VERSION, Manifest
from ddp_trainer.checkpoint.store import CheckpointStore

PAGE = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    """What the page's programs define."""
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, scope)
    return scope


@pytest.fixture(scope="module")
def read_newest(page):
    return page["read_newest"]


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        commit(made, step)
    return made


def reads(found, step):
    manifest, parts = found
    expected = tensors_of(step)
    read = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return manifest["step"] == step and read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


def test_the_documented_reader_reads_the_newest(read_newest, store):
    assert reads(read_newest(store.root), 2)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [None, b"", b"x"])
def test_the_documented_reader_passes_over_a_bad_one(read_newest, store, name, content):
    path = store.folder(2) / name
    path.unlink() if content is None else path.write_bytes(content)
    assert reads(read_newest(store.root), 1)


def test_the_documented_reader_passes_over_a_manifest_with_a_flipped_byte(read_newest, store):
    path = store.folder(2) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    assert reads(read_newest(store.root), 1)


def test_the_documented_reader_refuses_another_version_and_finds_nothing_in_nothing(read_newest, store, tmp_path):
    path = store.folder(2) / "manifest.json"
    path.write_bytes(edited(path.read_bytes(), format_version=9))
    with pytest.raises(AssertionError, match="of another format"):
        read_newest(store.root)
    assert read_newest(tmp_path / "nothing") is None


def test_the_documented_loop_goes_on_from_what_it_left_and_the_documented_reader_reads_that(page, tmp_path):
    assert [page["train_a_little"](tmp_path, step) for step in (5, 7, 7)] == [0, 5, 7]
    manifest, parts = page["read_newest"](tmp_path)
    assert (manifest["step"], parts["model"]["weight"].tolist()) == (7, [7.0] * 3)
    damaged = tmp_path / "step-000000007" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert page["train_a_little"](tmp_path, 9) == 5


def test_the_page_names_every_key_of_the_manifest_and_no_other():
    table = PAGE.partition("| key | meaning |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*Manifest.model_fields, "sha256"}
    assert f"format version {FORMAT_VERSION}" in PAGE
