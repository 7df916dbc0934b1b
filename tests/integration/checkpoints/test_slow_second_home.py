"""Node 0 fetches a checkpoint while the others wait for it: as long as bytes come or are hashed they stay; a standstill they leave."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.local import LocalFileSystem
from small_checkpoints import IDENTITY, commit

from ddp_trainer.checkpoint import growth, manifest
from ddp_trainer.checkpoint.mirror import Mirror
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import PeerLostError
from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.preface import Preface
from ddp_trainer.resilience.preparation import prepare_or_refuse
from ddp_trainer.resilience.rendezvous import GenerationBarrier
from ddp_trainer.telemetry.document import parse

NODES = 3
PEER_TIMEOUT_SECONDS = 5.0
"""Far above what a busy machine keeps a node from one look."""
SLOW_SECONDS = 1.5 * PEER_TIMEOUT_SECONDS
SIGNS = 3
"""Fewer than are seen while bytes come: one per look."""
BLOCKS = 15
"""Of the largest file, where hashing is slow."""
PATIENCE_SECONDS = 60.0


@pytest.fixture
def home(tmp_path):
    """A second home that holds the checkpoint of step 7."""
    store = CheckpointStore(tmp_path / "volume" / "checkpoints")
    store.prepare()
    commit(store, 7)
    mirror = Mirror(f"file://{tmp_path}/home")
    mirror.offer(store.folder(7))
    assert mirror.drain(PATIENCE_SECONDS)
    return f"file://{tmp_path}/home"


class SlowFiles:
    """A place that gives a file of tensors byte by byte in `seconds`, and stops half-way while `goes_on` is not set."""

    def __init__(self):
        self.seconds = SLOW_SECONDS
        self.goes_on = threading.Event()
        self.stands_still = threading.Event()

    def get_file(self, source, target, **_):
        content = Path(source).read_bytes()
        if not source.endswith("model.safetensors"):
            Path(target).write_bytes(content)
            return
        with Path(target).open("wb", buffering=0) as file:
            for place in range(len(content)):
                file.write(content[place : place + 1])
                threading.Event().wait(self.seconds / len(content))
                if place == len(content) // 2 and not self.goes_on.is_set():
                    self.stands_still.set()
                    assert self.goes_on.wait(PATIENCE_SECONDS)


@pytest.fixture
def slow(monkeypatch):
    files = SlowFiles()
    monkeypatch.setattr(LocalFileSystem, "get_file", lambda _, *arguments, **words: files.get_file(*arguments, **words))
    monkeypatch.setattr(growth, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(RunConfig, "identity", lambda _: IDENTITY)
    yield files
    files.goes_on.set()


@pytest.fixture
def slow_hashing(monkeypatch, home):
    """Makes hashing the largest file of a checkpoint take `SLOW_SECONDS` from now on."""

    class SlowHash:
        def __init__(self, content=b""):
            self._real = hashlib.sha256(content)
            self.hexdigest = self._real.hexdigest

        def update(self, block):
            threading.Event().wait(SLOW_SECONDS / BLOCKS)
            self._real.update(block)

    def begin():
        copy = Path(home.removeprefix("file://")) / manifest.folder_name(7)
        largest = max(entry.bytes for entry in manifest.read_manifest(copy).files.values())
        monkeypatch.setattr(manifest, "_BLOCK_BYTES", -(-largest // BLOCKS))
        monkeypatch.setattr(manifest, "hashlib", SimpleNamespace(sha256=SlowHash))

    return begin


@pytest.fixture
def gang():
    """Each node's barrier, as in one process each."""
    port = free_port()
    return [
        GenerationBarrier(node=node, nodes=NODES, host="127.0.0.1", port=port, run_id="test", timeout_seconds=PEER_TIMEOUT_SECONDS)
        for node in range(NODES)
    ]


@pytest.fixture
def chronicle():
    return Chronicle("replaced", 0, NODES, None)


@pytest.fixture
def preface(chronicle, tmp_path):
    """What node 0 answers meanwhile."""
    return Preface(tmp_path / "replaced", chronicle.ledger())


@pytest.fixture
def begin(gang, home, chronicle, preface, tmp_path):
    """Start node 0, which prepares and then comes, and the others, which wait for it; gives their meetings, node 0's first."""
    pool = ThreadPoolExecutor(NODES)

    def lead():
        config = RunConfig().with_values({"run.root": str(tmp_path), "run.name": "replaced", "checkpoint.mirror_url": home})
        prepare_or_refuse(config, chronicle, gang[0], preface)
        return gang[0].next_rendezvous()

    yield lambda: [pool.submit(lead), *(pool.submit(barrier.next_rendezvous) for barrier in gang[1:])]
    pool.shutdown()


def test_the_others_wait_for_a_download_that_takes_longer_than_they_wait_for_a_peer(slow, begin, tmp_path):
    slow.goes_on.set()
    meetings = begin()
    assert [meeting.result(PATIENCE_SECONDS).rank for meeting in meetings] == [0, 1, 2]
    assert CheckpointStore(tmp_path / "replaced" / "checkpoints").steps() == [7]


def test_the_others_wait_for_a_download_that_is_hashed_for_longer_than_they_wait_for_a_peer(slow, slow_hashing, begin, tmp_path):
    slow.seconds = 0.0
    slow.goes_on.set()
    slow_hashing()
    meetings = begin()
    assert [meeting.result(PATIENCE_SECONDS).rank for meeting in meetings] == [0, 1, 2]
    assert CheckpointStore(tmp_path / "replaced" / "checkpoints").steps() == [7]


def test_who_asks_node_0_meanwhile_is_told_what_it_fetches_and_that_it_gets_on(slow, begin, preface):
    slow.seconds = 2.0
    slow.goes_on.set()
    node_0, *_ = begin()
    heard = {}
    while not node_0.done():
        said = parse(preface.document())
        heard.setdefault((said.phase, said.note), set()).add(said.updated_at)
        threading.Event().wait(0.02)
    assert len(heard["starting", "fetching the checkpoint of step 7 from its second home"]) > SIGNS


def test_the_others_leave_a_download_that_stands_still_after_their_bound(slow, begin):
    slow.seconds = PEER_TIMEOUT_SECONDS
    node_0, *others = begin()
    assert slow.stands_still.wait(PATIENCE_SECONDS)
    sentence = r"^node 0 did not come to generation 0 within 5 s of node 0's last sign of life; see why they do not start"
    for waiting in others:
        with pytest.raises(PeerLostError, match=sentence):
            waiting.result(PATIENCE_SECONDS)
    assert not node_0.done()
    slow.goes_on.set()
