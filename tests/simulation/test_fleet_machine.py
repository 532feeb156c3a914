"""Any life of a fleet: leases come, are used and go; workers die; reports come late. The laws hold all the time."""

from __future__ import annotations

import collections
import datetime as dt

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from tests.simulation import world as worlds
from tests.unit.core import builders as b
from tms_server.leases import progress
from tms_server.model import bundle, group, ids, lease, source

# One size for each name, so that what a worker really holds can be added up from its models.
SIZES = {"s": 10, "m": 40, "l": 70, "xl": 120, "t": 30}
MODELS = st.builds(
    lambda name, version: b.M(
        name,
        SIZES[name],
        version=version,
        framework=source.Framework.PYTORCH if name == "t" else source.Framework.ONNXRUNTIME,
    ),
    st.sampled_from(["s", "m", "m", "l", "t", "xl"]),
    st.sampled_from(["v1", "v1", "v2"]),
)
TIMES = st.builds(
    lease.Times,
    hold=st.sampled_from([b.s(5), b.s(30)]),
    activity_window=st.sampled_from([b.s(5), b.s(20)]),
    max_lifetime=st.sampled_from([None, None, b.s(60)]),
    pending_timeout=st.sampled_from([b.s(20), b.s(3600)]),
    renewal=st.sampled_from(lease.Renewal),
)
SHARING = st.sampled_from(
    [lease.Sharing()] * 4
    + [lease.Sharing(exclusive=True), lease.Sharing(not_with=("l1",)), lease.Sharing(share_with=("l1",))]
)


class Fleet(stateful.RuleBasedStateMachine):
    """`promised` is, apart from the core, how long each lease was promised to live at least."""

    def __init__(self) -> None:
        super().__init__()
        self.world = worlds.World()
        self.late: dict[ids.GroupId, list[group.GroupReport]] = collections.defaultdict(list)
        self.promised: dict[ids.LeaseId, dt.datetime] = {}
        self.ended: dict[ids.LeaseId, lease.LeaseState] = {}
        self.made = 0
        for home in (b.a_pool(most=2), b.a_pool("gold", capacity=150, least=1, most=2, linger=10)):
            self.world.pools[home.name] = home

    @stateful.rule(
        models=st.lists(MODELS, min_size=1, max_size=2, unique_by=lambda model: model.name).map(tuple),
        pool=st.sampled_from(["default", "default", "gold"]),
        dedicated=st.sampled_from([False, False, False, True]),
        times=TIMES,
        sharing=SHARING,
    )
    def create(
        self, *, models: tuple[b.M, ...], pool: str, dedicated: bool, times: lease.Times, sharing: lease.Sharing
    ) -> None:
        own = b.worker(100) if dedicated else None
        self.made += 1
        self.world.create(b.L(f"l{self.made}", models, pool=pool, own=own, times=times, sharing=sharing))

    @stateful.rule()
    def place(self) -> None:
        self.world.place()

    @stateful.initialize(count=st.integers(1, 4), times=TIMES)
    def open_day(self, *, count: int, times: lease.Times) -> None:
        """A few leases are up at the start, or hardly any life would get that far."""
        for place in range(count):
            self.create(
                models=(b.M("s", SIZES["s"]),) if place % 2 else (b.M("m", SIZES["m"]),),
                pool="default",
                dedicated=False,
                times=times,
                sharing=lease.Sharing(),
            )
        self.work()

    @stateful.rule()
    def work(self) -> None:
        """A while in which everything goes well."""
        self.world.place()
        for group_id in list(self.world.groups) * 3:
            self.one_step(group_id)
            self.deliver_all(group_id)

    @stateful.rule()
    def resize(self) -> None:
        self.world.resize()

    @stateful.precondition(lambda self: self.world.groups)
    @stateful.rule(data=st.data(), arrives=st.booleans())
    def step(self, *, data: st.DataObject, arrives: bool) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.world.groups)))
        self.one_step(group_id)
        if arrives:
            self.deliver_all(group_id)

    @stateful.precondition(lambda self: any(self.late.values()))
    @stateful.rule(data=st.data())
    def deliver(self, *, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(sorted(key for key, found in self.late.items() if found)))
        self.arrive(self.late[group_id].pop(0))

    @stateful.precondition(lambda self: self.serving())
    @stateful.rule(data=st.data())
    def use(self, *, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.serving()))
        group_id = self.world.home(held.id)
        assert group_id is not None
        self.world.workers[group_id].use(bundle.models(held)[0].key, self.world.now)

    @stateful.precondition(lambda self: self.world.groups)
    @stateful.rule(data=st.data(), lost=st.booleans())
    def kill(self, *, data: st.DataObject, lost: bool) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.world.groups)))
        if lost:
            self.late[group_id].clear()
        self.world.workers[group_id].kill()
        self.world.disconnect(group_id)

    @stateful.rule(seconds=st.sampled_from([1, 5, 10, 70]))
    def advance(self, *, seconds: int) -> None:
        self.world.now += b.s(seconds)

    @stateful.precondition(lambda self: self.living())
    @stateful.rule(data=st.data(), seconds=st.integers(1, 60))
    def renew(self, *, data: st.DataObject, seconds: int) -> None:
        held = data.draw(st.sampled_from(self.living()))
        self.world.renew(held.id, b.s(seconds))
        if held.active_at is not None:
            self.promise(held.id, self.world.now + b.s(seconds))

    @stateful.precondition(lambda self: self.living())
    @stateful.rule(data=st.data())
    def release(self, *, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.living()))
        self.world.end(held.id, lease.LeaseState.RELEASED, "Released")

    @stateful.rule()
    def expire(self) -> None:
        for lease_id in self.world.expire():
            self.not_early(self.world.leases[lease_id])

    @stateful.invariant()
    def every_lease_is_where_its_state_says(self) -> None:
        wanted, draining = collections.Counter[str](), collections.Counter[str]()
        for booked in self.world.assignments.values():
            assert booked.group_id in self.world.groups
            (draining if booked.draining else wanted)[booked.lease_id] += 1
        for held in self.world.leases.values():
            placed = held.state.living and held.state is not lease.LeaseState.PENDING
            assert wanted[held.id] == placed, held
            assert (draining[held.id] > 0) == (held.state is lease.LeaseState.RELEASING), held

    @stateful.invariant()
    def nobody_is_lost_and_nobody_comes_back(self) -> None:
        assert len(self.world.leases) == self.made
        for lease_id, state in self.ended.items():
            assert self.world.leases[lease_id].state is state
        self.ended |= {each.id: each.state for each in self.world.leases.values() if each.state.ended}

    @stateful.invariant()
    def no_worker_really_holds_more_than_it_can_nor_two_models_of_a_name(self) -> None:
        for group_id, worker in self.world.workers.items():
            names = [key.name for key, model in worker.models.items() if model.state in progress.HOLDING]
            assert sum(SIZES[name] for name in names) <= self.world.groups[group_id].capacity_bytes
            assert len(set(names)) == len(names)

    @stateful.invariant()
    def no_pool_grows_beyond_its_size(self) -> None:
        sizes = collections.Counter(each.pool for each in self.world.groups.values())
        assert all(sizes[name] <= home.spec.max_workers for name, home in self.world.pools.items())

    def teardown(self) -> None:
        """Whatever has happened: everything can be released, and then nothing is left but the least workers."""
        for held in self.living():
            self.world.end(held.id, lease.LeaseState.RELEASED, "Released")
        for _ in range(5):
            for group_id in self.world.groups:
                self.one_step(group_id)
                self.deliver_all(group_id)
        assert all(held.state.ended for held in self.world.leases.values())
        self.world.resize()
        self.world.now += b.s(10)
        self.world.resize()
        assert [each.pool for each in self.world.groups.values()] == ["gold"]

    def serving(self) -> list[lease.Lease]:
        return [each for each in self.living() if each.state is lease.LeaseState.ACTIVE]

    def living(self) -> list[lease.Lease]:
        return [each for each in self.world.leases.values() if each.state.living]

    def one_step(self, group_id: ids.GroupId) -> None:
        worker = self.world.workers[group_id]
        worker.step(self.world.wish(group_id))
        self.late[group_id].append(worker.report())

    def deliver_all(self, group_id: ids.GroupId) -> None:
        for found in self.late.pop(group_id):
            self.arrive(found)

    def arrive(self, found: group.GroupReport) -> None:
        inactive = {each.id for each in self.living() if each.active_at is None}
        self.world.receive(found)
        for held in self.serving():
            if held.id in inactive:
                self.promise(held.id, self.world.now + held.spec.times.hold)
            self.promise_use(held, found)

    def promise_use(self, held: lease.Lease, found: group.GroupReport) -> None:
        if held.spec.times.renewal is not lease.Renewal.ON_ACTIVITY or self.world.home(held.id) != found.group_id:
            return
        names = {each.name for each in held.spec.models}
        for last in (each.last_inference for each in found.models if each.name in names):
            if last is not None:
                self.promise(held.id, last + held.spec.times.activity_window)

    def promise(self, lease_id: ids.LeaseId, until: dt.datetime) -> None:
        self.promised[lease_id] = max(until, self.promised.get(lease_id, until))

    def not_early(self, held: lease.Lease) -> None:
        assert held.end is not None
        times, now = held.spec.times, self.world.now
        if held.end.reason == "PendingTimeout":
            assert held.active_at is None
            assert now >= held.created_at + times.pending_timeout
            return
        assert held.active_at is not None
        limit = None if times.max_lifetime is None else held.active_at + times.max_lifetime
        assert now >= self.promised[held.id] or (limit is not None and now >= limit)


Fleet.TestCase.settings = hypothesis.settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)
TestFleet = Fleet.TestCase
