"""The cache of decoded images: built once, whatever starts together, dies or rots."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddp_trainer.data.cache import Decoded, default_cache_dir, open_or_build, verify
from ddp_trainer.data.lock import exclusive
from ddp_trainer.data.sources import resolve
from ddp_trainer.errors import DataError

RANK = """
import os, signal, sys
from pathlib import Path
from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.sources import resolve
cache, die = Path(sys.argv[1]), sys.argv[2] == "die"
decoded = []
def report(what, done, total):
    if what == "decoding images":
        decoded.append(done)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
result = open_or_build(resolve("sample", cache), 32, cache, report)
print(bool(decoded), result.train.fingerprint)
"""


def rank(cache: Path, die: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RANK, str(cache), "die" if die else "live"], stdout=subprocess.PIPE, text=True)


def decode(source, cache, report=lambda *_: None, size=32) -> Decoded:
    return open_or_build(resolve(str(source), cache), size, cache, report)


def decodings(source, cache, size=32) -> int:
    """How many images one opening decoded."""
    done = [0]
    decode(source, cache, lambda what, n, _: done.append(n) if what == "decoding images" else None, size)
    return max(done)


def test_ranks_that_start_together_decode_once_and_see_the_same(tmp_path, decoded):
    ranks = [rank(tmp_path) for _ in range(4)]
    answers = [process.communicate(timeout=120)[0].split() for process in ranks]
    assert sorted(answer[0] for answer in answers) == ["False", "False", "False", "True"]
    assert {answer[1] for answer in answers} == {decoded.train.fingerprint}


def test_a_rank_killed_while_it_decodes_leaves_nothing_that_counts(tmp_path, decoded):
    victim = rank(tmp_path, die=True)
    victim.communicate(timeout=120)
    assert victim.returncode == -signal.SIGKILL
    assert [path.name.startswith(".tmp-") for path in (tmp_path / "decoded").iterdir() if path.is_dir()] == [True]
    assert decode("sample", tmp_path).train.fingerprint == decoded.train.fingerprint
    assert not list((tmp_path / "decoded").glob(".tmp-*"))


def test_the_second_opening_decodes_nothing(tmp_path, tree):
    assert decodings(tree, tmp_path) == 36
    assert decodings(tree, tmp_path) == 0


def test_progress_counts_up_to_the_number_of_images(tmp_path):
    seen = []
    decode("sample", tmp_path, lambda what, done, total: seen.append((done, total)) if what == "decoding images" else None)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (6000, 6000)


def test_another_image_size_is_another_cache(tmp_path, tree):
    assert decodings(tree, tmp_path, size=32) == decodings(tree, tmp_path, size=16) == 36
    assert decode(tree, tmp_path, size=16).train.pixels.shape == (24, 16, 16, 3)


def test_an_image_added_to_a_folder_is_noticed(tmp_path, tree):
    decode(tree, tmp_path / "cache")
    folder = tree / "train/cat"
    before = folder.stat().st_mtime_ns
    (folder / "new.jpg").write_bytes((folder / "0000.jpg").read_bytes())
    os.utime(folder, ns=(before + 1, before + 1))  # the file system's clock may be coarser than this test is fast
    assert len(decode(tree, tmp_path / "cache").train.labels) == 25


def damage(folder: Path, how: str) -> None:
    pixels, labels, meta = folder / "train.pixels", folder / "test.labels", folder / "meta.json"
    match how:
        case "pixels cut short":
            os.truncate(pixels, pixels.stat().st_size - 1)
        case "pixels missing":
            pixels.unlink()
        case "pixels zeroed":
            pixels.write_bytes(bytes(pixels.stat().st_size))
        case "label changed":
            content = bytearray(labels.read_bytes())
            content[0] ^= 1
            labels.write_bytes(content)
        case "meta cut short":
            meta.write_bytes(meta.read_bytes()[:-20])
        case "meta changed":
            meta.write_text(meta.read_text().replace("cat", "dog"))
        case "meta missing":
            meta.unlink()


@pytest.mark.parametrize(
    "how", ["pixels cut short", "pixels missing", "pixels zeroed", "label changed", "meta cut short", "meta changed", "meta missing"]
)
def test_a_damaged_cache_is_rebuilt_and_said(tmp_path, tree, caplog, how):
    whole = decode(tree, tmp_path)
    pixels = hashlib.sha256(whole.train.pixels).hexdigest()
    damage(whole.folder, how)
    again = decode(tree, tmp_path)
    assert hashlib.sha256(again.train.pixels).hexdigest() == pixels
    assert again.classes == ("cat", "frog", "ship")
    assert again.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert "are damaged" in caplog.text
    assert verify(again.folder) == []


@pytest.mark.parametrize("place", [0, 33_333, 70_000])
def test_full_verification_finds_a_single_flipped_bit_anywhere(tmp_path, tree, place):
    folder = decode(tree, tmp_path).folder
    pixels = folder / "train.pixels"
    content = bytearray(pixels.read_bytes())
    content[place] ^= 1
    pixels.write_bytes(content)
    assert verify(folder) == ["train.pixels"]


def test_training_cannot_change_the_cache(tmp_path, tree):
    first = decode(tree, tmp_path)
    first.train.pixels[:] = 0
    assert verify(first.folder) == []
    assert decode(tree, tmp_path).train.pixels.any()


def test_mean_and_deviation_are_those_of_the_training_pixels(decoded):
    np.testing.assert_allclose(decoded.mean, decoded.train.pixels.mean((0, 1, 2), dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(decoded.std, decoded.train.pixels.std((0, 1, 2), dtype=np.float64), rtol=1e-9)


def test_waiting_for_another_process_is_bounded_and_told(tmp_path):
    told = []
    with (
        exclusive(tmp_path / "lock", "nobody", lambda *_: None),
        pytest.raises(DataError, match=r"waited 0 s for a slow rank, which holds .*lock; end it, or set another data.cache_dir"),
        exclusive(tmp_path / "lock", "a slow rank", lambda what, *_: told.append(what), wait_seconds=0.1),
    ):
        pass
    assert told[0] == "waiting for a slow rank"
    started = time.monotonic()
    with exclusive(tmp_path / "lock", "nobody", lambda *_: None, wait_seconds=60):
        assert time.monotonic() - started < 60  # free again


def test_the_cache_lies_where_the_desktop_convention_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "ddp-trainer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/ddp-trainer")
