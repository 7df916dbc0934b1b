"""Ranks that wait for one that is not there: every sign of life of it is passed on, and its silence is theirs."""

from __future__ import annotations

import threading

import pytest
from torch import distributed as dist

from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import Meeting, Place

PATIENCE_SECONDS = 30.0


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def meeting(store, rank=0, world_size=2):
    config = RunConfig(distributed={"device": "cpu"})
    return Meeting(config, Place(rank, world_size, rank, world_size, "127.0.0.1", store.port, "generation-1"))


class Waiter(threading.Thread):
    """A rank that is there, and whom it hears."""

    def __init__(self, store):
        super().__init__(daemon=True)
        self.meeting = meeting(store)
        self.signs = []
        self.heard = threading.Semaphore(0)
        self.looks = threading.Semaphore(0)
        add = self.meeting.store.add

        def looked(key, number):
            self.looks.release()
            return add(key, number)

        self.meeting.store = type("Looked", (), {"add": staticmethod(looked)})()
        self.start()

    def run(self):
        self.meeting.await_all(self._hear)

    def _hear(self, signs):
        self.signs.append(signs)
        self.heard.release()

    def has_looked(self, times):
        return all(self.looks.acquire(timeout=PATIENCE_SECONDS) for _ in range(times))


def test_who_waits_hears_of_one_that_is_busy_and_nothing_of_one_that_is_silent(store):
    waiter, other = Waiter(store), meeting(store, rank=1)
    assert waiter.heard.acquire(timeout=PATIENCE_SECONDS)
    assert waiter.has_looked(12)
    assert len(waiter.signs) == 1, "a look alone is no sign of life"
    other.beat()
    assert waiter.heard.acquire(timeout=PATIENCE_SECONDS)
    other.beat()  # at once: not said again
    assert waiter.has_looked(12)
    assert len(waiter.signs) == 2
    other.await_all(lambda _: None)
    waiter.join(PATIENCE_SECONDS)
    assert not waiter.is_alive()


def test_a_rank_that_is_alone_needs_no_store():
    config = RunConfig(distributed={"device": "cpu"})
    Meeting(config, Place(0, 1, 0, 1, "nowhere", 1, "generation-1")).beat()
