"""What the store trusts: only what verifies, newest first; the rest is set aside with the reason and never loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from small_checkpoints import edited

from ddp_trainer.checkpoint import loading, manifest
from ddp_trainer.checkpoint.manifest import MANIFEST_NAME, BadCheckpointError, Manifest, folder_name, read_manifest, step_of, verify
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.errors import DataError

TENSORS_NAME = "model.safetensors"


def edit(folder, **changes):
    path = folder / MANIFEST_NAME
    path.write_bytes(edited(path.read_bytes(), **changes))


def flip_a_byte(folder):
    path = folder / TENSORS_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / TENSORS_NAME
    path.write_bytes(path.read_bytes()[:-1])


def put(folder, make):
    path = folder / TENSORS_NAME
    path.rename(folder / "model.copy")
    make(path)


def rename_an_entry(folder, name):
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    edit(folder, files=files | {name: files[TENSORS_NAME]})


DAMAGES = {
    "one flipped byte": (flip_a_byte, "SHA-256 differs"),
    "a truncated file": (truncate, "bytes, the manifest says"),
    "a missing file": (lambda folder: (folder / TENSORS_NAME).unlink(), f"{TENSORS_NAME}: No such file"),
    "an empty file": (lambda folder: (folder / TENSORS_NAME).write_bytes(b""), "0 bytes, the manifest says"),
    "no manifest": (lambda folder: (folder / MANIFEST_NAME).unlink(), "manifest unreadable: No such file"),
    "an empty manifest": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b""), "manifest invalid"),
    "a torn manifest": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b'{"step": 2, "epo'), "manifest invalid"),
    "a manifest that is no mapping": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"[]"), "manifest invalid"),
    "a manifest in another encoding": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00"), "manifest invalid"),
    "the manifest of another step": (lambda folder: edit(folder, step=7), "manifest says step 7"),
    "an unknown key": (lambda folder: edit(folder, extra=1), "manifest invalid"),
    "a missing small file": (lambda folder: (folder / "state.json").unlink(), "state.json: No such file"),
    "a small file that was edited": (
        lambda folder: (folder / "state.json").write_bytes(b'{"history": [3]}'),
        "state.json: SHA-256 differs",
    ),
    "a folder in a file's place": (lambda folder: put(folder, Path.mkdir), "not a regular file"),
    "a pipe in a file's place": (lambda folder: put(folder, os.mkfifo), "not a regular file"),
    "a link in a file's place": (lambda folder: put(folder, lambda path: path.symlink_to("model.copy")), "not a regular file"),
    "a path out of the folder": (lambda folder: rename_an_entry(folder, "../../../etc/passwd"), "is not a plain file name"),
    "an absolute path": (lambda folder: rename_an_entry(folder, "/etc/passwd"), "is not a plain file name"),
    "the folder above": (lambda folder: rename_an_entry(folder, ".."), "is not a plain file name"),
    "a name with a zero byte": (lambda folder: rename_an_entry(folder, "a\0b"), "is not a plain file name"),
    "an empty name": (lambda folder: rename_an_entry(folder, ""), "is not a plain file name"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_quarantined_with_the_reason_and_the_previous_one_loads(store, save, holds, damage):
    hurt, reason = DAMAGES[damage]
    save(store, 1)
    save(store, 2)
    hurt(store.folder(2))
    loaded = store.load_newest()
    assert holds(loaded, 1)
    ((step, told),) = loaded.quarantined
    assert step == 2
    assert reason in told
    kept = store.root / "quarantine" / folder_name(2)
    assert (kept / "reason.txt").read_text(encoding="utf-8") == told + "\n"
    assert store.steps() == [1]


def test_whichever_byte_of_the_manifest_is_flipped_it_is_bad(store, save):
    save(store, 1)
    path = store.folder(1) / MANIFEST_NAME
    written = path.read_bytes()
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises(BadCheckpointError, match="manifest"):
            read_manifest(store.folder(1))
    path.write_bytes(written + b" ")
    with pytest.raises(BadCheckpointError, match="SHA-256 differs"):
        read_manifest(store.folder(1))


def test_a_manifest_that_has_lost_its_hash_is_bad(store, save):
    save(store, 1)
    path = store.folder(1) / MANIFEST_NAME
    document = json.loads(path.read_text())
    document.pop("sha256")
    path.write_text(json.dumps(document, indent=1))
    with pytest.raises(BadCheckpointError, match="does not end with its SHA-256"):
        read_manifest(store.folder(1))


@pytest.mark.parametrize("damage", DAMAGES)
def test_looking_finds_the_same_damage_and_moves_nothing(store, save, damage):
    hurt, reason = DAMAGES[damage]
    save(store, 1)
    save(store, 2)
    hurt(store.folder(2))
    (bad_step, bad, told), (good_step, good, _) = store.verified()
    assert (bad_step, bad, good_step) == (2, None, 1)
    assert reason in told
    assert good.step == 1
    assert store.steps() == [1, 2]


def write_with_its_hash(folder, name, content):
    """A file that is what its writer wrote, which was wrong."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    edit(folder, files=files | {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (TENSORS_NAME, b"\xff" * 100, "header"),
        (TENSORS_NAME, b"", "header"),
        ("state.json", b"{", "Expecting"),
        ("state.json", b"\xff{", "decode"),
        ("state.json", b"[1]", "not a mapping"),
    ],
)
def test_files_that_verify_and_hold_no_state_are_quarantined_too(store, save, holds, name, content, reason):
    save(store, 1)
    save(store, 2)
    write_with_its_hash(store.folder(2), name, content)
    loaded = store.load_newest()
    assert holds(loaded, 1)
    assert reason.lower() in loaded.quarantined[0][1].lower()


def test_a_checkpoint_that_lists_no_tensors_is_quarantined(store, save, holds):
    save(store, 1)
    save(store, 2)
    edit(store.folder(2), files={})
    loaded = store.load_newest()
    assert holds(loaded, 1)
    assert loaded.quarantined == ((2, "there are no tensors in the manifest"),)


def test_a_checkpoint_without_a_small_state_has_an_empty_one(store, save):
    save(store, 1)
    files = json.loads((store.folder(1) / MANIFEST_NAME).read_text())["files"]
    del files["state.json"]
    edit(store.folder(1), files=files)
    assert store.load_newest().extra == {}


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("torn", [False, True])
def test_a_checkpoint_of_another_version_is_refused_with_a_sentence_and_stays_where_it_is(store, save, version, torn):
    save(store, 1)
    save(store, 2)
    edit(store.folder(2), format_version=version, a_field_of_that_version=1)
    if version == 2:  # whose manifests did not end with a hash
        path = store.folder(2) / MANIFEST_NAME
        document = json.loads(path.read_text())
        document.pop("sha256")
        path.write_text(json.dumps(document))
    if torn:
        (store.folder(2) / TENSORS_NAME).unlink()  # this program cannot know what that version's files are
    with pytest.raises(
        DataError, match=rf"step-000000002 is of format version {version} and this program reads 3; use the version that wrote it"
    ):
        store.load_newest()
    assert store.steps() == [1, 2]
    assert not (store.root / "quarantine").exists()
    (_, manifest, reason), (_, good, _) = store.verified()
    assert manifest is None
    assert f"format version {version}" in reason
    assert good.step == 1


def test_only_newer_checkpoints_are_looked_at_when_something_newer_is_asked_for(store, save, holds):
    for step in (1, 2, 3):
        save(store, step)
    flip_a_byte(store.folder(1))
    flip_a_byte(store.folder(3))
    assert store.load_newest(newer_than=3) is None
    assert store.steps() == [1, 2, 3]
    assert holds(store.load_newest(newer_than=1), 2)
    assert store.load_newest(newer_than=2) is None  # 3 lies in quarantine: what is in memory is used, and that is no error
    assert store.steps() == [1, 2]


def test_nothing_outside_the_folder_is_opened_for_a_manifest_that_points_there(store, save, tmp_path):
    save(store, 1)
    outside = tmp_path / "outside"
    os.mkfifo(outside)  # opening it would block for ever
    rename_an_entry(store.folder(1), "../../outside")
    with pytest.raises(BadCheckpointError, match="plain file name"):
        verify(store.folder(1))


def test_several_damaged_checkpoints_are_all_set_aside_newest_first(store, save, holds):
    for step in (1, 2, 3):
        save(store, step)
    flip_a_byte(store.folder(3))
    truncate(store.folder(2))
    loaded = store.load_newest()
    assert holds(loaded, 1)
    assert [step for step, _ in loaded.quarantined] == [3, 2]


def test_a_second_bad_checkpoint_of_one_step_does_not_replace_the_first_in_quarantine(store, save):
    save(store, 1)
    for _ in range(3):
        save(store, 2)
        flip_a_byte(store.folder(2))
        store.load_newest()
    names = {path.name for path in (store.root / "quarantine").iterdir()}
    assert names == {folder_name(2), f"{folder_name(2)}.1", f"{folder_name(2)}.2"}


def test_a_run_whose_every_checkpoint_is_bad_does_not_start_afresh_in_silence(store, save):
    save(store, 1)
    save(store, 2)
    flip_a_byte(store.folder(1))
    truncate(store.folder(2))
    for _ in range(2):  # the second start of the same run finds an empty folder, and must not take it for a new run
        with pytest.raises(DataError, match=r"none of the 2 checkpoints .* quarantine.* run\.resume=never"):
            store.load_newest()


def test_a_directory_without_checkpoints_is_a_fresh_start(store, tmp_path):
    assert store.load_newest() is None
    assert CheckpointStore(tmp_path / "absent").load_newest() is None
    assert CheckpointStore(tmp_path / "absent").steps() == []


@pytest.mark.parametrize("content", [None, "", "step-000000009\n", "step-000000001\n", "../../x", "\0"])
def test_the_latest_file_is_a_hint_that_loading_does_not_need(store, save, holds, content):
    save(store, 1)
    save(store, 2)
    latest = store.root / "latest"
    assert latest.read_text() == "step-000000002\n"
    latest.unlink() if content is None else latest.write_text(content)
    assert holds(store.load_newest(), 2)


def test_folders_that_only_look_like_checkpoints_are_left_alone(store, save, holds):
    save(store, 1)
    strangers = ["step-5", "step-²", "step-", "step-0000000005", "step-00000000x", "steps", "backup-000000009", "quarantine"]
    for name in strangers:
        (store.root / name).mkdir()
    (store.root / "step-000000008").write_text("a file")
    assert store.steps() == [1]
    assert holds(store.load_newest(), 1)
    assert all((store.root / name).is_dir() for name in strangers)


@pytest.mark.parametrize("step", [0, 1, 999_999_999, 1_000_000_000])
def test_a_folders_name_tells_its_step_and_sorts_by_it(tmp_path, step):
    assert step_of(tmp_path / folder_name(step)) == step
    assert folder_name(9) < folder_name(10) < folder_name(100)


def test_a_manifest_survives_being_written_and_read(store, save):
    written = save(store, 42)
    read = read_manifest(store.folder(42))
    assert read == written == verify(store.folder(42))
    assert Manifest.model_validate_json(read.model_dump_json()) == read
    assert read.total_bytes == sum(path.stat().st_size for path in store.folder(42).iterdir() if path.name != MANIFEST_NAME)


@pytest.fixture
def failing_reads(monkeypatch):
    """The next `n` reads of the model's file fail as a network volume's do."""
    left = [0]
    real = manifest.sha256_of

    def read(path, *hashed):
        if path.name == TENSORS_NAME and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *hashed)

    monkeypatch.setattr(manifest, "sha256_of", read)
    monkeypatch.setattr(loading, "READ_PAUSE_SECONDS", 0.0)
    return lambda n: left.__setitem__(0, n)


def test_a_hiccup_of_the_volume_is_waited_out(store, save, holds, failing_reads):
    save(store, 1)
    failing_reads(loading.READ_ATTEMPTS - 1)
    assert holds(store.load_newest(), 1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_no_empty_one_and_is_tried_again(store, save, monkeypatch, number):
    save(store, 1)
    monkeypatch.setattr(loading, "READ_PAUSE_SECONDS", 0.0)
    real, failing = os.scandir, []

    def scandir(path):
        if failing.pop() if failing else False:
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    failing[:] = [True] * (loading.READ_ATTEMPTS - 1)
    assert store.steps() == [1]
    failing[:] = [True] * loading.READ_ATTEMPTS
    with pytest.raises(DataError, match=r"checkpoints.* cannot be read"):
        store.steps()


def test_a_volume_that_cannot_be_read_costs_no_checkpoint(store, save, holds, failing_reads):
    for step in (1, 2, 3):
        save(store, step)
    failing_reads(loading.READ_ATTEMPTS)
    with pytest.raises(DataError, match=r"step-000000003 cannot be read: .*Input/output error; nothing was moved"):
        store.load_newest()
    assert store.steps() == [1, 2, 3]
    assert holds(store.load_newest(), 3)
