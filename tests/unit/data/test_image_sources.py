"""The same images from a folder, a tar, torchvision's pickles, a download and the shipped sample."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.cifar_pickles import ARCHIVE_BYTES
from ddp_trainer.data.sample import cut
from ddp_trainer.data.sources import SAMPLE, resolve
from ddp_trainer.errors import DataError
from ddp_trainer.tasks.cifar10 import CLASSES

FULL = Path(__file__).parents[4] / "shared" / "data" / "cifar10-jpeg.tar.gz"
needs_full = pytest.mark.skipif(not FULL.exists(), reason=f"{FULL} is not there: the shipped sample is NOT compared with its source")


def silent(what, done, total):
    pass


def decode(source, cache, size=32):
    return open_or_build(resolve(str(source), cache), size, cache, silent)


def write_tar(path: Path, mode: str, files: dict[str, bytes], prefix: str = "") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_pickles(folder: Path, images: np.ndarray, labels: list[int], names: list[str], protocol: int) -> Path:
    """As torchvision's folder: rows of all red, all green, all blue values."""
    folder.mkdir(parents=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    for i, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]):
        content = {"batch_label": name, "data": np.ascontiguousarray(rows[i::6]), "labels": labels[i::6]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=protocol))
    return folder


def test_the_sample_has_500_training_and_100_test_images_of_each_class(decoded):
    assert decoded.classes == CLASSES
    assert np.bincount(decoded.train.labels).tolist() == [500] * 10
    assert np.bincount(decoded.test.labels).tolist() == [100] * 10


def test_the_sample_pixels_are_those_of_its_jpegs(decoded, jpegs):
    position = sorted(n for n in jpegs if n.startswith("train/")).index("train/frog/0123.jpg")
    assert (decoded.train.pixels[position] == np.asarray(Image.open(io.BytesIO(jpegs["train/frog/0123.jpg"])))).all()
    assert decoded.classes[decoded.train.labels[position]] == "frog"


@needs_full
def test_the_sample_is_the_first_images_of_the_full_set_byte_for_byte(jpegs):
    with tarfile.open(FULL, "r|gz") as tar:
        wanted = {
            member.name: tar.extractfile(member).read()
            for member in tar
            if member.isfile() and int(Path(member.name).stem) < {"train": 500, "test": 100}[member.name.split("/")[0]]
        }
    assert wanted == jpegs


def test_cutting_is_repeatable_byte_for_byte(tmp_path):
    # the sample of the sample is the sample itself
    assert cut(SAMPLE, tmp_path / "again.tar.gz") == 6000
    assert gzip.decompress((tmp_path / "again.tar.gz").read_bytes()) == gzip.decompress(SAMPLE.read_bytes())


def test_the_sample_tar_says_nothing_about_who_made_it_and_when():
    with tarfile.open(SAMPLE) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(("mode", "prefix"), [("w", ""), ("w:gz", "./"), ("w:bz2", "cifar/"), ("w:xz", "deep/er/")])
def test_a_tar_and_a_folder_of_the_same_images_decode_to_the_same_data(tmp_path, tree, mode, prefix):
    paths = sorted(tree.rglob("*.jpg"), reverse=True)
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}  # another order of members, the same order of samples
    archive = write_tar(tmp_path / "images.tar", mode, files, prefix)
    from_tar, from_tree = decode(archive, tmp_path / "a"), decode(tree, tmp_path / "b")
    assert from_tar.classes == from_tree.classes == ("cat", "frog", "ship")
    assert (from_tar.train.pixels == from_tree.train.pixels).all()
    assert from_tar.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert (from_tar.train.fingerprint, from_tar.test.fingerprint) == (from_tree.train.fingerprint, from_tree.test.fingerprint)
    assert from_tar.train.fingerprint != from_tar.test.fingerprint


def test_files_that_are_no_images_are_passed_over(tmp_path, tree):
    before = decode(tree, tmp_path / "a").train.fingerprint
    (tree / "train/cat/.DS_Store").write_bytes(b"x")
    (tree / "train/cat/._0000.jpg").write_bytes(b"x")
    (tree / "train/cat/notes.txt").write_bytes(b"x")
    (tree / "train/README.md").write_bytes(b"x")
    assert decode(tree, tmp_path / "b").train.fingerprint == before


def test_images_of_any_form_become_rgb_squares_of_the_asked_size(tmp_path, tree):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 100, 50)  # the centred square
    Image.fromarray(wide).save(tree / "train/cat/a-wide.png")
    Image.new("L", (50, 50), 77).save(tree / "train/cat/b-grey.png")
    Image.new("RGBA", (16, 16), (1, 2, 3, 255)).save(tree / "train/cat/c-alpha.png")
    found = decode(tree, tmp_path / "cache", size=24).train
    order = sorted(path.name for path in (tree / "train/cat").iterdir())
    assert found.pixels.shape[1:] == (24, 24, 3)
    assert (found.pixels[order.index("a-wide.png"), :, 3:-3] == (200, 100, 50)).all()  # bicubic filters look a little beyond the edge
    assert (found.pixels[order.index("b-grey.png")] == 77).all()
    assert (found.pixels[order.index("c-alpha.png")] == (1, 2, 3)).all()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("above", [False, True], ids=["the folder", "the folder above"])
def test_torchvisions_folder_is_read_as_torchvision_reads_it(tmp_path, decoded, protocol, above):
    images, labels = decoded.train.pixels[::83], decoded.train.labels[::83].tolist()
    folder = write_pickles(tmp_path / "root" / "cifar-10-batches-py", images, labels, list(CLASSES), protocol)
    found = decode(folder.parent if above else folder, tmp_path / "cache")
    order = [i for batch in range(5) for i in range(batch, len(images), 6)]
    assert found.classes == CLASSES
    assert (found.train.pixels == images[order]).all()
    assert found.train.labels.tolist() == [labels[i] for i in order]
    assert (found.test.pixels == images[5::6]).all()


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, decoded):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it-ran",))

    folder = write_pickles(tmp_path / "cifar-10-batches-py", decoded.train.pixels[:12], [0] * 12, list(CLASSES), 2)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"labels": Evil(), "data": Evil()}, protocol=2))
    with pytest.raises(
        DataError, match=r"data_batch_3 is not a CIFAR-10 batch.*refers to .*which no CIFAR-10 batch does; copy or download"
    ):
        decode(folder, tmp_path / "cache")
    assert not (tmp_path / "it-ran").exists()


def test_a_download_reports_its_bytes_and_is_not_repeated_once_decoded(tmp_path, decoded, monkeypatch):
    seen: list[tuple[str, int, int]] = []
    half_seen = threading.Event()

    def report(what, done, total):
        seen.append((what, done, total))
        if done == 12_345:
            half_seen.set()

    def download(root, *, download):
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(bytes(12_345))
        assert half_seen.wait(30)
        write_pickles(Path(root) / "cifar-10-batches-py", decoded.train.pixels[:60], [0] * 60, list(CLASSES), 2)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", download)
    first = open_or_build(resolve("download", tmp_path), 32, tmp_path, report)
    assert ("downloading CIFAR-10 (bytes)", 12_345, ARCHIVE_BYTES) in seen
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", None)
    assert open_or_build(resolve("download", tmp_path), 32, tmp_path, report).train.fingerprint == first.train.fingerprint
