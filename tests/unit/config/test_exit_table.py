"""The exits: their codes are contract 3.2's, and the codes alone decide what a cluster does."""

from __future__ import annotations

import pytest

from ddp_trainer import errors
from ddp_trainer.errors import BY_CAUSE, EXITS, DdpError

CONTRACT = {
    0: ("finished", False),
    1: ("user_error", False),
    2: ("config_error", False),
    3: ("data_error", False),
    4: ("diverged", False),
    5: ("no_progress", False),
    143: ("preemption", True),
    160: ("crash", True),
    161: ("hang", True),
    162: ("peer_loss", True),
}


def test_the_codes_are_the_contracts():
    assert {e.code: (e.cause, e.retried) for e in EXITS} == CONTRACT


def test_a_code_is_retried_exactly_from_128_on():
    assert all(e.retried == (e.code >= 128) for e in EXITS)


def test_codes_and_causes_are_unambiguous():
    assert len({e.code for e in EXITS}) == len(BY_CAUSE) == len(EXITS)


def test_no_code_is_one_that_the_kernel_gives_for_a_crash():
    # 128 + signal: a cluster must be able to tell our word from a death
    deaths = {128 + number for number in (4, 6, 7, 8, 9, 11)}
    assert not deaths & {e.code for e in EXITS}


def test_every_exit_of_the_module_stands_in_the_table():
    assert {value for value in vars(errors).values() if isinstance(value, errors.Exit)} == set(EXITS)


@pytest.mark.parametrize(
    "leaf", [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, DdpError) and v is not DdpError]
)
def test_every_error_carries_an_exit_and_says_what_it_is(leaf):
    assert leaf.exit in EXITS
    assert leaf.exit.code != 0
    assert leaf.__doc__
