"""The loop itself, on one rank and real gradients: which samples, what is told, and what stops it."""

from __future__ import annotations

import pytest
import torch
from small_training import Diary, PointsTask, config, parameters, training
from torch import nn

from ddp_trainer import engine
from ddp_trainer.engine import loop, train
from ddp_trainer.engine.step import DeviceTimer, HostTimer, timer_on
from ddp_trainer.errors import ConfigError, DivergedError


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns():
    run, diary = training(optim__epochs=20, optim__lr=0.1), Diary()
    metrics = train(run, diary.hooks())
    losses = [loss for _, loss, _, _ in diary.of("measured")]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert metrics["accuracy"] > 0.9


def test_the_outside_is_told_of_everything_in_order():
    run, diary = training(optim__epochs=2), Diary()
    metrics = train(run, diary.hooks())
    assert [entry[0] for entry in diary.entries[:3]] == ["stepped", "measured", "keep"]
    assert [entry[0] for entry in diary.entries[-7:]] == ["stepped", "measured", "secure", "evaluating", "evaluating", "evaluated", "keep"]
    assert [(step, samples) for step, samples, _ in diary.of("stepped")] == [(step, 8) for step in range(1, 11)]
    assert diary.of("keep") == [(step,) for step in range(1, 11)]
    assert [step for step, _ in diary.of("evaluated")] == [5, 10]
    assert diary.of("evaluated")[-1][1] == metrics


def test_what_it_takes_to_make_all_states_equal_is_told_with_the_keeping(monkeypatch):
    run, told, clock = training(), [], iter(range(10**6))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))  # a second between any two looks
    train(run, engine.Hooks(**{**vars(Diary().hooks()), "keep": lambda *words: told.append(words)}))
    assert told == [(step, 1) for step in range(1, 11)]


@pytest.mark.parametrize(("every", "steps"), [(1, [*range(1, 11)]), (4, [4, 8, 10]), (100, [10])])
def test_the_loss_is_read_only_at_intervals_and_at_the_end(every, steps):
    diary = Diary()
    train(training(telemetry__log_every_steps=every), diary.hooks())
    assert [step for step, *_ in diary.of("measured")] == steps


def test_what_is_measured_is_the_mean_over_the_interval():
    fine, coarse = Diary(), Diary()
    train(training(telemetry__log_every_steps=1), fine.hooks())
    train(training(telemetry__log_every_steps=5), coarse.hooks())
    one_by_one = fine.of("measured")
    for number, (_, loss, accuracy, _) in enumerate(coarse.of("measured")):
        part = one_by_one[number * 5 : (number + 1) * 5]
        assert loss == pytest.approx(sum(entry[1] for entry in part) / 5)
        assert accuracy == pytest.approx(sum(entry[2] for entry in part) / 5)


def test_a_run_that_is_complete_does_nothing():
    run, diary = training(), Diary()
    run.step = run.evaluated_step = run.total_steps
    run.metrics = {"accuracy": 0.5}
    before = parameters(run)
    assert train(run, diary.hooks()) == {"accuracy": 0.5}
    assert diary.entries == []
    assert same(parameters(run), before)


# --- micro-batches -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_any_number_of_micro_batches_sees_the_same_samples_at_the_same_steps(parts):
    whole, cut = PointsTask(), PointsTask()
    train(training(whole, data__micro_batches=1), Diary().hooks())
    train(training(cut, data__micro_batches=parts), Diary().hooks())
    asked = [sample for batch in cut.train_set.asked for sample in batch]
    assert asked == [sample for batch in whole.train_set.asked for sample in batch]
    assert [len(batch) for batch in cut.train_set.asked] == [8 // parts] * (10 * parts)


def test_without_batch_statistics_accumulation_changes_nothing_but_rounding():
    class Plain(PointsTask):
        def build_model(self):
            return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    runs = [training(Plain(), data__micro_batches=parts) for parts in (1, 4)]
    for run in runs:
        train(run, Diary().hooks())
    whole, cut = (parameters(run) for run in runs)
    assert all(torch.allclose(whole[name], cut[name], rtol=1e-4, atol=1e-6) for name in whole)


def test_every_sample_is_seen_once_an_epoch():
    task = PointsTask()
    train(training(task, optim__epochs=3), Diary().hooks())
    seen = sorted((epoch, index) for batch in task.train_set.asked for index, epoch in batch)
    assert seen == [(epoch, index) for epoch in range(3) for index in range(40)]


def test_two_trainings_of_one_seed_are_equal_bit_for_bit_and_of_two_seeds_are_not():
    one, again, other = (training(run__seed=seed) for seed in (7, 7, 8))
    for run in (one, again, other):
        train(run, Diary().hooks())
    assert same(parameters(one), parameters(again))
    assert not same(parameters(one), parameters(other))


def test_a_users_dropout_is_keyed_by_step_so_a_resumed_run_draws_the_same():
    class WithDropout(PointsTask):
        def build_model(self):
            return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    undisturbed, resumed = training(WithDropout()), training(WithDropout())
    for run in (undisturbed, resumed):
        for _ in range(4):
            engine.one_step(run, 0.1)
            run.step += 1
    torch.rand(1000)  # a process that was started again is somewhere else in its random numbers
    engine.one_step(resumed, 0.1)
    torch.manual_seed(123)
    engine.one_step(undisturbed, 0.1)
    assert same(parameters(resumed), parameters(undisturbed))


# --- how long a rank's own part of a step takes -------------------------------------------------------------------------------------


class Gpu:
    """Work takes its time after it was enqueued; an event's time is known once the GPU has passed it. `stream` is in seconds."""

    def __init__(self):
        self.stream, self.passed = 0.0, 0.0

    def event(self):
        return GpuEvent(self)


class GpuEvent:
    def __init__(self, gpu):
        self._gpu = gpu

    def record(self):
        self.at = self._gpu.stream

    def query(self):
        return self.at <= self._gpu.passed

    def elapsed_time(self, end):
        assert end.query(), "asking now would wait"
        return (end.at - self.at) * 1000.0


def test_on_a_gpu_the_own_part_is_the_gpus_time_read_once_it_is_known_and_never_waited_for():
    gpu, said = Gpu(), []
    timer = DeviceTimer(gpu.event)
    # a step every 10 s, of which the ranks wait for each other after the forward pass; `passed`: how far the GPU is when the host asks
    for step, (forward_seconds, passed) in enumerate([(0.25, 0.0), (0.5, 5.0), (0.75, 8.0), (1.0, 25.0)]):
        gpu.stream = 10.0 * step
        timer.start()
        gpu.stream += forward_seconds
        gpu.passed = passed
        said.append(timer.stop())
    assert said == [0.0, 0.25, 0.25, 0.75]


def test_the_timer_is_that_of_the_device_and_the_hosts_is_known_at_once():
    assert isinstance(timer_on(torch.device("cuda", 3)), DeviceTimer)
    timer = timer_on(torch.device("cpu"))
    assert type(timer) is HostTimer
    timer.start()
    assert 0.0 < timer.stop() < timer.stop()


def test_a_step_is_timed_by_the_timer_that_it_is_given():
    class Fixed(HostTimer):
        def stop(self):
            return 0.125

    run = training()
    engine.one_step(run, 0.1, timer=Fixed())
    assert run.own_seconds == 0.125
    engine.one_step(run, 0.1)
    assert 0.0 < run.own_seconds != 0.125


# --- divergence ----------------------------------------------------------------------------------------------------------------------


class Poisoned(PointsTask):
    """The loss of the third step is not a number, or its gradient is not."""

    def __init__(self, poison):
        super().__init__()
        self.poison, self.calls = poison, 0

    def loss(self, outputs, targets):
        self.calls += 1
        loss = super().loss(outputs, targets)
        return self.poison(loss, outputs) if self.calls == 3 else loss


@pytest.mark.parametrize(
    "poison",
    [
        lambda loss, _: loss * float("nan"),
        lambda loss, _: loss * float("inf"),
        lambda loss, _: loss + float("inf"),  # a finite gradient of a loss that is not
        lambda loss, outputs: loss + (outputs.sum() * 0).abs().sqrt(),  # a finite loss whose gradient is not
    ],
    ids=["nan", "inf", "loss", "gradient"],
)
def test_a_loss_that_is_not_finite_stops_before_the_step(poison):
    run, diary = training(Poisoned(poison)), Diary()
    kept = []

    def remember(step, _seconds):
        kept.append(({**parameters(run)}, {n: b.clone() for n, b in run.optimizer.state_dict()["state"][0].items()}))

    hooks = engine.Hooks(**{**vars(diary.hooks()), "keep": remember})
    with pytest.raises(
        DivergedError, match=r"not finite at step 3 on rank 0; lower optim\.lr \(now 0\.1\) or lengthen optim\.warmup_ratio"
    ) as caught:
        train(run, hooks)
    assert caught.value.window == (2, 3)
    assert run.step == 2
    assert len(kept) == 2  # no state was kept after the bad step
    assert same(parameters(run), kept[-1][0])
    assert all(torch.equal(tensor, kept[-1][1][name]) for name, tensor in run.optimizer.state_dict()["state"][0].items())


# --- the average, the decay, and the buffers -----------------------------------------------------------------------------------------


def test_evaluation_uses_the_average_and_training_gets_its_own_parameters_back():
    run = training(optim__ema_decay=0.9)
    for _ in range(5):
        engine.one_step(run, 0.1)
        run.step += 1
    live, average = parameters(run), {name: tensor.clone() for name, tensor in run.ema.items()}
    assert not same(live, average)
    with run.evaluated_parameters:
        assert same(parameters(run), average)
    assert same(parameters(run), live)
    evaluated = engine.evaluate(run)["loss"]
    assert same(parameters(run), live)
    assert same(run.ema, average)
    assert evaluated != pytest.approx(loss_on_test_set(run), rel=1e-3)
    run.model.load_state_dict(average, strict=False)
    assert evaluated == pytest.approx(loss_on_test_set(run), rel=1e-5)


def loss_on_test_set(run):
    run.model.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(run.model(run.test_set.inputs), run.test_set.targets).item()


def test_parameters_come_back_even_if_the_evaluation_fails():
    run = training(optim__ema_decay=0.9)
    engine.one_step(run, 0.1)
    live = parameters(run)
    with pytest.raises(ZeroDivisionError), run.evaluated_parameters:
        raise ZeroDivisionError
    assert same(parameters(run), live)


def test_the_average_is_the_exponential_one():
    run = training(optim__ema_decay=0.75)
    expected = parameters(run)
    for _ in range(6):
        engine.one_step(run, 0.1)
        run.step += 1
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in parameters(run).items()}
    assert all(torch.allclose(run.ema[name], expected[name], atol=1e-6) for name in expected)


def test_there_is_no_average_unless_it_is_asked_for():
    run = training()
    assert run.ema == {}
    with run.evaluated_parameters:
        pass


def test_norms_and_biases_are_not_decayed():
    run = training(optim__weight_decay=0.5)
    decayed = {id(p): settings["weight_decay"] for settings in run.optimizer.param_groups for p in settings["params"]}
    assert {name: decayed[id(p)] for name, p in run.model.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.5,
        "3.bias": 0.0,
    }


def test_frozen_parameters_of_a_users_model_are_left_out():
    class Frozen(PointsTask):
        def build_model(self):
            model = super().build_model()
            model[0].requires_grad_(False)
            return model

    run = training(Frozen())
    before = parameters(run)
    train(run, Diary().hooks())
    after = parameters(run)
    assert {name for name in before if torch.equal(before[name], after[name])} == {"0.weight", "0.bias"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_and_norms_and_biases_do_not_whatever_the_optimizer(name):
    run = training(optim__name=name, optim__weight_decay=0.25)
    assert type(run.optimizer).__name__.lower() == name
    assert {(p.ndim > 1, group["weight_decay"]) for group in run.optimizer.param_groups for p in group["params"]} == {
        (True, 0.25),
        (False, 0.0),
    }
    assert run.optimizer.defaults["fused"] is True


def test_adamw_learns():
    run, diary = training(optim__name="adamw", optim__lr=0.01, optim__epochs=10), Diary()
    train(run, diary.hooks())
    losses = [loss for _, loss, _, _ in diary.of("measured")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


class Torn(torch.autograd.Function):
    """Passes values through; its gradient is not finite."""

    @staticmethod
    def forward(_context, values):
        return values.clone()

    @staticmethod
    def backward(_context, gradient):
        return gradient * float("nan")


class TornTask(PointsTask):
    def build_model(self):
        model = super().build_model()
        model[1].register_forward_hook(lambda _module, _inputs, outputs: Torn.apply(outputs))
        return model


def test_a_gradient_that_is_not_finite_in_early_layers_only_stops_before_the_step():
    run = training(TornTask())
    before = parameters(run)
    with pytest.raises(DivergedError, match="gradient is not finite at step 1"):
        engine.one_step(run, 0.1)
    assert same(before, parameters(run))


# --- evaluation ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 25, 100])
def test_evaluation_counts_every_test_sample_once_whatever_the_batch(batch):
    task = PointsTask()
    run = training(task, data__eval_batch=batch)
    metrics = engine.evaluate(run)
    assert [sample for part in task.test_set.asked for sample in part] == [(index, None) for index in range(25)]
    run.model.eval()
    with torch.no_grad():
        outputs = run.model(task.test_set.inputs)
    assert metrics["accuracy"] == (outputs.argmax(-1) == task.test_set.targets).double().mean().item()
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, task.test_set.targets).item(), rel=1e-5)


def test_evaluation_leaves_the_training_as_it_was():
    run, undisturbed = training(), training()
    for _ in range(3):
        engine.one_step(run, 0.1)
        engine.one_step(undisturbed, 0.1)
        engine.evaluate(run)
    assert same(dict(run.model.state_dict()), dict(undisturbed.model.state_dict()))


def test_predictions_are_kept_for_the_report_with_target_class_and_confidence():
    run = training(data__eval_batch=7)
    engine.evaluate(run)
    engine.evaluate(run)
    rows = torch.cat(run.predictions)
    assert rows.shape == (25, 3)
    assert torch.equal(rows[:, 0].long(), run.test_set.targets)
    assert ((rows[:, 2] >= 0.5) & (rows[:, 2] <= 1)).all()


def test_a_task_without_classes_has_no_predictions():
    task = PointsTask()
    task.classes = ()
    run = training(task)
    assert engine.evaluate(run).keys() == {"accuracy", "loss"}
    assert run.predictions == []


# --- precision and compilation -------------------------------------------------------------------------------------------------------


def test_bf16_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(
        ConfigError, match=r"precision\.dtype is bf16 but this cpu has no bf16 arithmetic; use precision\.dtype=auto or fp32"
    ):
        engine.choose_dtype(config(precision__dtype="bf16"), torch.device("cpu"))
    assert engine.choose_dtype(config(precision__dtype="auto"), torch.device("cpu")) == torch.float32


def test_compilation_without_a_compiler_is_declined_or_refused_in_a_sentence(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    cpu = torch.device("cpu")
    assert engine.compiles(config(precision__compile="off"), cpu) is False
    assert caplog.messages == []
    assert engine.compiles(config(precision__compile="auto"), cpu) is False
    assert "needs a C++ compiler" in caplog.messages[0]
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .*; install one, or use precision\.compile=off"):
        engine.compiles(config(precision__compile="on"), cpu)
