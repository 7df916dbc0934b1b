"""The generation barrier over a real store: who meets whom, when all meet again, and how a run ends for all at once."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psutil
import pytest
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters, rendezvous_handler_registry

from ddp_trainer.errors import ConfigError, PeerLostError
from ddp_trainer.launchers.local import free_port
from ddp_trainer.resilience import agent_store, rendezvous
from ddp_trainer.resilience.fault import Fault
from ddp_trainer.resilience.rendezvous import GenerationBarrier, StoreLostError, SupersededError

PATIENCE_SECONDS = 30.0
"""A bound against hanging only."""


class Gang:
    """Nodes as threads: each has its own barrier object and its own connection to node 0's store."""

    def __init__(self, nodes, timeout_seconds=PATIENCE_SECONDS, min_nodes=None, rejoin_wait_seconds=PATIENCE_SECONDS):
        self.nodes, self.timeout_seconds, self.port = nodes, timeout_seconds, free_port()
        self.elastic = {"min_nodes": min_nodes, "rejoin_wait_seconds": rejoin_wait_seconds}
        self.barriers = [self.join(node) for node in range(nodes)]
        self.pool = ThreadPoolExecutor(nodes * 2)

    def join(self, node):
        """A new agent for a node."""
        return GenerationBarrier(
            node=node,
            nodes=self.nodes,
            host="127.0.0.1",
            port=self.port,
            run_id="test",
            timeout_seconds=self.timeout_seconds,
            **self.elastic,
        )

    def start(self, *nodes):
        """Futures of these nodes' meeting (default: of all)."""
        return [self.pool.submit(self.barriers[node].next_rendezvous) for node in nodes or range(self.nodes)]

    def meet(self):
        """All meet; gives what each was told."""
        return [future.result(PATIENCE_SECONDS) for future in self.start()]

    def all_do(self, what):
        """The same at the same time on every node."""
        return list(self.pool.map(what, self.barriers))

    def wait_until_waiting(self, *nodes):
        """Start these nodes' meeting; returns when each of them has looked for the others at least once."""
        seen = []
        for node in nodes:
            event = Event()
            self.barriers[node].while_waiting = event.set
            seen.append(event)
        futures = self.start(*nodes)
        assert all(event.wait(PATIENCE_SECONDS) for event in seen)
        return futures


@pytest.fixture
def gang():
    made = []

    def make(*arguments, **options):
        made.append(Gang(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.pool.shutdown()


# --- meeting -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_all_nodes_meet_in_one_generation_each_in_its_fixed_place(gang, nodes):
    them = gang(nodes)
    told = them.meet()
    assert [(info.rank, info.world_size) for info in told] == [(node, nodes) for node in range(nodes)]
    assert {barrier.generation for barrier in them.barriers} == {0}
    assert {(info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) for info in told} == {("127.0.0.1", them.port)}
    told[0].store.set("word", "from node 0")
    assert all(info.store.get("word") == b"from node 0" for info in told)


def test_nobody_goes_before_the_last_one_has_come(gang):
    them = gang(4)
    early = them.wait_until_waiting(0, 1, 3)
    assert not any(future.done() for future in early)
    (last,) = them.start(2)
    assert [future.result(PATIENCE_SECONDS).rank for future in [*early, last]] == [0, 1, 3, 2]


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_many_who_notice_one_incident_ask_for_one_next_generation(gang, nodes):
    them = gang(nodes)
    for expected in (1, 2, 3):
        them.meet()
        for _ in range(3):
            them.all_do(lambda barrier: barrier.ask_for_next())
        assert {barrier._newest() for barrier in them.barriers} == {expected}
    them.meet()
    assert {barrier.generation for barrier in them.barriers} == {3}


def test_an_ask_that_comes_late_is_about_the_old_generation_and_disturbs_nobody(gang):
    them = gang(2)
    them.meet()
    late = them.join(1)
    late._connect(time.monotonic() + PATIENCE_SECONDS)
    late.generation = 0
    them.barriers[0].ask_for_next()
    them.meet()
    late.ask_for_next()
    assert [barrier.is_superseded() for barrier in them.barriers] == [False, False]


def test_healthy_nodes_notice_through_torchs_own_question(gang):
    them = gang(3)
    them.meet()
    assert [barrier.num_nodes_waiting() for barrier in them.barriers] == [0, 0, 0]
    them.barriers[2].ask_for_next()
    assert [barrier.num_nodes_waiting() for barrier in them.barriers] == [1, 1, 1]


def test_a_wait_can_be_ended_from_inside(gang):
    class AskedToStopError(Exception):
        pass

    def stop():
        raise AskedToStopError

    them = gang(2)
    them.barriers[0].while_waiting = stop
    with pytest.raises(AskedToStopError):
        them.barriers[0].next_rendezvous()


# --- nodes that die and return -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "lost"), [(2, 1), (4, 2), (8, 7)])
def test_a_node_that_died_after_the_meeting_and_returns_brings_all_into_a_new_generation(gang, nodes, lost):
    them = gang(nodes)
    them.meet()
    them.barriers[lost] = them.join(lost)
    (returning,) = them.start(lost)
    others = [node for node in range(nodes) if node != lost]
    waiting = [them.pool.submit(await_superseded, them.barriers[node]) for node in others]
    assert all(future.result(PATIENCE_SECONDS) for future in waiting)
    fault = Fault.from_json(them.barriers[0].fault())
    assert (fault.cause, fault.node, fault.rank) == ("peer_loss", lost, None)
    assert [future.result(PATIENCE_SECONDS).rank for future in [*them.start(*others), returning]] == [*others, lost]
    assert {barrier.generation for barrier in them.barriers} == {1}


def test_a_node_that_returns_to_the_next_generation_is_named_once_and_a_broken_connection_is_no_death(gang):
    them = gang(3)
    them.meet()
    them.barriers[0].ask_for_next()  # the others have noticed before it is back
    them.barriers[1]._store.disconnect()
    them.barriers[2] = them.join(2)
    them.meet()
    assert {barrier.generation for barrier in them.barriers} == {1}
    assert [them.barriers[0].take_replaced(), them.barriers[0].take_replaced()] == [[2], []]
    assert them.barriers[0].fault() is None


def test_a_node_that_only_lost_its_connection_says_so(gang):
    them = gang(2)
    them.meet()
    them.barriers[1]._store.disconnect()
    (returning,) = them.start(1)
    assert await_superseded(them.barriers[0])
    assert "connection" in Fault.from_json(them.barriers[0].fault()).message
    them.start(0)
    returning.result(PATIENCE_SECONDS)
    assert them.barriers[0].take_replaced() == []


def await_superseded(barrier):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if barrier.is_superseded():
            return True
    return False


def test_a_node_that_died_while_the_others_were_waiting_is_not_counted(gang):
    them = gang(4)
    dying = them.barriers[2]
    dying.while_waiting = lambda: dying.generation < 0 or 1 / 0  # it has claimed its place when it dies, and does not while it connects
    with pytest.raises(ZeroDivisionError):
        dying.next_rendezvous()
    early = them.wait_until_waiting(0, 1)
    them.barriers[2] = them.join(2)
    late = them.wait_until_waiting(2) + them.start(3)
    assert sorted(future.result(PATIENCE_SECONDS).rank for future in [*early, *late]) == [0, 1, 2, 3]
    assert {barrier.generation for barrier in them.barriers} == {1}


def test_a_node_whose_connection_breaks_while_it_waits_is_not_counted_twice(gang):
    them = gang(3)
    breaks, waits_again = iter([True]), Event()

    def look():
        if next(breaks, False):
            raise StoreLostError("the connection was reset")
        waits_again.set()

    them.barriers[1].while_waiting = look
    (unlucky,) = them.start(1)
    assert waits_again.wait(PATIENCE_SECONDS)
    (early,) = them.wait_until_waiting(0)  # two of three have come: a place that was counted twice would make it complete
    (last,) = them.start(2)
    assert [future.result(PATIENCE_SECONDS).rank for future in (early, unlucky, last)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("nodes", "present", "words"),
    [
        (
            4,
            [0, 1, 3],
            r"^node 2 did not come to generation 0 within 2 s; see why they do not start, or raise distributed\.peer_timeout_seconds$",
        ),
        (4, [0, 2], r"^nodes 1, 3 did not come to generation 0"),
        (20, [0], r"^nodes 1, 2, 3, 4, 5, 6, 7, 8, \.\.\. did not come"),
    ],
)
def test_whoever_is_missing_is_named_to_all_who_came_within_the_bound(gang, nodes, present, words):
    them = gang(nodes, timeout_seconds=2.0)  # far above what it takes them all to come
    for future in them.start(*present):
        with pytest.raises(PeerLostError, match=words):
            future.result(PATIENCE_SECONDS)


def test_a_store_that_is_not_there_is_named_within_the_bound(monkeypatch):
    monkeypatch.setattr(agent_store, "CONNECT_SECONDS", 0.2)
    port = free_port()
    lonely = GenerationBarrier(node=1, nodes=2, host="127.0.0.1", port=port, run_id="test", timeout_seconds=0.3)
    with pytest.raises(PeerLostError, match=rf"^node 0 does not answer at 127\.0\.0\.1:{port} after 0 s .*; see whether it runs"):
        lonely.next_rendezvous()


def test_on_one_machine_the_store_listens_to_this_machine_only_and_asks_no_name_server(gang):
    # torch's own socket is open to all, and as IPv6, whose loopback names no file knows: a lost answer was 5 s of silence for all nodes
    port = gang(1).port
    listening = [c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert listening == ["127.0.0.1"]


def test_a_port_in_use_is_a_sentence(gang):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"rendezvous port {port} on this node cannot be opened: .*; stop what uses it, or set another"
        ):
            GenerationBarrier(node=0, nodes=2, host="127.0.0.1", port=port, run_id="test", timeout_seconds=1)


# --- what is agreed in a generation --------------------------------------------------------------------------------------------------


def test_the_first_fault_of_a_generation_stands_and_all_read_the_same(gang):
    them = gang(4)
    them.meet()
    assert {barrier.fault() for barrier in them.barriers} == {None}
    them.all_do(lambda barrier: barrier.post_fault(f"seen by {barrier.node}"))
    (agreed,) = {barrier.fault() for barrier in them.barriers}
    assert agreed in {f"seen by {node}" for node in range(4)}
    them.barriers[3].ask_for_next()
    them.meet()
    assert {barrier.fault() for barrier in them.barriers} == {None}


def test_echoes_are_kept_apart_from_faults(gang):
    them = gang(2)
    them.meet()
    them.barriers[1].post_echo("an echo")
    assert [(barrier.fault(), barrier.echo()) for barrier in them.barriers] == [(None, "an echo")] * 2


def test_finishing_needs_all_nodes_and_begins_anew_in_every_generation(gang):
    them = gang(4)
    them.meet()
    for barrier in them.barriers[:3]:
        barrier.post_finished()
    assert not any(barrier.all_finished() for barrier in them.barriers)
    them.barriers[3].ask_for_next()  # a crash in the last save: those who were done come back
    them.meet()
    them.barriers[3].post_finished()
    assert not any(barrier.all_finished() for barrier in them.barriers)
    for barrier in them.barriers[:3]:
        barrier.post_finished()
    assert all(barrier.all_finished() for barrier in them.barriers)


def test_node_0_tells_the_others_of_its_generation_something(gang):
    them = gang(3)
    for word in ("first", "second"):
        them.meet()
        readers = [them.pool.submit(barrier.shared, "attempt") for barrier in them.barriers[1:]]
        them.barriers[0].share("attempt", word)
        assert [future.result(PATIENCE_SECONDS) for future in readers] == [word, word]
        them.barriers[0].ask_for_next()


# --- the end -------------------------------------------------------------------------------------------------------------------------


def test_what_node_0_never_said_is_not_waited_for_once_a_newer_generation_has_begun(gang):
    them = gang(2)
    them.meet()
    them.barriers[0].ask_for_next()
    with pytest.raises(SupersededError):
        them.barriers[1].shared("attempt")


@pytest.mark.parametrize("nodes", [2, 8])
def test_the_end_reaches_all_with_the_same_words_whoever_speaks_first(gang, nodes):
    them = gang(nodes)
    them.meet()
    assert not any(barrier.is_closed() for barrier in them.barriers)
    them.all_do(lambda barrier: barrier.close(f"by {barrier.node}"))
    assert all(barrier.is_superseded() and barrier.is_closed() for barrier in them.barriers)
    words = set()
    for future in them.start():
        with pytest.raises(RendezvousClosedError) as closed:
            future.result(PATIENCE_SECONDS)
        words.add(str(closed.value))
    assert len(words) == 1
    assert words <= {f"by {node}" for node in range(nodes)}


def test_the_first_words_about_the_end_stand(gang):
    them = gang(2)
    them.meet()
    them.barriers[1].close("the cause")
    them.barriers[0].close("an afterthought")
    assert [barrier.ending() for barrier in them.barriers] == ["the cause", "the cause"]


def test_the_end_reaches_those_who_wait_and_those_who_come_later(gang):
    them = gang(3)
    them.meet()
    them.barriers[0].ask_for_next()
    waiting = them.wait_until_waiting(1)
    them.barriers[0].close("over")  # node 0 is the judge here, and has not joined the generation that the others wait in
    for future in [*waiting, *them.start(2)]:
        with pytest.raises(RendezvousClosedError, match=r"^over$"):
            future.result(PATIENCE_SECONDS)


def test_torchs_way_to_close_ends_the_run_too(gang):
    them = gang(2)
    them.meet()
    them.barriers[1].set_closed()
    assert them.barriers[0].ending() == "{}"


def test_node_0_keeps_the_store_until_all_have_read_the_end(gang, monkeypatch):
    monkeypatch.setattr(rendezvous, "FAREWELL_SECONDS", PATIENCE_SECONDS)
    them = gang(3)
    them.meet()
    host = them.pool.submit(them.barriers[0].farewell)
    them.barriers[1].farewell()
    assert not host.done()
    them.barriers[2].farewell()
    host.result(PATIENCE_SECONDS)


def test_node_0_does_not_wait_for_the_dead_beyond_its_bound(gang, monkeypatch):
    monkeypatch.setattr(rendezvous, "FAREWELL_SECONDS", 0.1)
    them = gang(2)
    them.meet()
    them.pool.submit(them.barriers[0].farewell).result(PATIENCE_SECONDS)


def test_it_is_a_plug_in_of_torchs_registry():
    rendezvous.register()
    rendezvous.register()
    parameters = RendezvousParameters(
        backend="generation", endpoint=f"127.0.0.1:{free_port()}", run_id="my-run", min_nodes=1, max_nodes=1, node=0, timeout_seconds=5.0
    )
    handler = rendezvous_handler_registry.create_handler(parameters)
    assert isinstance(handler, GenerationBarrier)
    assert (handler.get_backend(), handler.get_run_id(), handler.use_agent_store) == ("generation", "my-run", True)
    assert handler.next_rendezvous().world_size == 1


def test_the_registrys_fewest_nodes_and_wait_make_it_elastic():
    rendezvous.register()
    endpoint = f"127.0.0.1:{free_port()}"
    parameters = RendezvousParameters("generation", endpoint, "r", 1, 3, node=0, timeout_seconds=30.0, rejoin_wait_seconds=0.05)
    handler = rendezvous_handler_registry.create_handler(parameters)
    assert handler.next_rendezvous().world_size == 1
    assert handler.members == [0]


# --- many ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 4, 64, 200, 1000, 10_000])
def test_all_looks_together_are_bounded_and_a_small_run_looks_ten_times_a_second(nodes):
    barrier = GenerationBarrier(node=1, nodes=nodes, host="127.0.0.1", port=1, run_id="test", timeout_seconds=1)
    assert nodes / barrier.look_seconds <= rendezvous.LOOKS_PER_SECOND
    assert barrier.look_seconds == 0.1 or nodes > 200
    first, longest = barrier._pauses()  # a wait's look is two requests
    assert first <= 0.01
    assert 2 * nodes / longest <= rendezvous.LOOKS_PER_SECOND


class Requests:
    """Torch's store with a count of what is asked of it."""

    def __init__(self, store):
        self.store, self.asked = store, []

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.store, name)


def test_a_look_at_rest_is_one_request_also_in_an_elastic_run(gang):
    them = gang(3, min_nodes=2)
    them.meet()
    for barrier in them.barriers:
        counted = Requests(barrier._store.torchs)
        barrier._store._line = agent_store._Here(counted)
        assert not barrier.is_superseded()
        assert barrier.waiting() == 0  # all are members: nobody can be outside
        assert counted.asked == ["add"]


def test_those_who_wait_do_not_look_in_step_and_look_ever_more_rarely(monkeypatch):
    pauses = []
    monkeypatch.setattr(rendezvous.time, "sleep", pauses.append)
    barrier = GenerationBarrier(node=1, nodes=4, host="127.0.0.1", port=1, run_id="test", timeout_seconds=1)
    state = barrier._pauses()
    for _ in range(200):
        barrier._rest(state)
    assert pauses[0] <= 0.01
    late = pauses[100:]
    assert 0.125 <= min(late) < max(late) <= 0.25
    assert len(set(late)) == 100


@pytest.mark.parametrize("absent", [[], [0], [7], [2, 3, 6], list(range(8))])
def test_whoever_is_missing_is_found_by_halves(gang, absent):
    store = gang(1).barriers[0]._store
    for node in set(range(8)) - set(absent):
        store.first(f"key/{node}", "x")
    assert store.missing([f"key/{node}" for node in range(8)], most=8) == absent
    assert store.missing([f"key/{node}" for node in range(8)], most=2) == absent[:2]
