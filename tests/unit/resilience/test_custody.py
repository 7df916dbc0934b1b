"""The agent's care for its snapshots: a dead writer is replaced, and on the way out the newest state is written, within a bound."""

from __future__ import annotations

import signal

import pytest


def test_a_dead_writer_is_replaced_as_often_as_it_dies(bench):
    pids = [bench.begin()]
    for step in (1, 2, 3):
        bench.until_written(bench.keep(step, step, True))
        bench.signal(signal.SIGKILL)
        assert bench.deaths(1) == [True]
        pids.append(bench.writer())
    assert len(set(pids)) == 4
    bench.until_written(bench.keep(4, 4, True))
    assert bench.store.steps() == [2, 3, 4]


def test_a_writer_that_dies_and_dies_again_is_replaced_after_longer_and_longer_pauses_with_one_alarm(bench):
    bench.begin()
    for deaths, pause in enumerate((0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0), start=1):
        bench.signal(signal.SIGKILL)
        assert bench.deaths(1) == [True]
        if pause:
            assert bench.look_after(pause * 0.9) is None
        assert bench.look_after(pause * 0.2) is not None
        assert len(bench.heard_alarms()) == (deaths >= 3)
    (alarm,) = bench.heard_alarms()
    assert "the background writer has died 3 times in a row without writing anything, the last time by signal 9" in alarm


@pytest.mark.parametrize("healthy", ["it wrote something", "it lived long"])
def test_a_healthy_writers_death_ends_the_row(bench, healthy):
    bench.begin()
    for _ in range(3):
        bench.signal(signal.SIGKILL)
        bench.deaths(1)
        bench.look_after(10)
    if healthy == "it wrote something":
        bench.until_written(bench.keep(70, 7, True))
    else:
        bench.look_after(60)
    bench.signal(signal.SIGKILL)
    bench.deaths(1)
    assert bench.writer() is not None, "replaced at once"


def test_the_death_of_a_rank_is_not_the_writers(bench):
    pid = bench.begin()
    assert not bench.is_writers(pid + 1)
    assert bench.writer() == pid


def test_a_writer_that_runs_is_not_started_twice(bench):
    assert bench.begin() == bench.start()


def test_only_the_node_with_the_run_directory_has_a_writer(bench):
    bench.agent(str(bench.root), {}, 1, False)
    assert bench.start() is None


# --- on the way out ------------------------------------------------------------------------------------------------------------------


def test_the_newest_snapshot_is_written_though_no_rank_asked_for_it(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.keep(80, 8, False)
    bench.keep(90, 9, False)
    answer, _ = bench.write_newest(60)
    assert answer is True
    assert bench.store.steps() == [7, 9]
    assert bench.report()["checkpoint"]["step"] == 9


def test_what_lies_on_disk_is_not_asked_for_again(bench):
    bench.begin()
    number = bench.keep(70, 7, True)
    bench.until_written(number)
    bench.keep(71, 7, False)  # ranks that were started again at step 7 have kept it once more
    assert bench.write_newest(0) == [True, 0]
    assert bench.wanted_number() == number


def test_the_same_step_with_its_last_metrics_is_waited_for_where_a_rank_has_asked_for_it(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.signal(signal.SIGSTOP)
    number = bench.keep(71, 7, True)
    assert bench.write_newest(0.3)[0] is False
    bench.signal(signal.SIGCONT)
    assert bench.write_newest(60)[0] is True
    assert bench.report()["number"] == number


def test_with_nothing_in_memory_or_on_another_node_there_is_nothing_to_write(parent, bench, tmp_path):
    bench.begin()
    assert bench.write_newest(0) == [True, 0]
    other = parent.bench(tmp_path / "other")
    other.root.mkdir()
    other.agent(str(other.root), {}, 1, False)
    other.keep(70, 7, False)
    assert other.write_newest(0) == [True, 0]


def test_a_writer_that_stands_still_is_waited_for_no_longer_than_the_bound(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.signal(signal.SIGSTOP)
    bench.keep(80, 8, False)
    answer, looks = bench.write_newest(0.3)
    assert answer is False
    assert looks >= 1, "the agent still serves its telemetry meanwhile"
    assert bench.store.steps() == [7]
    bench.signal(signal.SIGCONT)
    assert bench.write_newest(60)[0] is True
    assert bench.store.steps() == [7, 8]


def test_a_writer_that_does_not_end_in_what_is_left_of_the_time_is_killed(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.signal(signal.SIGSTOP)
    assert bench.close(0.0) is None


def test_a_write_that_has_just_failed_is_tried_again_as_long_as_there_is_time(bench):
    bench.begin()
    bench.store.root.write_text("in the way")
    times = bench.until_failed(bench.keep(70, 7, True))["times"]
    assert bench.write_newest_when_freed(60, str(bench.store.root), times + 1) is True
    assert bench.store.steps() == [7]


def test_a_disk_that_stays_full_is_waited_for_no_longer_than_the_bound(bench):
    bench.begin()
    bench.store.root.write_text("in the way")
    bench.until_failed(bench.keep(70, 7, True))
    answer, looks = bench.write_newest(0.3)
    assert answer is False
    assert looks >= 1


def test_a_disk_that_stays_full_leaves_time_to_copy_to_the_second_home_what_did_get_to_disk(bench, tmp_path):
    bench.begin({"checkpoint.mirror_url": str(tmp_path / "second home")})
    bench.store.root.write_text("in the way")
    times = bench.until_failed(bench.keep(70, 7, True))["times"]
    answer, left_seconds = bench.write_newest_and_what_is_left(16.0)
    assert answer is False
    assert 0 < left_seconds <= 8.0
    assert bench.report()["failed"]["times"] > times + 1, "until half of the time is over it is tried again"


def test_a_state_that_is_not_finite_is_not_waited_for(bench):
    bench.begin()
    bench.until_written(bench.keep(70, 7, True))
    bench.keep(80, 8, False, 4, "model.3.bias")
    answer, _ = bench.write_newest(10**6)
    assert answer is False
    assert bench.store.steps() == [7]
