"""Laws of the readiness latch and of the rule for wedged workers."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from sidecar import desired as desired_state
from sidecar import readiness, values, wedge
from sidecar.desired import Phase

NAMES = ("a", "b", "c")
OVER = {Phase.READY, Phase.FAILED}


def model(name: str, source: str = "1") -> values.Model:
    return values.Model(name=name, uri=f"file:///{name}", files=(), source_digest=source)


@dataclasses.dataclass(frozen=True)
class Step:
    """One moment: what is wanted, what is held of it, and whether the worker has just begun anew."""

    desired: values.Desired
    held: dict[str, desired_state.Held]
    restarted: bool


@st.composite
def steps(draw: st.DrawFn) -> Step:
    wanted = draw(st.lists(st.sampled_from(NAMES), unique=True))
    generation = draw(st.integers(0, 3))
    sources = {name: draw(st.sampled_from("12")) for name in NAMES}
    held = {
        name: desired_state.Held(model(name, draw(st.sampled_from("12"))).key, draw(st.sampled_from(Phase)))
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    desired = values.Desired(
        epoch=0,
        generation=generation,
        models=tuple(model(name, sources[name]) for name in wanted),
        routed=draw(st.booleans()),
    )
    return Step(desired, held, draw(st.booleans()))


def follow(latch: readiness.Latch, step: Step) -> readiness.Latch:
    if step.restarted:
        latch = readiness.restarted(latch)
    return readiness.advance(latch, step.desired, step.held)


def is_settled(step: Step) -> bool:
    return all(
        each.name in step.held and step.held[each.name].key == each.key and step.held[each.name].phase in OVER
        for each in step.desired.models
    )


@given(st.lists(steps()))
def test_settled_means_that_all_wanted_was_over_at_one_moment_of_this_life(history: list[Step]) -> None:
    latch, expected = readiness.Latch(), False
    for step in history:
        latch = follow(latch, step)
        expected = (expected and not step.restarted) or is_settled(step)
        assert latch.settled == expected


@given(st.lists(steps()))
def test_routed_is_for_good(history: list[Step]) -> None:
    latch = readiness.Latch()
    for count, step in enumerate(history, 1):
        latch = follow(latch, step)
        assert latch.routed == any(each.desired.routed for each in history[:count])


@given(st.lists(steps()), steps())
def test_what_is_wanted_later_takes_nothing_back(history: list[Step], later: Step) -> None:
    latch = readiness.Latch()
    for step in history:
        latch = follow(latch, step)
    after = readiness.advance(latch, later.desired, later.held)
    assert (after.settled, after.routed) >= (latch.settled, latch.routed)
    assert after.set or not latch.set


@given(steps(), st.builds(readiness.Latch, st.booleans(), st.booleans()), st.sets(st.sampled_from(NAMES)))
def test_ready_needs_the_latch_and_a_worker_that_still_holds_all(
    step: Step, latch: readiness.Latch, lost: set[str]
) -> None:
    verdict = readiness.verdict(latch, step.desired, step.held, lost)
    assert verdict.ready == (latch.settled and latch.routed and not lost)
    assert bool(verdict.message) == bool(verdict.reason) != verdict.ready


def test_a_failure_that_passes_holds_the_latch_back() -> None:
    wanted = values.Desired(generation=1, models=(model("a"), model("b")), routed=True)
    held = {
        "a": desired_state.Held(model("a").key, Phase.READY),
        "b": desired_state.Held(model("b").key, Phase.WAITING),
    }
    assert readiness.unsettled(wanted, held) == ("b",)
    waiting = readiness.advance(readiness.Latch(), wanted, held)
    assert not waiting.set
    assert "b" in readiness.verdict(waiting, wanted, held, ()).message
    held["b"] = desired_state.Held(model("b").key, Phase.FAILED)
    assert readiness.advance(readiness.Latch(), wanted, held).set


AFTER_S, SILENT_S = 60.0, 15.0
readings = st.tuples(st.floats(0.1, 40), st.integers(0, 2), st.integers(0, 1))


@given(st.lists(readings, min_size=1))
def test_wedged_is_a_whole_time_with_requests_and_without_progress(history: list[tuple[float, int, int]]) -> None:
    watched, now_s, since_s, before = wedge.Watched(), 0.0, None, None
    for pause_s, in_flight, moved in history:
        now_s += pause_s
        progress = (before or 0) + moved
        watched = wedge.read(watched, wedge.Reading(in_flight, progress), now_s)
        if not in_flight:
            since_s = None
        elif since_s is None or before != progress:
            since_s = now_s
        before = progress
        found = wedge.trouble(watched, now_s, AFTER_S, SILENT_S)
        assert (found is not None and found.reason == wedge.WEDGED) == (
            since_s is not None and now_s - since_s >= AFTER_S
        )
        assert wedge.trouble(watched, now_s, 0.0, SILENT_S) is None


@given(st.floats(0, 100), st.floats(0, 100))
def test_only_a_worker_that_served_once_can_be_unresponsive(answered_s: float, silence_s: float) -> None:
    watched = wedge.answered(wedge.Watched(), answered_s)
    now_s = answered_s + silence_s
    found = wedge.trouble(watched, now_s, AFTER_S, SILENT_S)
    assert (found is not None) == (now_s - answered_s >= SILENT_S)
    assert wedge.trouble(wedge.restarted(), now_s, AFTER_S, SILENT_S) is None


def test_a_worker_that_moves_again_is_well() -> None:
    watched = wedge.Watched()
    for now_s in (0.0, 30.0, 61.0):
        watched = wedge.read(watched, wedge.Reading(1, 7), now_s)
    assert wedge.trouble(watched, 61.0, AFTER_S, SILENT_S) is not None
    watched = wedge.read(watched, wedge.Reading(1, 8), 62.0)
    assert wedge.trouble(watched, 62.0, AFTER_S, SILENT_S) is None
