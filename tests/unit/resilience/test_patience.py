"""A wait ends after its bound, begins anew with each sign of life of node 0, and asks the store rarely."""

from __future__ import annotations

import pytest

from ddp_trainer.resilience import patience as patience_module
from ddp_trainer.resilience.patience import LOOKS, Patience

BOUND_SECONDS = 300.0


class Waiter:
    """A wait on a clock that only it moves, and the store's count of signs."""

    def __init__(self, monkeypatch):
        self.now, self.signs, self.requests = 1000.0, 0, 0
        monkeypatch.setattr(patience_module.time, "monotonic", lambda: self.now)
        self.patience = Patience(BOUND_SECONDS, self.count)

    def count(self):
        self.requests += 1
        return self.signs

    def wait(self, seconds=float("inf"), tell=lambda: None):
        """Look once per second, as those that wait do; gives how long that was."""
        begun = self.now
        while self.now - begun < seconds and not self.patience.is_over():
            self.now += 1.0
            tell()
        return self.now - begun


@pytest.fixture
def waiter(monkeypatch):
    return Waiter(monkeypatch)


@pytest.mark.parametrize("signs", [0, 57])
def test_without_a_sign_it_ends_after_its_bound_whatever_was_counted_before(waiter, signs):
    waiter.signs = signs  # 57: of a download hours ago
    assert waiter.wait() == BOUND_SECONDS
    assert not waiter.patience.is_prolonged


def test_it_lasts_as_long_as_there_are_signs_and_ends_a_bound_and_at_most_a_tenth_after_the_last(waiter):
    def beat():
        waiter.signs += 1

    assert waiter.wait(3600.0, beat) == 3600.0
    assert BOUND_SECONDS <= waiter.wait() <= BOUND_SECONDS * 1.1
    assert waiter.patience.is_prolonged


def test_a_sign_at_the_last_moment_counts(waiter):
    waiter.wait(BOUND_SECONDS - 0.5)
    waiter.signs = 1
    assert not waiter.patience.is_over()


def test_a_replaced_node_0_counts_anew_and_its_silence_is_no_sign(waiter):
    waiter.signs = 57
    waiter.wait(100.0)
    waiter.signs = 0  # the successor's store
    waiter.wait(100.0)
    assert not waiter.patience.is_prolonged
    waiter.signs = 3  # its own download
    assert waiter.wait() >= BOUND_SECONDS
    assert waiter.patience.is_prolonged


def test_a_bound_of_waiting_costs_a_few_requests(waiter):
    waiter.wait()
    assert waiter.requests <= LOOKS + 2
