"""What a worker is told to hold."""

from __future__ import annotations

import dataclasses

import hypothesis
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.fleet import desired
from tms_server.leases import lifecycle
from tms_server.model import ids, lease, resources

GROUP = dataclasses.replace(b.a_group("w1"), generation=7)
ONE, TWO = b.M("one"), b.M("two", override='{"max_batch_size": 4}')
A, B = b.L("a", (ONE, TWO)).active(), b.L("b", (TWO, b.M("three"))).active()
LEASES = {A.id: A, B.id: B}
BOOKED = (b.booked(A, "w1"), b.booked(B, "w1"))
NAME = lease.NameBinding(namespace=ids.DEFAULT_NAMESPACE, name=ids.LeaseName("blue"), lease_id=A.id, changed_at=b.START)
ENDPOINTS = {
    owner: resources.Endpoint(f"127.64.0.{place}", 8000, 8001, 8002)
    for place, owner in enumerate(("lease/a", "lease/b", "name/default/blue", "group/w1"), 1)
}


def test_models_come_once_in_the_order_they_are_loaded_with_their_overrides() -> None:
    found = desired.wanted(GROUP, BOOKED, LEASES, (), ENDPOINTS)
    assert [(model.key.name, model.override) for model in found.models] == [
        ("one", ""),
        ("two", TWO.override),
        ("three", ""),
    ]
    assert found.models[0].source == ONE.source()
    assert found.generation == 7


def test_endpoints_of_leases_and_names_list_the_models_that_must_be_ready() -> None:
    found = desired.wanted(GROUP, BOOKED, LEASES, (NAME,), ENDPOINTS)
    assert {each.owner: (each.endpoint, each.models) for each in found.endpoints} == {
        "lease/a": (ENDPOINTS["lease/a"], ("one", "two")),
        "lease/b": (ENDPOINTS["lease/b"], ("two", "three")),
        "name/default/blue": (ENDPOINTS["name/default/blue"], ("one", "two")),
    }


def test_unpublished_endpoints_and_names_of_leases_elsewhere_are_left_out() -> None:
    elsewhere = dataclasses.replace(NAME, lease_id=ids.LeaseId("elsewhere"))
    found = desired.wanted(GROUP, BOOKED, LEASES, (elsewhere,), {"lease/a": ENDPOINTS["lease/a"]})
    assert [each.owner for each in found.endpoints] == ["lease/a"]


def test_draining_ending_and_foreign_assignments_are_not_wanted() -> None:
    why = lease.LeaseEnd(state=lease.LeaseState.RELEASED, reason="Released", message="", actor="ada", at=b.START)
    ending = lifecycle.end(B, why, holds_bytes=True)
    draining = (b.booked(A, "w1", draining=True), b.booked(B, "w2"))
    assert desired.wanted(GROUP, draining, LEASES, (NAME,), ENDPOINTS).models == ()
    assert desired.wanted(GROUP, (b.booked(B, "w1"),), {B.id: ending}, (), ENDPOINTS).models == ()


@hypothesis.given(
    st.permutations(BOOKED), st.permutations(list(ENDPOINTS.items())), st.permutations(list(LEASES.items()))
)
def test_the_same_store_gives_the_same_wish_in_any_order(
    booked: list[object], endpoints: list[object], leases: list[object]
) -> None:
    found = desired.wanted(GROUP, booked, dict(leases), (NAME,), dict(endpoints))  # type: ignore[arg-type]  # permutations forget the types
    assert found == desired.wanted(GROUP, BOOKED, LEASES, (NAME,), ENDPOINTS)


def test_owners_are_those_of_the_store() -> None:
    assert desired.lease_owner(A.id) == "lease/a"
    assert desired.name_owner(NAME.namespace, NAME.name) == "name/default/blue"
    assert desired.group_owner(GROUP.id) == "group/w1"
