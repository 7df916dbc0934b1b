"""Unusable data: one sentence that names the culprit and the way out."""

from __future__ import annotations

import pickle
import shutil
import struct
import tarfile
import urllib.error

import pytest
import torchvision

from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.sources import SAMPLE, resolve
from ddp_trainer.errors import DATA_ERROR, DataError


def refusal(source, cache) -> str:
    with pytest.raises(DataError) as caught:
        open_or_build(resolve(str(source), cache), 32, cache, lambda *_: None)
    assert caught.value.exit is DATA_ERROR
    assert not list(cache.glob("decoded/*/meta.json"))  # nothing half-done is left to be found by the next start
    assert not list(cache.glob("decoded/.tmp-*"))
    return str(caught.value)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_missing_path(tmp_path, cache):
    assert "does not exist" in (message := refusal(tmp_path / "nowhere", cache))
    assert str(tmp_path / "nowhere") in message
    assert "give sample, download, or the path" in message


def test_a_folder_without_images(tmp_path, cache):
    (tmp_path / "other").mkdir()
    assert "give the folder above train and test" in refusal(tmp_path / "other", cache)


def test_no_images_at_all(tmp_path, cache):
    (tmp_path / "tree/train").mkdir(parents=True)
    (tmp_path / "tree/test").mkdir()
    assert "holds no images; expected train/<class>/<image>" in refusal(tmp_path / "tree", cache)


def test_no_test_folder(tree, cache):
    shutil.rmtree(tree / "test")
    assert "has no folder 'test'" in refusal(tree, cache)


def test_an_empty_class_folder_is_named(tree, cache):
    for image in (tree / "train/frog").iterdir():
        image.unlink()
    assert "the class folder train/frog holds no images" in refusal(tree, cache)


def test_an_empty_class_folder_in_a_tar_is_named(tree, cache, tmp_path):
    (tree / "test/zebra").mkdir()
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        tar.add(tree, "tree")
    assert "the class folder test/zebra holds no images" in refusal(tmp_path / "tree.tar", cache)


def test_classes_that_differ_between_train_and_test_are_named(tree, cache):
    (tree / "test/frog").rename(tree / "test/toad")
    assert "only train has frog and only test has toad" in refusal(tree, cache)


def test_a_truncated_image_is_named(tree, cache):
    culprit = tree / "train/ship/0003.jpg"
    culprit.write_bytes(culprit.read_bytes()[:-100])
    assert str(culprit) in (message := refusal(tree, cache))
    assert "truncated" in message


def test_a_file_that_is_no_image_is_named(tree, cache):
    (tree / "train/ship/0003.jpg").write_bytes(b"<html>not found</html>")
    assert "train/ship/0003.jpg: it is of no image format known here" in refusal(tree, cache)


def test_a_truncated_image_in_a_tar_is_named_with_its_archive(tree, cache, tmp_path):
    culprit = tree / "test/cat/0001.jpg"
    culprit.write_bytes(culprit.read_bytes()[:400])
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as tar:
        tar.add(tree, ".")
    assert "tree.tar.gz:test/cat/0001.jpg" in refusal(tmp_path / "tree.tar.gz", cache)


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.99999])
def test_a_truncated_compressed_tar_is_named(tmp_path, cache, kept):
    content = SAMPLE.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: int(len(content) * kept)])
    assert "cut.tar.gz is truncated or damaged after" in (message := refusal(tmp_path / "cut.tar.gz", cache))
    assert "copy or download it again" in message


@pytest.mark.parametrize("place", ["in a header", "in an image", "between two members"])
def test_a_plain_tar_cut_anywhere_is_noticed(tree, tmp_path, cache, place):
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tree, ".")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        member = [m for m in tar if m.isfile()][-2]
        end = {"in a header": member.offset + 100, "in an image": member.offset_data + 100, "between two members": member.offset}[place]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:end])
    assert "cut.tar is truncated or damaged" in refusal(tmp_path / "cut.tar", cache)


def test_a_flipped_bit_in_a_compressed_tar_is_noticed(tmp_path, cache):
    content = bytearray(SAMPLE.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rotten.tar.gz").write_bytes(content)
    assert "rotten.tar.gz is truncated or damaged" in refusal(tmp_path / "rotten.tar.gz", cache)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file, say" * 100], ids=["empty", "other"])
def test_a_file_that_is_no_tar(tmp_path, cache, content):
    (tmp_path / "data.zip").write_bytes(content)
    assert "data.zip" in refusal(tmp_path / "data.zip", cache)


def test_an_incomplete_cifar_folder(tmp_path, cache):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))
    assert "has no file 'data_batch_1'" in refusal(folder, cache)


def test_a_truncated_cifar_batch_is_named(tmp_path, cache):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}, protocol=2))
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"labels": [0]}, protocol=2)[:-5])
    assert "data_batch_1 is not a CIFAR-10 batch, or is truncated" in refusal(folder, cache)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("File not found or corrupted."), TimeoutError("timed out")]
)
def test_a_failed_download_says_what_to_do_without_a_network(cache, monkeypatch, error):
    def download(root, *, download):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", download)
    message = refusal("download", cache)
    assert "downloading CIFAR-10" in message
    assert "data.source=sample" in message


def test_a_cache_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write decoded images to .*file.*set data.cache_dir to a writable folder"):
        open_or_build(resolve("sample", tmp_path), 32, tmp_path / "file", lambda *_: None)


def test_a_decompression_bomb_is_refused(tree, cache):
    # a BMP header of 54 bytes that announces 40,000 x 40,000 pixels
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tree / "train/cat/bomb.bmp").write_bytes(header)
    assert "bomb.bmp" in (message := refusal(tree, cache))
    assert "decompression bomb" in message
