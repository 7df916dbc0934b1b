"""What a rank's recorder publishes and writes, with a clock that the test turns."""

import json

import pytest

from ddp_trainer.config import RunConfig
from ddp_trainer.telemetry.events import read_events, read_metrics
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.recorder import PUBLISH_SECONDS, Recorder

CONFIG = RunConfig().with_values({"data.global_batch": 64, "distributed.nodes": 4, "telemetry.tensorboard": False})


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def page(tmp_path):
    made = FactsPage.create(tmp_path / "facts", slots=1)
    yield made
    made.close()


def recorder(clock, page=None, run_dir=None, config=CONFIG, **changes):
    places = {"rank": 0, "local_rank": 0, "world_size": 4, "attempt": 2, "total_steps": 80, "steps_per_epoch": 20.0, **changes}
    return Recorder(config=config, page=page, run_dir=run_dir, clock=clock, **places)


def test_a_new_rank_is_seen_at_once_as_starting(clock, page):
    recorder(clock, page, rank=3)
    facts = page.read(0)
    assert (facts["rank"], facts["phase"], facts["step"], facts["attempt"], facts["updated_at"]) == (3, "starting", 0, 2, 1000.0)
    assert (facts["total_steps"], facts["epochs"]) == (80, 4.0)


def test_the_plan_may_come_later_than_the_rank(clock, page):
    mine = recorder(clock, page, total_steps=0, steps_per_epoch=0.0)
    assert (page.read(0)["total_steps"], page.read(0)["epochs"]) == (0, 0.0)
    mine.plan(100, 25.0, 40)
    assert (page.read(0)["total_steps"], page.read(0)["epochs"], page.read(0)["step"]) == (100, 4.0, 40), "never 0 of 100 on the way"


def test_preparation_is_shown_with_its_own_count(clock, page):
    mine = recorder(clock, page)
    mine.phase("starting", "decoding images", 0, 6000)
    clock.now += PUBLISH_SECONDS
    mine.phase("starting", "decoding images", 1500, 6000)
    facts = page.read(0)
    assert (facts["note"], facts["note_done"], facts["note_total"]) == ("decoding images", 1500, 6000)


def test_steps_are_published_at_most_once_per_interval(clock, page):
    mine = recorder(clock, page)
    mine.step(1, 16)
    assert page.read(0)["step"] == 1
    clock.now += PUBLISH_SECONDS / 4
    mine.step(2, 16)
    mine.step(3, 16)
    assert page.read(0)["step"] == 1
    clock.now += PUBLISH_SECONDS
    mine.step(4, 16)
    facts = page.read(0)
    assert (facts["step"], facts["samples_total"], facts["epoch"]) == (4, 64, 0.2)


def test_speed_is_the_ranks_own_and_the_runs(clock, page):
    mine = recorder(clock, page)
    for step in range(1, 12):
        mine.step(step, 16)
        clock.now += 0.5
    facts = page.read(0)
    assert facts["samples_per_second"] == pytest.approx(32)
    assert facts["run_samples_per_second"] == pytest.approx(128)
    assert facts["eta_seconds"] == pytest.approx((80 - 11) * 0.5)
    assert facts["step_seconds"] == pytest.approx(0.5)


def test_a_step_after_an_evaluation_is_training_again_and_seen_at_once(clock, page):
    mine = recorder(clock, page)
    mine.step(1, 16)
    mine.phase("evaluating", "test set", 10, 100)
    assert page.read(0)["phase"] == "evaluating"
    mine.evaluated(1, {"accuracy": 0.25, "loss": 2.0}, seconds=3.0)
    mine.step(2, 16)
    facts = page.read(0)
    assert (facts["phase"], facts["step"], facts["note"], facts["test_accuracy"], facts["test_loss"]) == ("training", 2, "", 0.25, 2.0)


def test_evaluations_and_saves_are_not_step_time(clock, page):
    mine = recorder(clock, page)
    for step in range(1, 20):
        mine.phase("evaluating" if step % 2 else "saving")
        clock.now += 60
        mine.step(2 * step - 1, 16)
        clock.now += 0.5
        mine.step(2 * step, 16)
    mine.close()
    assert page.read(0)["step_seconds"] == pytest.approx(0.5)


def test_snapshots_are_told_with_the_sum_of_their_stalls(clock, page):
    mine = recorder(clock, page)
    mine.kept(20, 0.1, 20)
    mine.kept(40, 0.3, 20)
    mine.close()
    facts = page.read(0)
    assert (facts["snapshot_step"], facts["snapshot_count_total"], facts["snapshot_every_steps"]) == (40, 2, 20)
    assert facts["snapshot_stall_seconds_total"] == mine.stalled_seconds == pytest.approx(0.4)
    assert "checkpoint" not in facts, "what is durable is the background writer's word"


def test_a_snapshot_does_not_publish_by_itself_since_there_may_be_one_in_every_step(clock, page):
    mine = recorder(clock, page)
    mine.kept(1, 0.1, 20)
    assert "snapshot_step" not in page.read(0)


def test_ranks_say_where_they_go_on_at_once_so_that_lost_steps_can_be_counted(clock, page):
    mine = recorder(clock, page)
    assert page.read(0).get("resumed_step") is None
    mine.resumed(20, "memory", lost_steps=5)
    facts = page.read(0)
    assert (facts["resumed_step"], facts["resumed_from"], facts["step"]) == (20, "memory", 20)


def test_every_ranks_own_part_of_a_step_is_told_as_far_as_it_is_known(clock, page):
    mine = recorder(clock, page)
    mine.step(1, 16, (0.123456789, 0.2))
    assert page.read(0)["own_seconds"] == [0.12346, 0.2]
    clock.now += PUBLISH_SECONDS
    mine.step(2, 16)  # a step that was passed over says nothing
    assert page.read(0)["own_seconds"] == [0.12346, 0.2]


def test_the_duration_of_a_step_is_not_known_before_one_was_seen_whole(clock):
    mine = recorder(clock)
    assert mine.usual_step_seconds is None
    for step in range(1, 5):
        mine.step(step, 16)
        clock.now += 0.5
    assert mine.usual_step_seconds == pytest.approx(0.5)


def test_steps_that_are_passed_over_are_no_measure_of_a_steps_duration(clock, page):
    mine = recorder(clock, page)
    for step in range(1, 5):
        mine.step(step, 16)
        clock.now += 0.5
    for step in range(5, 30):
        mine.step(step, 0)
        clock.now += 1e-6
    assert mine.usual_step_seconds == pytest.approx(0.5)
    clock.now += PUBLISH_SECONDS
    mine.step(30, 0)
    assert page.read(0)["samples_total"] == 64
    assert page.read(0)["samples_per_second"] == pytest.approx(32)


def test_rank_0_writes_the_curves_and_the_diary(clock, tmp_path):
    mine = recorder(clock, run_dir=tmp_path)
    mine.resumed(20, "disk", lost_steps=5)
    mine.step(21, 64)
    clock.now += 0.5
    mine.step(22, 64)
    mine.train_metrics(22, 1.5, 0.4, 0.05)
    mine.evaluated(22, {"accuracy": 0.5}, 2.0)
    mine.kept(22, 0.1, 20)
    mine.finished(22, {"accuracy": 0.5})
    mine.close()
    train, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    expected = {"kind": "train", "step": 22, "epoch": 1.1, "time": 1000.5, "attempt": 2, "loss": 1.5, "accuracy": 0.4, "lr": 0.05}
    assert train == {**expected, "samples_per_second": 128.0}
    assert (evaluation["kind"], evaluation["accuracy"], evaluation["seconds"]) == ("eval", 0.5, 2.0)
    events = read_events(tmp_path / "events.jsonl")
    assert [event["kind"] for event in events] == ["resume", "first_step", "evaluate", "finish"]
    assert (events[0]["step"], events[0]["source"], events[0]["lost_steps"]) == (20, "disk", 5)
    assert (events[3]["metrics"], events[3]["seconds"]) == ({"accuracy": 0.5}, 0.5)


def test_a_start_from_the_beginning_voids_what_was_written_before_it(clock, tmp_path):
    config = CONFIG.with_values({"telemetry.tensorboard": True})
    before = recorder(clock, run_dir=tmp_path, config=config, attempt=1)
    for step in (10, 20):
        before.train_metrics(step, 2.0, 0.1, 0.05)
    before.close()
    after = recorder(clock, run_dir=tmp_path, config=config, attempt=2)
    after.resumed(0, "nothing", 25)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    after.train_metrics(10, 3.0, 0.1, 0.05)
    after.close()
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3.0]
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["source"], event["lost_steps"]) == ("resume", 0, "nothing", 25)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    curves = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/loss")] == [(10, 3.0)]


@pytest.mark.parametrize("uuid", ["GPU-4C7A0d5e-0000", "4c7a0d5e-0000"])
def test_a_ranks_gpu_is_known_by_the_same_name_whoever_names_it(clock, page, uuid):
    mine = recorder(clock, page)
    assert "gpu_uuid" not in page.read(0)
    mine.on_gpu(uuid)
    assert page.read(0)["gpu_uuid"] == "4c7a0d5e-0000"


def test_a_rank_without_run_directory_writes_no_file(clock, page, tmp_path):
    mine = recorder(clock, page, rank=1)
    mine.train_metrics(10, 1.0, 0.5, 0.1)
    mine.kept(10, 0.1, 20)
    mine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]


def test_a_loss_that_is_not_finite_keeps_every_file_strict_json(clock, page, tmp_path):
    mine = recorder(clock, page, run_dir=tmp_path)
    mine.train_metrics(10, float("nan"), 0.1, 0.1)
    mine.close()

    def refuse(name):
        raise AssertionError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None
    assert page.read(0)["loss"] is None


def test_closing_leaves_the_last_step_readable(clock, page):
    mine = recorder(clock, page)
    mine.step(1, 16)
    mine.step(2, 16)
    mine.close()
    assert page.read(0)["step"] == 2
