"""Real images for the data tests: the shipped sample, decoded once a session, and a small tree cut from it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from ddp_trainer.data.cache import Decoded, open_or_build
from ddp_trainer.data.sources import SAMPLE, resolve


def silent(what: str, done: int, total: int) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="session")
def jpegs() -> dict[str, bytes]:
    with tarfile.open(SAMPLE) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    cache = tmp_path_factory.mktemp("cache")
    return open_or_build(resolve("sample", cache), 32, cache, silent)


@pytest.fixture
def small_names(jpegs: dict[str, bytes]) -> list[str]:
    """Three classes, 8 training and 4 test images of each."""
    counts = {"train": 8, "test": 4}
    return [n for n in sorted(jpegs) if n.split("/")[1] in {"cat", "frog", "ship"} and int(Path(n).stem) < counts[n.split("/")[0]]]


@pytest.fixture
def tree(tmp_path: Path, jpegs: dict[str, bytes], small_names: list[str]) -> Path:
    root = tmp_path / "tree"
    for name in small_names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[name])
    return root
