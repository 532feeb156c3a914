from __future__ import annotations

import dataclasses
from collections.abc import Collection

import hypothesis
from hypothesis import strategies as st

from sidecar import desired, values
from sidecar.desired import Phase

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
digests = st.sampled_from(("one", "two"))
OTHER = values.Endpoint("127.0.0.1", 1, 2, 3)


def model(name: str, digest: str = "one", override: str = "") -> values.Model:
    return values.Model(name=name, uri="file:///x", files=(), source_digest=digest, config_override=override)


def held(phase: Phase, name: str = "a", digest: str = "one") -> desired.Held:
    return desired.Held(model(name, digest).key, phase)


models = st.lists(st.builds(model, names, digests), unique_by=lambda each: each.name).map(tuple)
servings = st.lists(
    st.builds(
        lambda port, members: values.Serving(values.Endpoint("127.0.0.1", port, 0, 0), members),
        st.integers(1, 9),
        st.lists(names, unique=True).map(tuple),
    ),
    max_size=3,
).map(tuple)
wanted_states = st.builds(lambda m, s: values.Desired(models=m, servings=s), models, servings)
held_states = st.dictionaries(names, st.tuples(st.sampled_from(Phase), digests)).map(
    lambda found: {name: held(phase, name, digest) for name, (phase, digest) in found.items()}
)


class World:
    """A server that does what it is told, one finished step at a time; it checks the laws on its way."""

    def __init__(self, wanted: values.Desired, start: dict[str, desired.Held], failed: Collection[str] = ()) -> None:
        """`failed`: names that the server was asked to load, and could not."""
        self.wanted, self.held = wanted, dict(start)
        self.in_server = {name: each.key for name, each in start.items() if each.phase in LOADED}
        self.asked = {*self.in_server, *failed}
        self.loads: list[str] = []

    def apply(self, action: desired.Action) -> None:
        match action:
            case desired.Fetch(model):
                assert model.name not in self.held
                self.held[model.name] = desired.Held(model.key, Phase.FETCHING)
            case desired.Load(model):
                assert model.name not in self.in_server, "other bytes are unloaded first"
                assert not any(each.phase is Phase.LOADING for each in self.held.values())
                assert self.held[model.name] == desired.Held(model.key, Phase.FETCHED)
                self.held[model.name] = desired.Held(model.key, Phase.LOADING)
                self.in_server[model.name] = model.key
                self.asked.add(model.name)
                self.loads.append(model.name)
            case desired.Unload(name):
                held_now = self.held.get(name, desired.Held(values.ModelKey(name, "", ""), Phase.FAILED))
                assert held_now.key not in {each.key for each in self.wanted.models}
                self.held[name] = dataclasses.replace(held_now, phase=Phase.DRAINING)
            case desired.Forget(name):
                assert name not in self.in_server
                del self.held[name]

    def finish_steps(self) -> None:
        for name, each in list(self.held.items()):
            if each.phase in AFTER:
                self.held[name] = dataclasses.replace(each, phase=AFTER[each.phase])
            elif each.phase is Phase.DRAINING:
                del self.held[name]
                self.in_server.pop(name, None)
                self.asked.discard(name)
            elif each.phase is Phase.WAITING:
                del self.held[name]


LOADED = {Phase.LOADING, Phase.READY, Phase.DRAINING}
AFTER = {Phase.FETCHING: Phase.FETCHED, Phase.LOADING: Phase.READY}


def run(world: World) -> None:
    for _ in range(50):
        for _ in range(20):
            actions = desired.plan(world.wanted, world.held, world.asked)
            if not actions:
                break
            for action in actions:
                world.apply(action)
        else:
            raise AssertionError("planning does not come to rest")
        world.finish_steps()


@hypothesis.given(wanted_states, held_states, st.sets(names))
def test_every_start_ends_at_what_is_desired(
    wanted: values.Desired, start: dict[str, desired.Held], tried: set[str]
) -> None:
    world = World(wanted, start, tried)

    run(world)

    failed = {name for name, each in world.held.items() if each.phase is Phase.FAILED}
    assert {name: each.key for name, each in world.held.items()} == {each.name: each.key for each in wanted.models}
    assert world.in_server.keys() == world.held.keys() - failed
    assert failed <= {name for name, each in start.items() if each.phase is Phase.FAILED}
    assert world.asked <= {each.name for each in wanted.models}, "the server forgets what is not wanted"
    assert desired.plan(wanted, world.held, world.asked) == ()


@hypothesis.given(wanted_states)
def test_models_served_together_load_in_the_order_of_the_list(wanted: values.Desired) -> None:
    world = World(wanted, {})

    run(world)

    order = [each.name for each in wanted.models]
    unnamed = [name for name in order if not any(name in serving.models for serving in wanted.servings)]
    alone = [each for each in wanted.servings if not _shares(each, wanted)]
    for bundle in [*(each.models for each in alone), unnamed]:
        members = [name for name in order if name in bundle]
        assert [name for name in world.loads if name in members] == members


def _shares(serving: values.Serving, wanted: values.Desired) -> bool:
    return any(set(serving.models) & set(other.models) for other in wanted.servings if other != serving)


def test_a_silent_store_holds_back_its_own_bundle_alone() -> None:
    mine, yours = (
        values.Serving(values.Endpoint("127.0.0.1", port, 0, 0), bundle)
        for port, bundle in ((1, ("a", "b")), (2, ("c",)))
    )
    wanted = values.Desired(models=(model("a"), model("b"), model("c")), servings=(mine, yours))
    now = {"a": held(Phase.WAITING, "a"), "b": held(Phase.FETCHED, "b"), "c": held(Phase.FETCHED, "c")}

    assert desired.plan(wanted, now) == (desired.Load(model("c")),)


def test_other_bytes_under_the_same_name_are_unloaded_first() -> None:
    wanted = values.Desired(models=(model("a", "two"),))

    assert desired.plan(wanted, {"a": held(Phase.READY)}) == (desired.Unload("a"),)
    assert desired.plan(wanted, {"a": held(Phase.DRAINING)}) == ()
    assert desired.plan(wanted, {}) == (desired.Fetch(model("a", "two")),)


def test_what_failed_in_the_server_is_unloaded_once_it_is_not_wanted() -> None:
    failed = {"a": held(Phase.FAILED)}

    assert desired.plan(values.Desired(models=(model("a"),)), failed, {"a"}) == ()
    assert desired.plan(values.Desired(), failed, {"a"}) == (desired.Forget("a"),)
    assert desired.plan(values.Desired(), {}, {"a"}) == (desired.Unload("a"),)
    assert desired.plan(values.Desired(models=(model("a", "two"),)), {}, {"a"}) == (desired.Fetch(model("a", "two")),)
    assert desired.plan(values.Desired(), {"a": held(Phase.DRAINING)}, {"a"}) == ()


def test_another_configuration_is_another_model() -> None:
    wanted = values.Desired(models=(model("a", override='{"maxBatchSize":4}'),))

    assert desired.plan(wanted, {"a": held(Phase.READY)}) == (desired.Unload("a"),)


@hypothesis.given(held_states, st.sets(names))
def test_settling_believes_the_server(start: dict[str, desired.Held], loaded: set[str]) -> None:
    settled = desired.settle(start, loaded, {})

    ready = {name for name, each in settled.held.items() if each.phase is Phase.READY}
    assert ready <= loaded
    assert settled.lost == {name for name, each in start.items() if each.phase is Phase.READY} - loaded
    assert loaded <= settled.held.keys()
    assert desired.settle(settled.held, loaded, {}) == desired.Settled(settled.held, frozenset())


def test_what_was_recorded_is_adopted_and_a_stranger_is_not() -> None:
    wanted = values.Desired(models=(model("a"), model("b")))

    settled = desired.settle({}, {"a", "b"}, {"a": model("a").key})

    assert settled.held["a"] == held(Phase.READY)
    assert desired.plan(wanted, settled.held) == (desired.Unload("b"),)
