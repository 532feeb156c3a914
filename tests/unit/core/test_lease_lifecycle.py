"""The table of states and the named moves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.leases import lifecycle
from tms_server.model import errors, lease

Move = Callable[[lease.Lease], lease.Lease]
STATES = list(lease.LeaseState)
EVERY_END = [lease.LeaseState.RELEASED, lease.LeaseState.EXPIRED, lease.LeaseState.FAILED, lease.LeaseState.REVOKED]


def why(state: lease.LeaseState) -> lease.LeaseEnd:
    return lease.LeaseEnd(state=state, reason="Because", message="of a test", actor="ada", at=b.at(9))


def _ending(end: lease.LeaseState, *, holds_bytes: bool) -> Move:
    return lambda old: lifecycle.end(old, why(end), holds_bytes=holds_bytes)


MOVES: dict[str, Move] = {
    "resolve": lambda old: lifecycle.resolve(old, [b.M("m", 10).source()], b.at(1)),
    "place": lambda old: lifecycle.place(old, b.at(1), "on w1"),
    "load": lambda old: lifecycle.load(old, b.at(2)),
    "activate": lambda old: lifecycle.activate(old, b.at(3)),
    "interrupt": lambda old: lifecycle.interrupt(old, "WorkerLost", "gone", b.at(4)),
    "displace": lambda old: lifecycle.displace(old, "WorkerGone", "gone", b.at(5)),
    "finish": lambda old: lifecycle.finish(old, b.at(6)),
    **{f"end {end} held": _ending(end, holds_bytes=True) for end in EVERY_END},
    **{f"end {end}": _ending(end, holds_bytes=False) for end in EVERY_END},
}


@hypothesis.given(st.lists(st.sampled_from(sorted(MOVES)), max_size=12))
def test_no_sequence_of_moves_leaves_the_table_and_ended_states_are_final(moves: list[str]) -> None:
    held = b.L("a").unresolved()
    for move in moves:
        try:
            after = MOVES[move](held)
        except errors.IllegalTransition:
            continue
        assert not held.state.ended
        assert after.state in {to for (before, _), to in lifecycle.TRANSITIONS.items() if before is held.state}
        assert after.generation >= held.generation
        assert (after.end is not None) == (not after.state.living)
        assert held.active_at is None or after.active_at == held.active_at
        held = after


def test_ended_states_have_no_way_out_and_every_other_state_ends() -> None:
    sources = {before for before, _ in lifecycle.TRANSITIONS}
    assert sources.isdisjoint(lease.ENDED)
    for state in set(STATES) - lease.ENDED:
        assert {to for (before, _), to in lifecycle.TRANSITIONS.items() if before is state} >= lease.ENDED


def test_a_whole_life_says_what_happened() -> None:
    held = lifecycle.place(b.L("a").pending(), b.at(1), "on w1")
    held = lifecycle.activate(lifecycle.load(held, b.at(2)), b.at(3))
    assert (held.state, held.active_at) == (lease.LeaseState.ACTIVE, b.at(3))
    assert {condition.type: condition.status for condition in held.conditions} == {
        "Resolved": True,
        "Placed": True,
        "ModelsReady": True,
        "Serving": True,
    }
    held = lifecycle.end(held, why(lease.LeaseState.EXPIRED), holds_bytes=True)
    assert held.state is lease.LeaseState.RELEASING
    held = lifecycle.finish(held, b.at(10))
    assert (held.state, held.end) == (lease.LeaseState.EXPIRED, why(lease.LeaseState.EXPIRED))


def test_without_bytes_a_lease_ends_directly() -> None:
    ended = lifecycle.end(b.L("a").pending(), why(lease.LeaseState.FAILED), holds_bytes=False)
    assert ended.state is lease.LeaseState.FAILED


def test_healing_keeps_the_lease_active_and_its_clock() -> None:
    held = lifecycle.interrupt(b.L("a").active(b.at(3)), "WorkerLost", "worker w1 is gone", b.at(7))
    serving = held.condition("Serving")
    assert serving is not None
    assert (held.state, serving.status, serving.reason) == (lease.LeaseState.ACTIVE, False, "WorkerLost")
    healed = lifecycle.activate(lifecycle.place(held, b.at(8), "on w2"), b.at(9))
    serving = healed.condition("Serving")
    assert serving is not None
    assert serving.status
    assert healed.active_at == b.at(3)


def test_a_place_lost_before_the_first_active_is_asked_for_again() -> None:
    held = lifecycle.displace(lifecycle.place(b.L("a").pending(), b.at(1), "on w1"), "WorkerGone", "gone", b.at(2))
    placed = held.condition("Placed")
    assert placed is not None
    assert (held.state, placed.status, placed.reason) == (lease.LeaseState.PENDING, False, "WorkerGone")


def test_the_generation_rises_with_what_is_wanted_only() -> None:
    pending = b.L("a").pending()
    placed = lifecycle.place(pending, b.at(1), "on w1")
    assert placed.generation == pending.generation + 1
    assert lifecycle.activate(lifecycle.load(placed, b.at(2)), b.at(3)).generation == placed.generation
    assert lifecycle.wait(pending, "NoCapacity", "full", b.at(1)).generation == pending.generation


def test_a_lease_is_never_resolved_by_halves() -> None:
    with pytest.raises(ValueError, match="2 models"):
        lifecycle.resolve(b.L("a", (b.M("m"), b.M("n"))).unresolved(), [b.M("m").source()], b.START)


def test_a_condition_that_says_the_same_keeps_its_time() -> None:
    waiting = lifecycle.wait(b.L("a").pending(), "NoCapacity", "full", b.at(1))
    assert lifecycle.wait(waiting, "NoCapacity", "full", b.at(2)) is waiting


@pytest.mark.parametrize("state", [lease.LeaseState.PENDING, lease.LeaseState.RELEASING])
def test_only_an_ended_state_is_an_end(state: lease.LeaseState) -> None:
    with pytest.raises(errors.IllegalTransition, match="not an end"):
        lifecycle.end(b.L("a").active(), why(state), holds_bytes=False)


def test_the_diagram_and_the_table_show_every_transition() -> None:
    diagram, table = lifecycle.mermaid(), lifecycle.markdown()
    assert diagram.startswith("stateDiagram-v2\n    [*] --> PENDING\n")
    for (before, event), after in lifecycle.TRANSITIONS.items():
        line = next(line for line in diagram.splitlines() if line.strip().startswith(f"{before} --> {after}:"))
        assert event in line
        row = next(
            row for row in table.splitlines() if row.startswith(f"| {before} |") and row.endswith(f"| {after} |")
        )
        assert event in row


def test_no_other_function_of_the_core_writes_a_state() -> None:
    writers = [
        name for name, code in inspect.getmembers(lifecycle, inspect.isfunction) if "state=" in inspect.getsource(code)
    ]
    assert sorted(writers) == ["_move", "request"]


def test_leases_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        b.L("a").pending().state = lease.LeaseState.ACTIVE  # type: ignore[misc]  # the point of the test
