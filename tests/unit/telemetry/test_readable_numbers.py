"""Numbers as people read them."""

import pytest

from ddp_trainer.telemetry import readable


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0, "0:00"), (7.4, "0:07"), (102, "1:42"), (59.6, "1:00"), (7389, "2:03:09")])
def test_durations(seconds, text):
    assert readable.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (4.2, "4 s"), (99, "99 s"), (150, "2 min"), (3 * 3600, "3 h"), (5 * 86400, "5 d")]
)
def test_ages(seconds, text):
    assert readable.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (188_000_000, "188 MB"), (1_200_000_000, "1.2 GB")]
)
def test_sizes(count, text):
    assert readable.size(count) == text


@pytest.mark.parametrize(("ratio", "text"), [(None, "-"), (0.412, "41.2%"), (1.0, "100.0%")])
def test_shares(ratio, text):
    assert readable.percent(ratio) == text


@pytest.mark.parametrize(("speed", "text"), [(None, "-"), (3.21, "3.2"), (301.2, "301"), (12400.0, "12,400")])
def test_rates(speed, text):
    assert readable.rate(speed) == text
