import pytest

from ddp_trainer.report import numbers
from ddp_trainer.report.drawing import smoothed, thinned


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, numbers.UNKNOWN), (0, "0 s"), (0.0042, "4.2 ms"), (0.42, "420 ms"), (8.13, "8.1 s"), (59.96, "1 min"), (30.0, "30 s"),
     (192, "3 min 12 s"),
     (3599.7, "1 h"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_read_like_a_clock(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, numbers.UNKNOWN), (0, "0 B"), (1023, "1023 B"), (188_500_000, "179.8 MiB"), (2**50, "1024.0 TiB")]
)
def test_sizes_are_binary(value, text):
    assert numbers.size(value) == text


def test_counts_have_separators_and_percent_a_unit():
    assert (numbers.count(12480.0), numbers.count(3.14), numbers.count(None)) == ("12,480", "3.1", numbers.UNKNOWN)
    assert (numbers.percent(0.4123), numbers.percent(0.4123, 0), numbers.percent(None)) == ("41.2 %", "41 %", numbers.UNKNOWN)


def test_moment_that_is_no_time_is_unknown():
    assert numbers.moment(0.0) == "1970-01-01 00:00:00 UTC"
    assert numbers.moment(1e300) == numbers.UNKNOWN


@pytest.mark.parametrize("length", [0, 1, 1500, 1501, 40_000])
def test_thinning_bounds_a_curve_and_keeps_both_ends(length):
    kept = thinned(range(length))
    assert len(kept) <= 1501
    assert kept[:1] + kept[-1:] == [*range(length)][:1] + [*range(length)][-1:]


def test_smoothing_neither_lags_nor_shifts_a_straight_line():
    line = [2.0 * i for i in range(100)]
    assert smoothed(line)[10:90] == pytest.approx(line[10:90])
