"""Where the loop ends early, what it passes over, and that a run which goes on from there is the undisturbed one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from small_training import Diary, PointsTask, parameters, training

from ddp_trainer import engine
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.engine import LeavingError, train
from ddp_trainer.exchange.piggyback import Words


def leaving_at(step):
    return Diary(lambda coming: Words(leave=coming == step))


def successor(run, task=None, **values):
    """A new process's training that goes on from the state of `run`, with the evaluations that were kept with it."""
    later = training(task, **values)
    RunState(later.model, later.optimizer, later.ema).restore(RunState(run.model, run.optimizer, run.ema).tensors())
    later.step, later.evaluated_step, later.metrics = run.step, run.evaluated_step, dict(run.metrics)
    return later


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- leaving -------------------------------------------------------------------------------------------------------------------------


def test_who_is_asked_to_leave_finishes_the_step_keeps_its_state_and_leaves():
    run, diary = training(), leaving_at(3)
    with pytest.raises(LeavingError):
        train(run, diary.hooks())
    assert run.step == 3
    assert [entry[:2] for entry in diary.entries[-3:]] == [("stepped", 3), ("measured", 3), ("keep", 3)]
    assert diary.of("keep") == [(3,)]


def test_leaving_does_not_wait_for_an_evaluation_and_the_next_ranks_begin_with_it():
    undisturbed, whole = training(), Diary()
    train(undisturbed, whole.hooks())
    run, before = training(), leaving_at(5)
    with pytest.raises(LeavingError):
        train(run, before.hooks())
    assert before.of("evaluated") == []
    assert before.entries[-1] == ("keep", 5)
    later, after = successor(run), Diary()
    metrics = train(later, after.hooks())
    assert after.entries[:2] == [("secure", 5), ("evaluating",)]
    assert after.of("evaluated") == whole.of("evaluated")
    assert metrics == undisturbed.metrics
    assert same(parameters(later), parameters(undisturbed))


@pytest.mark.parametrize("step", [4, 6])
def test_an_evaluation_that_is_done_or_not_due_is_not_done_at_the_start(step):
    run = training()
    with pytest.raises(LeavingError):
        train(run, leaving_at(step).hooks())
    after = Diary()
    train(successor(run), after.hooks())
    assert after.entries[0][:2] == ("stepped", step + 1)


def test_nobody_leaves_before_the_sum_of_those_who_have_kept_it_has_come(monkeypatch):
    """On a GPU a collective has only been enqueued when its call returns: what waits for the others is the reading of the sum."""

    class Enqueued:
        def item(self):
            diary.entries.append(("all have kept it",))
            return 0.0

    run, diary = training(), leaving_at(3)
    monkeypatch.setattr(run.group, "sum", lambda tensor: Enqueued() if tensor.shape == (1,) else tensor)
    with pytest.raises(LeavingError):
        train(run, diary.hooks())
    assert diary.entries[-2:] == [("keep", 3), ("all have kept it",)]


def test_a_wish_to_leave_at_the_last_step_is_an_end_like_any_other():
    run, diary = training(), leaving_at(10)
    assert train(run, diary.hooks()) == run.metrics != {}
    assert diary.entries[-1] == ("keep", 10)


def test_the_state_is_kept_when_it_is_wished_and_at_the_end_and_after_the_evaluation():
    diary = Diary(lambda coming: Words(keep=coming in {2, 5}))
    train(training(), diary.hooks())
    assert diary.of("keep") == [(2,), (5,), (10,)]
    told = [entry[:2] for entry in diary.entries]
    assert told.index(("evaluated", 5)) < told.index(("keep", 5))
    assert told.index(("evaluated", 10)) < told.index(("keep", 10))


def test_the_state_is_secured_before_each_evaluation_and_is_what_the_next_ranks_go_on_from():
    class TimeUpError(Exception):
        pass

    undisturbed, run, secured = training(), training(), {}
    train(undisturbed, Diary().hooks())
    state = RunState(run.model, run.optimizer, run.ema)

    def secure(step):
        secured.update(step=step, state={name: tensor.clone() for name, tensor in state.tensors().items()})

    def evaluating():
        raise TimeUpError

    with pytest.raises(TimeUpError):
        train(run, engine.Hooks(**{**vars(Diary(lambda _: Words()).hooks()), "secure": secure, "evaluating": evaluating}))
    assert secured["step"] == run.step == 5
    state.restore(secured["state"])
    later = successor(run)
    train(later, Diary().hooks())
    assert same(parameters(later), parameters(undisturbed))
    assert later.metrics == undisturbed.metrics


def test_ranks_are_asked_for_their_wishes_once_before_each_step():
    asked = []
    train(training(), Diary(lambda coming: asked.append(coming) or Words()).hooks())
    assert asked == [*range(1, 11)]


# --- passing over --------------------------------------------------------------------------------------------------------------------


def test_skipped_steps_train_on_nothing_and_the_run_still_reaches_its_end():
    task = PointsTask()
    run, diary = training(task), Diary()
    run.skipped = [(2, 4), (6, 7)]
    train(run, diary.hooks())
    assert [(step, samples) for step, samples, _ in diary.of("stepped")] == [(n, 0 if n in {3, 4, 7} else 8) for n in range(1, 11)]
    assert [step for step, *_ in diary.of("measured")] == [1, 2, 5, 6, 8, 9, 10]
    whole = PointsTask()
    train(training(whole), Diary().hooks())
    assert task.train_set.asked == [batch for step, batch in enumerate(whole.train_set.asked) if step not in {2, 3, 6}]


def test_parameters_and_momentum_stand_still_in_skipped_steps():
    run = training()
    state, seen = RunState(run.model, run.optimizer, run.ema), {}
    run.skipped = [(2, 4)]

    def remember(step, *_):
        seen[step] = {name: tensor.clone() for name, tensor in state.tensors().items()}

    train(run, engine.Hooks(**{**vars(Diary().hooks()), "stepped": remember}))
    assert same(seen[2], seen[3])
    assert same(seen[2], seen[4])
    assert not same(seen[4], seen[5])


def test_a_skipped_step_takes_no_time_for_samples():
    run, took = training(), []
    run.skipped = [(2, 4)]
    train(run, engine.Hooks(**{**vars(Diary().hooks()), "stepped": lambda *_: took.append(run.data_seconds)}))
    assert [bool(seconds) for seconds in took[:5]] == [True, True, False, False, True]


def test_evaluations_in_skipped_steps_are_done_as_ever():
    run, diary = training(), Diary()
    run.skipped = [(4, 5), (8, 10)]
    train(run, diary.hooks())
    assert [step for step, _ in diary.of("evaluated")] == [5, 10]
    assert diary.entries[-1] == ("keep", 10)


def test_the_loss_of_an_interval_with_skipped_steps_is_the_mean_over_the_others():
    fine, coarse = Diary(), Diary()
    for diary, every in ((fine, 1), (coarse, 5)):
        run = training(telemetry__log_every_steps=every)
        run.skipped = [(1, 3)]
        train(run, diary.hooks())
    first = [loss for step, loss, *_ in fine.of("measured") if step <= 5]
    assert len(first) == 3
    assert coarse.of("measured")[0][1] == pytest.approx(sum(first) / 3)


# --- random numbers ------------------------------------------------------------------------------------------------------------------


def draws():
    return (random.random(), float(np.random.random()), float(torch.rand(())))  # noqa: NPY002  # what other people's code uses


class DrawingInTheLoss(PointsTask):
    """User code that draws from every global generator while it computes a loss."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def loss(self, outputs, targets):
        self.drawn.append(draws())
        return super().loss(outputs, targets)


class DrawingInTheData(DrawingInTheLoss):
    """... and while it makes a batch."""

    def __init__(self):
        super().__init__()
        plain = self.train_set.batch

        def batch(indices, epochs):
            self.drawn.append(draws())
            return plain(indices, epochs)

        self.train_set.batch = batch


@pytest.mark.parametrize("kind", [DrawingInTheLoss, DrawingInTheData])
@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_users_code_draws_the_same_numbers_after_a_resume(kind, step):
    whole, before, after = kind(), kind(), kind()
    train(training(whole, data__micro_batches=2), Diary().hooks())
    run = training(before, data__micro_batches=2)
    with pytest.raises(LeavingError):
        train(run, leaving_at(step).hooks())
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    train(successor(run, after, data__micro_batches=2), Diary().hooks())
    assert before.drawn + after.drawn == whole.drawn
    assert len(set(whole.drawn)) == len(whole.drawn)


@pytest.mark.parametrize("seed", [0, 7, 20_261_125, 2**31, 2**63 - 1])
def test_any_seed_will_do(seed):
    run = training(run__seed=seed)
    engine.one_step(run, 0.1)
