"""What two looks in a row agree on is acted on, once."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from gpu_worker.repository import layout, watch

_FILES = strategies.one_of(strategies.none(), strategies.integers(0, 2).map(lambda size: (("f", size, 0, 0),)))
_LOOKS = strategies.lists(
    strategies.dictionaries(strategies.sampled_from(["a", "b"]), _FILES, max_size=2), min_size=1, max_size=12
)


def files(size: int) -> layout.Fingerprint:
    return (("1/model.onnx", size, 0, 0),)


def test_a_change_counts_when_it_is_seen_twice() -> None:
    watching = watch.Watch({"m": files(1)})
    assert watching.compare({"m": files(1)}) == watch.Findings()
    assert watching.compare({"m": files(2)}) == watch.Findings(unsettled=True)
    assert watching.compare({"m": files(3)}) == watch.Findings(unsettled=True)
    assert watching.compare({"m": files(3)}) == watch.Findings(load=("m",))
    assert watching.compare({"m": files(3)}) == watch.Findings()


def test_models_come_and_go_when_that_is_seen_twice() -> None:
    watching = watch.Watch({"m": files(1)})
    assert watching.compare({"n": files(1)}) == watch.Findings(unsettled=True)
    assert watching.compare({"n": files(1)}) == watch.Findings(load=("n",), unload=("m",))
    assert watching.compare({"n": files(1)}) == watch.Findings()


def test_a_model_that_is_back_or_as_before_changes_nothing() -> None:
    watching = watch.Watch({"m": files(1)})
    for look in ({}, {"m": files(2)}):
        assert watching.compare(look) == watch.Findings(unsettled=True)
        assert watching.compare({"m": files(1)}) == watch.Findings()


@hypothesis.given(_LOOKS)
def test_what_is_loaded_becomes_what_is_there(looks: list[watch.Look]) -> None:
    watching = watch.Watch(looks[0])
    loaded = dict(looks[0])
    last = looks[-1]
    for look in [*looks, last, last]:
        found = watching.compare(look)
        assert not set(found.load) & set(found.unload)
        for name in found.load:
            assert name not in loaded or loaded[name] != look[name], "nothing is loaded twice"
            loaded[name] = look[name]
        for name in found.unload:
            del loaded[name]
    assert loaded == last
    assert watching.compare(last) == watch.Findings()
