"""Node 0 fetches a checkpoint while the others wait for it: as long as bytes come they stay, and one that stands still they leave."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from small_checkpoints import IDENTITY, commit

from ddp_trainer.checkpoint import growth
from ddp_trainer.checkpoint.mirror import Mirror
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import PeerLostError
from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.preparation import prepare_or_refuse
from ddp_trainer.resilience.rendezvous import GenerationBarrier

NODES = 3
PEER_TIMEOUT_SECONDS = 1.5
DOWNLOAD_SECONDS = 3 * PEER_TIMEOUT_SECONDS
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
    """A place that gives a file of tensors byte by byte, and stops half-way while `goes_on` is not set."""

    def __init__(self):
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
                threading.Event().wait(DOWNLOAD_SECONDS / len(content))
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
def gang():
    """Each node's barrier, as in one process each."""
    port = free_port()
    return [
        GenerationBarrier(node=node, nodes=NODES, host="127.0.0.1", port=port, run_id="test", timeout_seconds=PEER_TIMEOUT_SECONDS)
        for node in range(NODES)
    ]


@pytest.fixture
def begin(gang, home, tmp_path):
    """Start node 0, which prepares and then comes, and the others, which wait for it; gives their meetings, node 0's first."""
    pool = ThreadPoolExecutor(NODES)

    def lead():
        config = RunConfig().with_values({"run.root": str(tmp_path), "run.name": "replaced", "checkpoint.mirror_url": home})
        prepare_or_refuse(config, Chronicle("replaced", 0, NODES, None), gang[0])
        return gang[0].next_rendezvous()

    yield lambda: [pool.submit(lead), *(pool.submit(barrier.next_rendezvous) for barrier in gang[1:])]
    pool.shutdown()


def test_the_others_wait_for_a_download_that_takes_longer_than_they_wait_for_a_peer(slow, begin, tmp_path):
    slow.goes_on.set()
    meetings = begin()
    assert [meeting.result(PATIENCE_SECONDS).rank for meeting in meetings] == [0, 1, 2]
    assert CheckpointStore(tmp_path / "replaced" / "checkpoints").steps() == [7]


def test_the_others_leave_a_download_that_stands_still_after_their_bound(slow, begin):
    node_0, *others = begin()
    assert slow.stands_still.wait(PATIENCE_SECONDS)
    sentence = r"^node 0 did not come to generation 0 within 2 s of node 0's last sign of life; see why they do not start"
    for waiting in others:
        with pytest.raises(PeerLostError, match=sentence):
            waiting.result(PATIENCE_SECONDS)
    assert not node_0.done()
    slow.goes_on.set()
