"""Each rule of placement, the order in which they are asked, and the bytes they count."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.core import builders as b
from tms_server.model import bundle, group, ids, lease, resources, source
from tms_server.placement import booking, feasible, index, score

TORCH = source.Framework.PYTORCH
HELD = b.L("held", (b.M("m", 60),), labels=(("tier", "web"),)).active()


def candidate(asked: b.L, *, capacity: int = 100) -> booking.Candidate:
    return booking.candidate(asked.pending(), b.worker(capacity), {})


def book(*held: lease.Lease, draining: bool = False, target: group.WorkerGroup | None = None) -> booking.Book:
    target = target or b.a_group("w1", class_="shared")
    assignments = tuple(b.booked(each, target.id, draining=draining) for each in held)
    fleet = b.fleet(*held, groups=(target,), assignments=assignments)
    return index.of(fleet).books[target.id]


def rule(asked: b.L, on: booking.Book, aliases: feasible.Aliases | None = None) -> str:
    found = feasible.refusal(candidate(asked), on, aliases or {})
    return "" if found is None else found.rule


def test_a_worker_with_room_and_nothing_against_it_fits() -> None:
    assert rule(b.L("a", (b.M("n", 40),)), book(HELD)) == ""


def test_pool() -> None:
    asked = b.L("a", (b.M("n", 1),))
    assert rule(dataclasses.replace(asked, pool="gold"), book(HELD)) == "Pool"
    assert rule(dataclasses.replace(asked, own=b.worker()), book(HELD)) == "Pool"
    assert rule(asked, book(target=b.a_group("w1", pool=None))) == "Pool"
    foreign = dataclasses.replace(b.a_group("w1"), namespace=ids.Namespace("other"))
    assert rule(asked, book(target=foreign)) == "Pool"


def test_draining() -> None:
    assert rule(b.L("a"), book(target=b.a_group("w1", phase=group.GroupPhase.DRAINING))) == "Draining"


def test_framework_class() -> None:
    torch = b.L("a", (b.M("t", 1, framework=TORCH),))
    assert rule(torch, book(HELD)) == "FrameworkClass"
    assert rule(torch, book()) == "FrameworkClass"
    assert rule(torch, book(target=b.a_group("w1"))) == ""
    mixed = b.L("a", (b.M("t", 1, framework=TORCH), b.M("o", 1)))
    assert rule(mixed, book(target=b.a_group("w1"))) == "FrameworkClass"
    for framework in (source.Framework.TENSORRT, source.Framework.PYTHON, source.Framework.ENSEMBLE):
        assert rule(b.L("a", (b.M("x", 1, framework=framework),)), book(HELD)) == ""


@pytest.mark.parametrize("draining", [False, True])
def test_name_clash_also_with_what_is_still_unloading(draining: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert rule(b.L("a", (b.M("m", 1, version="v2"),)), book(HELD, draining=draining)) == "NameClash"
    assert rule(b.L("a", (b.M("m", 1, override="{}"),)), book(HELD, draining=draining)) == "NameClash"
    assert rule(b.L("a", (b.M("m", 60),)), book(HELD, draining=draining)) == ""


def test_share_with_each_by_id_name_and_label_but_not_with_the_leaving() -> None:
    aliases = {HELD.id: frozenset({"blue"})}
    for selector in ("held", "blue", "tier=web"):
        asked = b.L("a", (b.M("n", 1),), sharing=lease.Sharing(share_with=(selector,)))
        assert rule(asked, book(HELD), aliases) == ""
        assert rule(asked, book(HELD, draining=True), aliases) == "ShareWith"
        assert rule(asked, book(), aliases) == "ShareWith"
    both = b.L("a", (b.M("n", 1),), sharing=lease.Sharing(share_with=("held", "tier=batch")))
    assert rule(both, book(HELD), aliases) == "ShareWith"


def test_not_with_binds_both_sides() -> None:
    asked = b.L("a", (b.M("n", 1),), labels=(("tier", "batch"),), sharing=lease.Sharing(not_with=("tier=web",)))
    assert rule(asked, book(HELD)) == "NotWith"
    shy = b.L("shy", (b.M("m", 60),), sharing=lease.Sharing(not_with=("tier=batch",))).active()
    assert rule(dataclasses.replace(asked, sharing=lease.Sharing()), book(shy)) == "NotWith"
    assert rule(b.L("a", (b.M("n", 1),)), book(shy)) == ""


def test_exclusive_binds_both_sides() -> None:
    alone = b.L("a", (b.M("n", 1),), sharing=lease.Sharing(exclusive=True))
    assert rule(alone, book(HELD)) == "Exclusive"
    assert rule(alone, book()) == ""
    assert rule(b.L("b", (b.M("x", 1),)), book(alone.active())) == "Exclusive"


def test_memory_to_the_byte() -> None:
    assert rule(b.L("a", (b.M("n", 40),)), book(HELD)) == ""
    found = feasible.refusal(candidate(b.L("a", (b.M("n", 41),))), book(HELD), {})
    assert found == feasible.Refusal("Memory", "needs 41 B, 40 B of 100 B are free: 1 B too few", 1)


def test_rules_are_asked_in_the_order_of_the_wire_format() -> None:
    assert [name for name, _ in feasible.RULES] == [
        "Pool", "Draining", "Copy", "FrameworkClass", "NameClash", "ShareWith", "NotWith", "Exclusive", "Memory",
    ]  # fmt: skip


def test_shared_models_are_booked_once_and_free_when_the_last_lease_goes() -> None:
    first, second = b.L("a", (b.M("m", 60),)).active(), b.L("b", (b.M("m", 70), b.M("n", 5))).active()
    shared = book(first, second)
    assert shared.booked_bytes == 75
    assert shared.free_bytes == 25
    assert shared.freed_bytes(first) == 0
    assert shared.freed_bytes(second) == 5
    assert shared.added_bytes(candidate(b.L("c", (b.M("m", 80), b.M("x", 3))))) == 13


def test_draining_assignments_still_count_and_so_do_those_of_unknown_leases() -> None:
    assert book(HELD, draining=True).booked_bytes == 60
    orphan = b.fleet(groups=(b.a_group("w1"),), assignments=(b.booked(HELD, "w1", bytes_=33),))
    found = index.of(orphan).books[ids.GroupId("w1")]
    assert (found.booked_bytes, found.empty) == (33, False)


def test_a_model_books_the_greater_of_declared_and_measured_else_an_estimate() -> None:
    (model,) = bundle.models(b.L("a", (b.M("m", 10, size=7),)).pending())
    (silent,) = bundle.models(b.L("a", (b.M("m", 0, size=7),)).pending())
    key = (model.key.source_digest, model.key.config_digest, "tms-worker/cpu")
    assert booking.model_bytes(model, "tms-worker/cpu", {}) == (10, "declared")
    assert booking.model_bytes(model, "tms-worker/cpu", {key: 12}) == (12, "measured")
    assert booking.model_bytes(model, "tms-worker/cpu", {key: 9}) == (10, "declared")
    assert booking.model_bytes(silent, "tms-worker/cpu", {}) == (14, "estimated")
    assert booking.model_bytes(silent, "tms-worker/cpu", {key: 9}) == (9, "measured")
    assert booking.model_bytes(silent, "tms-worker/gpu", {key: 9}) == (14, "estimated")


def test_the_kind_of_a_worker_is_what_it_runs_and_on_what() -> None:
    gpu = resources.WorkerSpec(image="triton:24", resources=resources.Resources(gpus=1))
    assert booking.worker_kind(gpu) == "triton:24/gpu"
    assert booking.worker_kind(b.worker()) == "tms-worker/cpu"


def test_the_greatest_measurement_counts() -> None:
    (model,) = bundle.models(HELD)
    taken = [
        group.Measurement(
            source_digest=model.key.source_digest, config_digest="", worker="x/cpu", bytes=size, measured_at=b.START
        )
        for size in (5, 9, 7)
    ]
    assert booking.measured(taken) == {(model.key.source_digest, "", "x/cpu"): 9}


def test_the_score_wants_shared_bytes_then_a_given_class_then_fullness_then_age() -> None:
    asked = candidate(b.L("a", (b.M("m", 10),)))
    same = b.L("x", (b.M("m", 10),)).active()
    shares = book(same, target=b.a_group("w9", class_="shared", created=b.at(9)))
    full = book(b.L("y", (b.M("y", 80),)).active(), target=b.a_group("w8", class_="shared", created=b.at(8)))
    classed = book(target=b.a_group("w7", class_="shared", created=b.at(7)))
    younger = book(b.L("z", (b.M("z", 1),)).active(), target=b.a_group("w75", class_="shared", created=b.at(7.5)))
    fresh = book(target=b.a_group("w1"))
    order = sorted((fresh, younger, classed, full, shares), key=lambda each: score.rank(asked, each))
    assert [each.group.id for each in order] == ["w9", "w8", "w7", "w75", "w1"]


def test_what_no_empty_worker_could_take_is_told_to_the_byte() -> None:
    big = candidate(b.L("a", (b.M("m", 60), b.M("n", 0, size=30))))
    assert feasible.impossible(big, 120, alone=False) is None
    why = feasible.impossible(big, 100, alone=False)
    assert why == "needs 120 B (m 60 B declared, n 60 B estimated), an empty worker holds 100 B: 20 B too few"
    mixed = candidate(b.L("a", (b.M("t", 1, framework=TORCH), b.M("o", 1))))
    assert "pytorch and shared" in (feasible.impossible(mixed, 100, alone=False) or "")
    assert feasible.impossible(mixed, 100, alone=True) is None
