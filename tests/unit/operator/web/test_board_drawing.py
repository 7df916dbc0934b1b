import math

import pytest
from board_runs import NOW, at, entry, full, run
from hypothesis import given
from hypothesis import strategies as st

from ddp_operator.web.drawing import LINE_UNITS, curve, time_line

finite = st.floats(allow_nan=False, allow_infinity=False)


def pairs(points):
    return [tuple(map(float, pair.split(","))) for pair in points.split()]


@given(st.lists(finite, min_size=2, max_size=50), st.lists(st.integers(0, 2**53), min_size=50, max_size=50, unique=True))
def test_a_curve_stays_in_its_box_whatever_the_losses(losses, steps):
    points = pairs(curve(list(zip(map(float, sorted(steps)), losses, strict=False)), 96, 22))
    assert len(points) == len(losses)
    assert all(0 <= x <= 96 and 0 <= y <= 22 for x, y in points)


def test_a_falling_loss_falls_to_the_bottom_right():
    assert pairs(curve([(0, 2.0), (50, 1.5), (100, 1.0)], 100, 10)) == [(0, 0), (50, 5), (100, 10)]


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)]])
def test_less_than_two_points_are_no_curve(points):
    assert curve(points, 10, 10) == ""


def test_the_time_line_has_an_incident_from_fault_to_recovery():
    line = time_line(full(), (), NOW)
    bad = [band for band in line.bands if band.tone == "bad"]
    assert [band.title for band in bad][2] == "Hang of resnet-7f3a91-master-0: away for 4m"
    share = LINE_UNITS / 3980
    assert (bad[2].x, bad[2].width) == (round((3980 - 700) * share, 1), round(240 * share, 1))
    assert [mark.x for mark in line.faults] == [band.x for band in bad]


def test_an_incident_without_recovery_lasts_until_now():
    line = time_line(run(timing={"started_at": at(1000), "running_at": at(900)}, ledger=[entry(250, "NodeLost")]), (), NOW)
    assert (line.bands[-1].x, line.bands[-1].width) == (750.0, 250.0)


def test_a_second_of_trouble_in_a_week_stays_visible_and_inside():
    week = 7 * 86_400
    line = time_line(run(timing={"started_at": at(week), "running_at": at(week)}, ledger=[entry(1, "Crash", 1)]), (), NOW)
    assert line.bands[-1].width >= 3
    assert all(band.x >= 0 and band.x + band.width <= LINE_UNITS + 0.2 for band in line.bands)


def test_checkpoints_outside_the_line_are_left_out():
    line = time_line(run(timing={"started_at": at(1000)}), (NOW - 5000, NOW - 500, NOW + 99), NOW)
    assert [mark.x for mark in line.checkpoints] == [500.0]


def test_nothing_is_drawn_before_anything_is_known():
    assert time_line(run(), (), NOW) is None


@pytest.mark.parametrize("seconds", [7, 59, 3600, 86_400, 10**7, 10**9])
def test_ticks_are_few_and_in_order(seconds):
    ticks = time_line(run(timing={"pending_since": at(seconds)}), (), NOW).ticks
    assert 2 <= len(ticks) <= 6
    assert [tick.x for tick in ticks] == sorted({tick.x for tick in ticks})
    assert all(math.isfinite(tick.x) for tick in ticks)
