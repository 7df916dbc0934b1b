"""Ranks of one machine add up through memory that they share: exactly, in the order of the ranks, and a lost peer is noticed."""

from __future__ import annotations

import pytest
from gang import ranks

LENGTHS = [1, 2, 3, 5, 1000, 64, 997, 10]
"""Shorter than there are ranks, not divisible by them, the longest, and much shorter right after it."""


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_every_bucket_is_the_sum_in_the_order_of_the_ranks(world_size):
    said = ranks("shared_sum_ranks:sums", world_size, lengths=LENGTHS, dtypes=["float32", "float64", "bfloat16"], times=5)
    assert all(len(right) == 5 * 3 * len(LENGTHS) and all(right) for right in said)


def test_only_the_memory_that_was_offered_is_opened():
    assert ranks("shared_sum_ranks:strangers", 1) == [[False, False, True]]


def test_a_peer_that_is_gone_is_an_echo_as_in_any_collective():
    *said, _ = ranks("shared_sum_ranks:left_alone", 3)
    assert all(words["is_echo"] and "gloo" in words["words"] for words in said), said


@pytest.mark.parametrize(
    ("what", "on_machine", "used"),
    [("wrapped", None, True), ("wrapped", 1, False), ("apart", None, False), ("without_memory", None, False)],
)
def test_it_is_used_by_all_or_by_none(what, on_machine, used):
    assert ranks(f"shared_sum_ranks:{what}", 2, on_machine=on_machine) == [used, used]
