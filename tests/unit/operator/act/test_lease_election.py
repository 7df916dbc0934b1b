"""At most one acts, whatever is lost on the way and however fast the clocks run."""

import heapq
import random

import pytest

from ddp_operator.act.lease import Lease
from ddp_operator.observe.api import ApiError

LEASE_SECONDS = 15.0


class Etcd:
    """The Lease object in memory, in a world with one true time."""

    def __init__(self):
        self.body, self.version, self.cut_off, self.lost_answers = None, 0, set(), set()

    def call(self, who, method, body):
        if who in self.cut_off:
            raise ApiError(0, "the network is down")
        answer = self._call(method, body)
        if who in self.lost_answers:
            raise ApiError(0, "the answer was lost")
        return answer

    def _call(self, method, body):
        if method == "GET":
            if self.body is None:
                raise ApiError(404, "not found")
            return self.body
        if method == "POST" and self.body is not None:
            raise ApiError(409, "exists")
        if method == "PUT" and (self.body is None or body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]):
            raise ApiError(409, "modified")
        self.version += 1
        self.body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.body


class Contender:
    def __init__(self, etcd, world, rate, offset, name):
        self.world, self.rate, self.offset, self.name, self.etcd = world, rate, offset, name, etcd
        self.lease = Lease(self, "ns", "ddp-operator", name, LEASE_SECONDS, clock=self.clock)
        self.is_dead = False

    def clock(self):
        return self.offset + self.world.now * self.rate

    async def request(self, method, _path, *, body=None, **_):
        return self.etcd.call(self.name, method, body)

    async def step(self):
        await self.lease.step()
        return self.lease._pause() / self.rate


class World:
    """Runs contenders in the order of true time, and checks after each step."""

    def __init__(self, rates=(1.0, 1.0, 1.0)):
        self.now, self.etcd = 0.0, Etcd()
        self.contenders = [Contender(self.etcd, self, rate, 1000.0 * i, f"op-{i}") for i, rate in enumerate(rates)]
        self.queue = [(0.1 * i, i) for i in range(len(rates))]
        self.gaps, self.led_until = [], 0.0

    def leaders(self):
        return [c for c in self.contenders if not c.is_dead and c.lease.is_leader()]

    async def run_until(self, end, disturb=lambda: None):
        while self.queue[0][0] < end:
            self.now, i = heapq.heappop(self.queue)
            disturb()
            assert len(self.leaders()) <= 1
            if not self.contenders[i].is_dead:
                heapq.heappush(self.queue, (self.now + await self.contenders[i].step(), i))
            assert len(self.leaders()) <= 1
        self.now = end


async def test_one_of_three_leads_and_keeps_leading():
    world = World()
    await world.run_until(200.0)
    (leader,) = world.leaders()
    assert leader.lease.transitions == 1
    assert world.etcd.body["spec"]["leaseTransitions"] == 0


async def test_a_killed_leader_is_succeeded_within_twenty_seconds():
    for seed in range(40):
        random.seed(seed)
        world = World()
        await world.run_until(30.0 + seed / 7)
        world.leaders()[0].is_dead = True
        await world.run_until(world.now + 20.0)
        assert len(world.leaders()) == 1


async def test_a_leader_that_is_cut_off_stops_acting_before_another_starts():
    world = World()
    await world.run_until(30.0)
    (old,) = world.leaders()
    world.etcd.cut_off.add(old.name)
    await world.run_until(world.now + LEASE_SECONDS * 2 / 3 + 0.01)
    assert world.leaders() == []
    await world.run_until(world.now + 20.0)
    (new,) = world.leaders()
    assert new is not old
    world.etcd.cut_off.clear()
    await world.run_until(world.now + 60.0)
    assert world.leaders() == [new]


async def test_a_released_lease_is_taken_at_the_next_look():
    world = World()
    await world.run_until(30.0)
    (old,) = world.leaders()
    await old.lease.release()
    assert not old.lease.is_leader()
    old.is_dead = True
    await world.run_until(world.now + 2.0)
    assert len(world.leaders()) == 1


async def test_a_deleted_lease_does_not_make_two_leaders():
    world = World()
    await world.run_until(30.0)
    world.etcd.body = None
    await world.run_until(world.now + 60.0)
    assert len(world.leaders()) == 1


async def test_a_lease_that_was_given_away_by_hand_ends_the_acting_at_the_next_look():
    world = World()
    await world.run_until(30.0)
    (old,) = world.leaders()
    world.etcd.version += 1
    spec = {**world.etcd.body["spec"], "holderIdentity": "somebody else"}
    world.etcd.body = {"metadata": {"resourceVersion": str(world.etcd.version)}, "spec": spec}
    await old.step()
    assert not old.lease.is_leader()


async def test_a_released_contender_never_leads_again_though_a_renewal_was_on_its_way():
    world = World()
    await world.run_until(10.0)
    (old,) = world.leaders()
    await old.lease.release()
    old.lease._won(world.etcd.body, old.clock())
    assert not old.lease.is_leader()


async def test_a_record_full_of_garbage_is_taken_over_after_one_lease():
    for spec in (None, [], {"holderIdentity": 7}, {"holderIdentity": "x", "leaseDurationSeconds": "long", "leaseTransitions": -3}):
        world = World()
        world.etcd.body = {"metadata": {"resourceVersion": "5"}, "spec": spec}
        await world.run_until(20.0)
        assert len(world.leaders()) == 1


async def test_two_processes_of_one_name_are_two():
    world = World()
    twins = [Lease(world.contenders[0], "ns", "n", "same", LEASE_SECONDS) for _ in range(2)]
    assert twins[0].identity != twins[1].identity


@pytest.mark.parametrize("seed", range(15))
async def test_never_two_act_under_random_loss_partition_and_clock_skew(seed):
    random.seed(seed)
    world = World(rates=tuple(random.uniform(0.9, 1.1) for _ in range(3)))
    names = [contender.name for contender in world.contenders]

    def disturb():
        world.etcd.cut_off = {name for name in names if random.random() < (0.8 if name in world.etcd.cut_off else 0.1)}
        world.etcd.lost_answers = {name for name in names if random.random() < 0.15}
        if world.now > 60.0 and random.random() < 0.005:  # all have seen it: one that starts just now would take it for a first start
            world.etcd.body = None

    await world.run_until(900.0, disturb)
    world.etcd.cut_off, world.etcd.lost_answers = set(), set()
    await world.run_until(world.now + 40.0)
    assert len(world.leaders()) == 1
    assert sum(contender.lease.transitions for contender in world.contenders) > 1
