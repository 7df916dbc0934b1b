"""Who is looked at next: changes apart from time and mere numbers, and numbers not more often than they are renewed."""

from ddp_operator.turns import RENEWAL_SPREAD, Turns

RENEWAL_SECONDS = 15.0


def names(turns, busy=()):
    """Those that changed, then those that are due."""
    found = []
    for take in (turns.take_changed, turns.take_timed):
        while (taken := take(busy)) is not None:
            found.append(taken[0][1])
    return found


def key(name):
    return ("team", name)


def test_changes_wait_apart_from_what_time_makes_due_and_each_in_the_order_of_its_coming():
    turns = Turns()
    for name in ("b", "a"):
        turns.due[key(name)] = 1.0
    turns.pass_on(1.0)
    for name in ("z", "y"):
        turns.change(key(name), 2.0)
    assert turns.take_timed(()) == (key("b"), 1.0)
    assert turns.take_changed(()) == (key("z"), 2.0)
    assert names(turns) == ["y", "a"]


def test_what_has_failed_may_have_been_a_change_and_waits_as_one():
    turns = Turns()
    for name in ("a", "b"):
        turns.due[key(name)] = 1.0
    turns.pass_on(1.0, {key("b")})
    assert turns.take_changed(()) == (key("b"), 1.0)
    assert names(turns) == ["a"]


def test_a_run_that_is_due_and_then_changes_has_one_turn_and_waits_since_the_first():
    turns = Turns()
    turns.due[key("a")] = 1.0
    turns.pass_on(1.0)
    turns.change(key("a"), 3.0)
    assert turns.take_changed(()) == (key("a"), 1.0)
    assert names(turns) == []


def test_a_run_that_has_to_wait_has_no_turn_before():
    turns = Turns()
    turns.change(key("a"), 1.0)
    turns.due[key("b")] = 1.0
    turns.pass_on(1.0)
    for name in ("a", "b"):
        turns.wait_until(key(name), 20.0)
    turns.pass_on(19.0)
    assert names(turns) == []
    turns.pass_on(20.0)
    assert names(turns) == ["a", "b"]


def test_a_busy_run_keeps_its_turn():
    turns = Turns()
    turns.change(key("a"), 1.0)
    turns.change(key("b"), 2.0)
    assert names(turns, {key("a")}) == ["b"]
    assert turns.take_changed(()) == (key("a"), 1.0)


def test_numbers_that_move_are_looked_at_no_sooner_than_they_may_be_renewed():
    turns = Turns()
    turns.looked_at(key("a"), 100.0, 60.0, RENEWAL_SECONDS)
    for now in (101.0, 110.0, 114.9):
        turns.move(key("a"), now)
        turns.pass_on(now)
        assert names(turns) == []
    turns.pass_on(100.0 + RENEWAL_SECONDS * RENEWAL_SPREAD)
    assert names(turns) == ["a"]


def test_numbers_that_move_after_a_long_rest_are_looked_at_at_once_and_never_later_than_planned():
    turns = Turns()
    turns.looked_at(key("a"), 100.0, 300.0, RENEWAL_SECONDS)
    turns.move(key("a"), 200.0)
    turns.pass_on(200.0)
    assert names(turns) == ["a"]
    turns.looked_at(key("b"), 300.0, 2.0, RENEWAL_SECONDS)
    turns.move(key("b"), 301.0)
    assert turns.due[key("b")] == 302.0


def test_after_a_start_the_renewals_of_many_runs_spread():
    turns = Turns()
    for index in range(100):
        turns.looked_at(key(str(index)), 0.0, 60.0, RENEWAL_SECONDS)
        turns.move(key(str(index)), 1.0)
    assert len({round(at, 1) for at in turns.due.values()}) > 10
    assert all(RENEWAL_SECONDS <= at <= RENEWAL_SECONDS * RENEWAL_SPREAD for at in turns.due.values())


def test_who_is_taken_is_not_due_any_more():
    turns = Turns()
    turns.due[key("a")] = 50.0
    turns.change(key("a"), 1.0)
    turns.take_changed(())
    assert turns.due == {}
    assert turns.pause_seconds(1.0) == float("inf")


def test_nothing_is_kept_of_a_run_that_is_gone_nor_after_the_end_of_leadership():
    turns = Turns()
    turns.looked_at(key("a"), 1.0, 60.0, RENEWAL_SECONDS)
    turns.forget(key("a"))
    assert turns._numbers_at == {}
    turns.looked_at(key("b"), 1.0, 60.0, RENEWAL_SECONDS)
    turns.change(key("c"), 1.0)
    turns.clear()
    assert (turns.due, turns._numbers_at, list(turns.since(()))) == ({}, {}, [])
