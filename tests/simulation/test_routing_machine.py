"""Any life of a fleet whose clients the backend leads: the laws of leading them hold all the time.

No client is led to a worker that said it cannot answer, none is taken away because a stream is lost, and no worker lets go
of models while clients are led to it.
"""

from __future__ import annotations

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from tests.simulation import led
from tests.unit.core import builders as b
from tms_server.model import bundle, group, ids, lease


class Routing(stateful.RuleBasedStateMachine):
    """Steps of workers, streams and passes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = led.Led()
        self.made = 0
        home = b.a_pool(most=3)
        self.world.pools[home.name] = home

    @stateful.initialize(count=st.integers(1, 3))
    def open_day(self, *, count: int) -> None:
        for number in range(count):
            self.create(size=40 if number % 2 else 60)
        self.work()

    @stateful.rule(size=st.sampled_from([10, 40, 60]))
    def create(self, *, size: int) -> None:
        self.made += 1
        self.world.create(b.L(f"l{self.made}", (b.M(f"m{self.made}", size),)))
        self.world.place()

    @stateful.rule()
    def work(self) -> None:
        """A while in which everything goes well."""
        for _ in range(4):
            self.world.settle()
            for worker in list(self.world.pods):
                self.world.step(worker)
                self.world.deliver(worker)
        self.world.settle()
        self.nobody_is_led_to_one_that_said_no()

    @stateful.rule()
    def lead(self) -> None:
        before = dict(self.world.routed())
        self.world.lead()
        self.nobody_was_lost(before)
        self.nobody_is_led_to_one_that_said_no()

    @stateful.rule()
    def digest(self) -> None:
        self.world.digest()

    @stateful.rule()
    def push(self) -> None:
        self.world.push()

    @stateful.rule()
    def observe(self) -> None:
        self.world.observe()

    @stateful.precondition(lambda self: self.world.pods)
    @stateful.rule(data=st.data(), says=st.booleans())
    def step(self, *, data: st.DataObject, says: bool) -> None:
        worker = self.any_pod(data)
        self.world.step(worker)
        if says:
            self.world.deliver(worker)

    @stateful.precondition(lambda self: self.world.pods)
    @stateful.rule(data=st.data())
    def cut(self, *, data: st.DataObject) -> None:
        self.world.cut(self.any_pod(data))

    @stateful.precondition(lambda self: self.world.pods)
    @stateful.rule(data=st.data())
    def kill(self, *, data: st.DataObject) -> None:
        self.world.kill(self.any_pod(data))

    @stateful.precondition(lambda self: self.world.backend.world.groups)
    @stateful.rule(data=st.data())
    def grow(self, *, data: st.DataObject) -> None:
        self.world.add_pod(data.draw(st.sampled_from(sorted(self.world.backend.world.groups))))

    @stateful.precondition(lambda self: self.world.pods)
    @stateful.rule(data=st.data())
    def shrink(self, *, data: st.DataObject) -> None:
        self.world.lose_pod(self.any_pod(data))

    @stateful.rule(data=st.data())
    def start_anew(self, *, data: st.DataObject) -> None:
        known = sorted(each.worker for each in self.world.live.reports())
        kept = data.draw(st.sets(st.sampled_from(known))) if known else set()
        before = dict(self.world.routed())
        self.world.restart(kept)
        self.world.lead()
        self.nobody_was_lost(before)

    @stateful.rule(seconds=st.sampled_from([1, 30]))
    def advance(self, *, seconds: int) -> None:
        self.world.now += b.s(seconds)

    @stateful.precondition(lambda self: self.living())
    @stateful.rule(data=st.data())
    def release(self, *, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.living()))
        self.world.end(held.id, lease.LeaseState.RELEASED, "Released")

    @stateful.invariant()
    def nobody_lets_go_of_models_that_clients_are_led_to(self) -> None:
        for (_, worker), held in self.world.routed().items():
            if (told := self.world.told.get(worker)) is not None and worker in self.world.pods:
                wanted = {each.key for each in told.models}
                assert wanted.issuperset(each.key for each in bundle.models(held)), (held.id, worker)

    @stateful.invariant()
    def no_memory_is_offered_that_a_pod_still_holds(self) -> None:
        """A lease is over only when no pod that exists has bytes of its models left that were not asked for anew."""
        over = [each for each in self.world.leases.values() if each.state.ended]
        keys = {model.key for each in over for model in bundle.models(each)}
        for worker, pod in self.world.pods.items():
            for key, model in pod.models.items():
                assert key not in keys or model.state is group.ModelState.FETCHING or worker in self.world.stale

    def teardown(self) -> None:
        """When all goes well again, every living lease is answered; when all is released, nobody is led anywhere."""
        for group_id in self.world.groups:
            if group_id in self.world.backend.world.groups and not self.world.backend.world.groups[group_id].replicas:
                self.world.add_pod(group_id)
        self.world.place()
        self.work()
        self.work()
        placed = [each for each in self.living() if self.world.home(each.id) is not None]
        led_now = {lease_id for lease_id, _ in self.world.routed()}
        assert {each.id for each in placed} <= led_now
        assert all(each.state is lease.LeaseState.ACTIVE for each in placed)
        for held in self.living():
            self.world.end(held.id, lease.LeaseState.RELEASED, "Released")
        self.work()
        assert not self.world.routed()
        assert all(held.state.ended for held in self.world.leases.values())
        assert not any(map(led.holding, self.world.pods.values()))

    def nobody_was_lost(self, before: dict[tuple[ids.LeaseId, ids.WorkerId], lease.Lease]) -> None:
        """A silent worker keeps its clients while it exists and the lease is wanted there."""
        wanted = {(each.lease_id, each.group_id) for each in self.world.assignments.values() if not each.draining}
        for (lease_id, worker), held in before.items():
            silent = worker not in self.world.connected and worker in self.world.pods
            if silent and (lease_id, worker.group_id) in wanted and self.world.leases[held.id].state.living:
                assert (lease_id, worker) in self.world.routed(), (lease_id, worker)

    def nobody_is_led_to_one_that_said_no(self) -> None:
        """Who speaks is led to by its own word, which is true but for what happened since."""
        for (_, worker), held in self.world.routed().items():
            if worker in self.world.connected and worker not in self.world.stale:
                assert self.world.answers(held, worker), (held.id, worker)

    def living(self) -> list[lease.Lease]:
        return [each for each in self.world.leases.values() if each.state.living]

    def any_pod(self, data: st.DataObject) -> ids.WorkerId:
        return data.draw(st.sampled_from(sorted(self.world.pods)))


Routing.TestCase.settings = hypothesis.settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)
TestRouting = Routing.TestCase
