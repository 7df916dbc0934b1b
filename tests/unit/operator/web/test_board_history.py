from itertools import pairwise

from board_runs import NOW, document
from hypothesis import given
from hypothesis import strategies as st

from ddp_operator.web.history import CHECKPOINTS, LOSS_POINTS, Curve, History


def curve_of(*points):
    curve = Curve()
    for step, loss in points:
        curve.add(step, loss)
    return curve.points()


def test_a_long_run_is_thinned_evenly_and_keeps_its_ends():
    points = curve_of(*((step, 1.0) for step in range(0, 1_000_000, 100)))
    steps = [step for step, _ in points]
    assert LOSS_POINTS / 2 <= len(points) <= LOSS_POINTS
    assert steps[0] == 0
    assert steps[-1] > 970_000
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) <= 3 * min(gaps)


def test_steps_that_are_trained_again_replace_the_lost_ones():
    assert curve_of((10, 3.0), (20, 2.0), (30, 1.0), (15, 2.5)) == [(10, 3.0), (15, 2.5)]


def test_the_same_step_again_has_the_newer_loss():
    assert curve_of((10, 3.0), (10, 2.0)) == [(10, 2.0)]


def test_losses_that_cannot_be_drawn_are_left_out():
    assert curve_of((1, float("nan")), (2, float("inf")), (3, None), (-4, 1.0), (10**300, 1.0), (5, 1.0)) == [(5, 1.0)]


@given(st.lists(st.tuples(st.integers(-10, 10**6), st.floats()), max_size=400))
def test_a_curve_is_bounded_and_its_steps_rise(points):
    steps = [step for step, _ in curve_of(*points)]
    assert len(steps) <= LOSS_POINTS
    assert all(before < after for before, after in pairwise(steps))


def test_runs_that_are_gone_are_forgotten():
    history, kept, gone = History(), ("ns", "kept", document(1)), ("ns", "gone", document(1))
    history.note([kept, gone])
    history.note([("ns", "kept", None)])
    assert history.losses("ns", "kept") == [(1, 1.0)]
    assert history.losses("ns", "gone") == []


def test_each_checkpoint_is_noted_once_and_the_oldest_go():
    history = History()
    for seconds in range(100, 0, -1):
        for _ in range(2):
            history.note([("ns", "demo", document(1, checkpoint_saved_at=NOW - seconds))])
    history.note([("ns", "demo", document(1, checkpoint_saved_at=odd)) for odd in (0.0, float("nan"), float("inf"))])
    times = history.checkpoints("ns", "demo")
    assert len(times) == CHECKPOINTS
    assert times[-1] == NOW - 1
