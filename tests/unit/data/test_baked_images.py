"""images/trainer/bake.py: what is decoded while an image is built is found again in a container made of it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.sources import resolve

REPOSITORY = Path(__file__).resolve().parents[3]
BAKE = REPOSITORY / "images/trainer/bake.py"


def silent(what, done, total):
    pass


@pytest.fixture
def bake():
    spec = importlib.util.spec_from_file_location("bake", BAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tree, tmp_path):
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tree, ".")
    os.utime(path, ns=(10**18 + 123_456_789,) * 2)  # a time with a fraction, as every file has
    return path


def test_a_tar_of_ones_own_is_known_again_though_layers_keep_whole_seconds(bake, archive, tmp_path):
    said = bake.main(str(archive), 16, tmp_path / "image")
    shipped = tmp_path / "image/data/images.tar"
    assert f"data.source={shipped}: 24 + 12 images of 16 x 16 pixels" in said
    seconds = int(shipped.stat().st_mtime)
    os.utime(shipped, (seconds, seconds))  # what packing the layer and unpacking it does
    decoded = open_or_build(resolve(str(shipped), tmp_path), 16, tmp_path / "cache", silent, tmp_path / "image/cache")
    assert decoded.folder.is_relative_to(tmp_path / "image/cache")


def test_what_is_baked_can_be_read_by_any_user(bake, archive, tmp_path):
    bake.main(str(archive), 16, tmp_path / "image")
    for path in (tmp_path / "image").rglob("*"):
        wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        assert path.stat().st_mode & wanted == wanted, path


def test_the_dockerfile_gives_the_decoder_all_of_our_code_that_it_needs(tmp_path):
    text = (REPOSITORY / "images/trainer/Dockerfile").read_text()
    stage = text.split("AS bake-sample\n")[1].split("\nFROM")[0]
    for sources, target in re.findall(r"^COPY (.+) (/bake/\S*)$", stage, re.MULTILINE):
        for source in sources.split():
            there = tmp_path / target.lstrip("/")
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / source, there)
    code = "import bake, ddp_trainer, pathlib, sys; print(ddp_trainer.__file__, bake.main('sample', 32, pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "bake")}
    command = [sys.executable, "-c", code, str(tmp_path / "image")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "bake/ddp_trainer"))
    assert "5000 + 1000 images" in done.stdout
