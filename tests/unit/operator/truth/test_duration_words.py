import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_operator.decide.durations import LONGEST_SECONDS, seconds, spoken

WRITTEN = [
    ("90s", 90),
    ("5m", 300),
    ("1h30m", 5400),
    ("2d", 172_800),
    ("0.5s", 0.5),
    ("1h1m1s", 3661),
    ("0s", 0),
    ("9" * 31 + "d", LONGEST_SECONDS),
]
SPOKEN = [
    (0, "0s"),
    (0.9, "0s"),
    (45, "45s"),
    (300, "5m"),
    (301, "5m1s"),
    (3600, "1h"),
    (3700, "1h1m"),
    (3601, "1h"),
    (4800, "1h20m"),
    (90_000, "1d1h"),
    (86_460, "1d"),
    (-5, "0s"),
    (math.inf, "36600d"),
    (math.nan, ""),
]


@pytest.mark.parametrize(("text", "expected"), WRITTEN)
def test_a_duration_is_read_in_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5m ", "-5m", "1h30", "1w", "5m\n", "٣m"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="write it like 90s"):
        seconds(text)


@pytest.mark.parametrize(("amount", "expected"), SPOKEN)
def test_a_duration_is_spoken_in_two_units_rounded_down(amount, expected):
    assert spoken(amount) == expected


@given(st.integers(0, 10**9))
def test_what_is_spoken_is_never_more_than_it_was_and_is_read_back(amount):
    again = seconds(spoken(amount))
    assert again <= amount
    assert spoken(again) == spoken(amount)
