import math
from datetime import UTC, datetime

import pytest
from facts_strategies import clocks, documents
from hypothesis import given, settings
from small_facts import NOW, a_document

from ddp_operator.decide.progress import checkpoint_status, progress_status


def shown(**changes):
    return progress_status(a_document(**changes), NOW)


def test_a_run_in_the_middle():
    status = shown()
    assert (status.step, status.total_steps, status.percent, status.epoch) == (500, 1000, 50, "2.0/4")
    assert (status.loss, status.accuracy, status.samples_per_second, status.eta) == ("0.5123", "81.2%", "12300", "1h20m")


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [(0, 1000, 0), (999, 1000, 99), (1000, 1000, 100), (1001, 1000, 100), (5, 0, 0), (-1, 10, 0), (10**30, 10**30, 100)],
)
def test_only_a_run_that_is_done_has_100_percent(done, total, expected):
    assert shown(step=done, total_steps=total).percent == expected


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (1.25, 4.0, "1.2/4"),
        (3.9999, 4.0, "3.9/4"),
        (4.0, 4.0, "4.0/4"),
        (0.0, 0.0, ""),
        (1.3, 0.0, "1.3"),
        (0.7, 2.5, "0.7/2.5"),
        (math.nan, 4.0, ""),
        (1.0, math.inf, ""),
    ],
)
def test_epochs_are_rounded_down(done, total, expected):
    assert shown(epoch=done, epochs=total).epoch == expected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(None, ""), (0.51234567, "0.5123"), (2.0, "2"), (123456.0, "1.235e+05"), (1e-9, "1e-09"), (math.nan, ""), (-math.inf, "")],
)
def test_a_loss_has_four_digits(loss, expected):
    assert shown(loss=loss).loss == expected


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(None, ""), (12345.6, "12300"), (97.24, "97.2"), (0.5123, "0.512"), (999.6, "1000"), (0.0, "0"), (math.inf, ""), (-1.0, "")],
)
def test_a_rate_has_three_digits(rate, expected):
    assert shown(samples_per_second=rate).samples_per_second == expected


@pytest.mark.parametrize(("seconds", "expected"), [(None, ""), (0.0, "0s"), (4800.0, "1h20m"), (math.nan, ""), (math.inf, ""), (-3.0, "")])
def test_an_eta_is_spoken(seconds, expected):
    assert shown(eta_seconds=seconds).eta == expected


@pytest.mark.parametrize(("ratio", "expected"), [(None, ""), (0.8123, "81.2%"), (1.0, "100.0%"), (1.5, ""), (math.nan, "")])
def test_an_accuracy_is_a_ratio(ratio, expected):
    assert shown(accuracy=ratio).accuracy == expected


def test_numbers_that_look_the_same_are_the_same():
    assert shown(loss=0.51231, samples_per_second=12310.0, eta_seconds=4801.0, epoch=2.01) == shown(
        loss=0.51234, samples_per_second=12301.0, eta_seconds=4859.0, epoch=2.09
    )


def test_times_ahead_of_our_clock_become_now():
    now = datetime.fromtimestamp(NOW, UTC)
    assert shown(updated_at=NOW + 1e6).updated_at == now
    assert checkpoint_status(a_document(checkpoint_saved_at=NOW + 1e6), NOW).saved_at == now
    assert checkpoint_status(a_document(checkpoint_saved_at=math.nan), NOW).saved_at == now


def test_what_was_heard_goes_before_what_the_pods_clock_says():
    assert progress_status(a_document(updated_at=5.0), NOW, heard_at=NOW - 7).updated_at == datetime.fromtimestamp(NOW - 7, UTC)


def test_the_newest_durable_step():
    status = checkpoint_status(a_document(), NOW)
    assert (status.step, status.saved_at.timestamp(), status.bytes, status.verified) == (480, NOW - 20, 90_000_000, True)


def test_without_a_durable_step_there_is_no_checkpoint():
    assert checkpoint_status(a_document(checkpoint_step=None), NOW) is None


@settings(max_examples=60)
@given(document=documents, now=clocks)
def test_every_document_can_be_shown(document, now):
    status = progress_status(document, now)
    assert type(status).model_validate_json(status.model_dump_json(by_alias=True)) == status
    checkpoint = checkpoint_status(document, now)
    assert (checkpoint is None) == (document.checkpoint_step is None)
    assert status.updated_at.timestamp() <= now
