"""How long a run is, how fast it learns at each step, and when it evaluates: pure functions of the configuration."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_training import config

from ddp_trainer.engine import count_steps, evaluation_is_due, learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),  # the first of ten warm-up steps: never zero, a step must do something
        (4, 0.5),
        (9, 1.0),  # the last warm-up step is at the peak
        (10, 1.0),
        (55, 0.505),  # half-way down the cosine, between 1.0 and 0.01
        (99, 0.0103),
        (100, 0.01),
    ],
)
def test_the_rate_climbs_to_the_peak_and_falls_along_a_cosine_to_its_floor(step, rate):
    settings = config(optim__lr=1.0, optim__warmup_ratio=0.1, optim__final_lr_ratio=0.01)
    assert learning_rate(settings, step, 100) == pytest.approx(rate, rel=0.01)


def test_without_a_warm_up_the_run_begins_at_the_peak():
    assert learning_rate(config(optim__lr=0.3, optim__warmup_ratio=0.0), 0, 10) == 0.3


schedules = {
    "optim__lr": st.floats(1e-6, 10),
    "optim__warmup_ratio": st.floats(0, 0.99),
    "optim__final_lr_ratio": st.floats(0, 1),
}


@given(st.fixed_dictionaries(schedules), st.integers(1, 200))
def test_the_rate_never_exceeds_the_peak_and_has_one_summit(values, total):
    settings = config(**values)
    rates = [learning_rate(settings, step, total) for step in range(total)]
    summit = rates.index(max(rates))
    assert all(rate > 0 or step == total - 1 for step, rate in enumerate(rates))
    assert max(rates) <= settings.optim.lr * (1 + 1e-12)
    assert rates[:summit] == sorted(rates[:summit])
    assert rates[summit:] == sorted(rates[summit:], reverse=True)


@pytest.mark.parametrize(
    ("samples", "values", "steps"),
    [
        (40, {"optim__epochs": 2}, 10),
        (41, {"optim__epochs": 2}, 11),  # the last batch is filled up from the next epoch
        (40, {"optim__epochs": 0.5}, 3),
        (40, {"optim__epochs": 0.2}, 1),
        (40, {"optim__epochs": 1e-9}, 1),  # never nothing
        (40, {"optim__epochs": 2, "optim__max_steps": 7}, 7),
        (40, {"optim__epochs": 2, "optim__max_steps": 70}, 10),
        (3, {"optim__epochs": 1}, 1),  # a set smaller than a batch
        (5000, {"optim__epochs": 8, "data__global_batch": 64}, 625),
        (50000, {"optim__epochs": 0.1, "data__global_batch": 50}, 100),  # 0.1 * 50000 / 50 is 100.00000000000001 for a computer
    ],
)
def test_a_run_has_as_many_steps_as_its_epochs_need(samples, values, steps):
    assert count_steps(config(**values), samples) == steps


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 30))
def test_whole_epochs_are_counted_exactly(samples, batch, epochs):
    assert count_steps(config(data__global_batch=batch, optim__epochs=epochs), samples) == ceil(Fraction(epochs * samples, batch))


def evaluations(every, samples, batch, total):
    settings = config(telemetry__eval_every_epochs=every, data__global_batch=batch)
    return [step for step in range(1, total + 1) if evaluation_is_due(settings, step, total, samples / batch)]


@pytest.mark.parametrize(
    ("every", "samples", "batch", "total", "steps"),
    [
        (1, 40, 8, 15, [5, 10, 15]),
        (1, 40, 8, 12, [5, 10, 12]),
        (2, 40, 8, 15, [10, 15]),
        (0.5, 40, 8, 10, [3, 5, 8, 10]),
        (1, 41, 8, 11, [6, 11]),  # an epoch ends inside a step: after it
        (99, 40, 8, 5, [5]),
        (0.01, 40, 8, 5, [1, 2, 3, 4, 5]),
    ],
)
def test_evaluation_follows_every_completed_interval_and_the_end(every, samples, batch, total, steps):
    assert evaluations(every, samples, batch, total) == steps


@given(st.integers(1, 8), st.integers(1, 400), st.integers(1, 64), st.integers(1, 300))
def test_the_last_step_always_evaluates_and_every_interval_does_once(every, samples, batch, total):
    steps = evaluations(every, samples, batch, total)
    assert steps[-1] == total
    interval = Fraction(every * samples, batch)
    ends = {ceil(interval * k) for k in range(1, floor(total / interval) + 1)}
    assert steps == sorted(ends | {total})
