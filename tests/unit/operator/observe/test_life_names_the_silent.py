from scripted_api import Clock

from ddp_operator.observe.life import Life


def test_silence_beyond_the_bound_is_told_with_name_and_age():
    clock = Clock()
    life = Life(clock)
    life.expect("pods", 50)
    life.expect("sweep", 100)
    clock.now += 51
    life.beat("sweep")
    assert life.silent() == ["pods has given no sign of life for 51 s (expected every 50 s)"]
    assert life.ages() == {"pods": 51, "sweep": 0}
    life.beat("pods")
    assert life.silent() == []


def test_who_never_beat_at_all_is_silent_too():
    clock = Clock()
    life = Life(clock)
    life.expect("pods", 50)
    assert life.silent() == []
    clock.now += 50.1
    assert len(life.silent()) == 1


def test_who_stopped_on_purpose_and_who_was_never_expected_are_not_named():
    clock = Clock()
    life = Life(clock)
    life.beat("stranger")
    life.expect("pods", 1)
    life.forget("pods")
    clock.now += 100
    assert life.silent() == []
    assert life.ages() == {}


def test_clock_that_goes_back_gives_no_negative_age():
    clock = Clock()
    life = Life(clock)
    life.expect("pods", 1)
    clock.now -= 100
    assert life.ages() == {"pods": 0.0}
