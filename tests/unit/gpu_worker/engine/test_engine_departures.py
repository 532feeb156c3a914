"""Who is to go elsewhere, and who hears of it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gpu_worker.engine import departures

NAMES = st.sampled_from(["a", "b", "c"])


class _Follower:
    """Knows only what it is told."""

    def __init__(self, of: departures.Departures) -> None:
        self.told: set[str] = set()
        self.end = of.listen(self._hear)

    def _hear(self, model: str, leaving: bool) -> None:  # noqa: FBT001 - the listener's form
        (self.told.add if leaving else self.told.discard)(model)

    def leaving(self, model: str) -> bool:
        return "" in self.told or model in self.told


class Followed(RuleBasedStateMachine):
    """Whoever listens, from whenever on, knows what the source knows."""

    @initialize()
    def begin(self) -> None:
        self.serving: set[str] = set()
        self.source = departures.Departures(self.serving.__contains__)
        self.followers = [_Follower(self.source)]

    @rule(name=NAMES)
    def load(self, name: str) -> None:
        self.serving.add(name)
        self.source.stay(name)
        assert self.source.all_leave or not self.source.leaving(name)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        before = self.source.leaving(name)
        self.source.leave(name)
        assert self.source.leaving(name) == (before or name in self.serving)
        self.serving.discard(name)

    @rule()
    def all_leave(self) -> None:
        self.source.leave("")

    @rule()
    def another(self) -> None:
        self.followers.append(_Follower(self.source))

    @invariant()
    def all_know(self) -> None:
        for name in ("a", "b", "c"):
            assert {each.leaving(name) for each in self.followers} == {self.source.leaving(name)}


TestFollowed = Followed.TestCase


def test_who_has_left_hears_nothing_more() -> None:
    source = departures.Departures(lambda _name: True)
    follower = _Follower(source)
    follower.end()
    source.leave("m")
    assert not follower.told


def test_names_that_serve_no_more_are_forgotten_once_there_are_very_many() -> None:
    serving = {str(number) for number in range(5000)}
    source = departures.Departures(serving.__contains__)
    follower = _Follower(source)
    for name in sorted(serving):
        source.leave(name)
        serving.discard(name)
    assert len(source._models) <= 4097
    assert follower.told == source._models
