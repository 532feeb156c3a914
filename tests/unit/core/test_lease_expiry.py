"""Deadlines, renewals and the proof of idleness."""

from __future__ import annotations

import dataclasses
import datetime as dt

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.leases import expiry, lifecycle
from tms_server.model import errors, lease

SPANS = st.timedeltas(b.s(1), b.s(5000))
TIMES = st.builds(
    lease.Times,
    hold=SPANS,
    activity_window=SPANS,
    max_lifetime=st.none() | st.timedeltas(b.s(5000), b.s(20000)),
    renewal=st.sampled_from(lease.Renewal),
)
NO_PROOF = expiry.Evidence()


def active(times: lease.Times, *, used: float | None = None, credit: float = 0) -> lease.Lease:
    held = b.L("a", times=times).active(b.START)
    last = None if used is None else b.at(used)
    return dataclasses.replace(held, last_activity_at=last, credit=b.s(credit))


TEN = lease.Times(hold=b.s(10), activity_window=b.s(10))


def due(held: lease.Lease) -> dt.datetime:
    found = expiry.deadline(held)
    assert found is not None
    return found


def test_the_deadline_is_the_latest_of_hold_renewal_and_use() -> None:
    assert due(active(TEN)) == b.at(10)
    assert due(active(TEN, used=7)) == b.at(17)
    assert due(expiry.renew(active(TEN, used=7), b.s(30), b.at(1), allow_shorten=False)) == b.at(31)
    assert due(active(TEN, used=7, credit=100)) == b.at(117)


@pytest.mark.parametrize("renewal", [lease.Renewal.KEEPALIVE, lease.Renewal.MANUAL])
def test_use_keeps_only_leases_that_renew_by_use(renewal: lease.Renewal) -> None:
    assert due(active(dataclasses.replace(TEN, renewal=renewal), used=7)) == b.at(10)


def test_there_is_no_deadline_before_the_first_active_nor_after_the_end() -> None:
    pending = b.L("a", times=TEN).pending()
    assert expiry.deadline(pending) is None
    assert expiry.pending_deadline(pending) == b.START + TEN.pending_timeout
    assert expiry.pending_deadline(active(TEN)) is None
    ended = lifecycle.end(active(TEN), _why(), holds_bytes=True)
    assert expiry.deadline(ended) is None
    assert expiry.pending_deadline(ended) is None
    assert expiry.verdict(ended, [NO_PROOF], b.at(9999)) == expiry.Keep(None)


@hypothesis.given(TIMES, st.lists(st.tuples(st.floats(0, 9000), SPANS), max_size=6), st.floats(0, 100))
def test_renewals_never_bring_the_deadline_nearer_and_never_pass_the_greatest_lifetime(
    times: lease.Times, renewals: list[tuple[float, dt.timedelta]], credit: float
) -> None:
    held = active(times, credit=credit)
    for seconds, span in sorted(renewals):
        renewed = expiry.renew(held, span, b.at(seconds), allow_shorten=False)
        assert due(renewed) >= due(held)
        if times.max_lifetime is None:
            assert due(renewed) >= b.at(seconds) + span
        else:
            assert due(renewed) <= b.START + times.max_lifetime + held.credit
        held = renewed


@hypothesis.given(TIMES, SPANS, SPANS)
def test_a_renewal_that_may_shorten_still_leaves_hold_and_use(
    times: lease.Times, long: dt.timedelta, short: dt.timedelta
) -> None:
    held = expiry.renew(active(times), long, b.START, allow_shorten=False)
    shortened = expiry.renew(held, short, b.START, allow_shorten=True)
    assert due(shortened) <= max(due(held), b.START + short)
    assert due(shortened) >= due(active(times))


def test_a_renewal_grants_from_now_whatever_the_credit() -> None:
    renewed = expiry.renew(active(TEN, credit=500), b.s(600), b.at(50), allow_shorten=False)
    assert expiry.granted(renewed, b.at(50)) == b.s(600)
    assert expiry.granted(renewed, b.at(9999)) == b.s(0)
    assert expiry.granted(b.L("a").pending(), b.START) == b.s(0)


def test_a_renewal_without_a_span_is_by_the_hold() -> None:
    assert due(expiry.renew(active(TEN), None, b.at(5), allow_shorten=False)) == b.at(15)


def test_an_ending_lease_is_not_renewed() -> None:
    ended = lifecycle.end(active(TEN), _why(), holds_bytes=True)
    with pytest.raises(errors.FailedPrecondition, match="create a new one"):
        expiry.renew(ended, None, b.at(1), allow_shorten=False)


def test_keep_alive_renews_by_the_hold_but_not_a_manual_lease() -> None:
    keepalive = active(dataclasses.replace(TEN, renewal=lease.Renewal.KEEPALIVE))
    assert due(expiry.keep_alive(keepalive, b.at(8))) == b.at(18)
    with pytest.raises(errors.FailedPrecondition, match="manual"):
        expiry.keep_alive(active(dataclasses.replace(TEN, renewal=lease.Renewal.MANUAL)), b.at(8))


def test_before_the_deadline_the_lease_is_kept() -> None:
    assert expiry.verdict(active(TEN), [NO_PROOF], b.at(9.9)) == expiry.Keep(b.at(10))


def test_idleness_needs_a_report_from_after_the_deadline_that_knows() -> None:
    old = expiry.Evidence(sampled_at=b.at(9), activity_known=True)
    blind = expiry.Evidence(sampled_at=b.at(11), activity_known=False)
    for evidence in (NO_PROOF, old, blind):
        assert isinstance(expiry.verdict(active(TEN), [evidence], b.at(5000)), expiry.WaitForProof)
    proof = expiry.Evidence(sampled_at=b.at(10), activity_known=True)
    assert _reason(expiry.verdict(active(TEN), [proof], b.at(11))) == "Idle"


def test_a_request_in_flight_is_use_now() -> None:
    busy = expiry.Evidence(sampled_at=b.at(11), activity_known=True, in_use=True)
    assert expiry.verdict(active(TEN), [busy], b.at(12)) == expiry.Keep(b.at(21))


def test_a_lost_worker_is_waited_for_but_not_for_ever() -> None:
    gone = expiry.Evidence(sampled_at=b.at(2), activity_known=True, worker_gone_since=b.at(3))
    assert expiry.verdict(active(TEN), [gone], b.at(20)) == expiry.WaitForProof(b.at(10) + expiry.PROOF_WAIT)
    assert _reason(expiry.verdict(active(TEN), [gone], b.at(70))) == "Idle"
    late = dataclasses.replace(gone, worker_gone_since=b.at(40))
    assert expiry.verdict(active(TEN), [late], b.at(70)) == expiry.WaitForProof(b.at(40) + expiry.PROOF_WAIT)


def test_the_greatest_lifetime_needs_no_proof() -> None:
    held = active(dataclasses.replace(TEN, max_lifetime=b.s(30)), used=29)
    busy = expiry.Evidence(sampled_at=b.at(30), activity_known=True, in_use=True)
    assert expiry.verdict(held, [busy], b.at(29)) == expiry.Keep(b.at(30))
    assert _reason(expiry.verdict(held, [busy], b.at(30))) == "MaxLifetime"


def test_leases_that_only_calls_renew_end_without_proof() -> None:
    held = active(dataclasses.replace(TEN, renewal=lease.Renewal.MANUAL))
    assert _reason(expiry.verdict(held, [NO_PROOF], b.at(10))) == "NotRenewed"


def test_a_lease_that_never_became_active_fails_with_the_reason_why_it_waited() -> None:
    waiting = lifecycle.wait(b.L("a").pending(), "NoCapacity", "all full", b.at(1))
    assert expiry.verdict(waiting, [NO_PROOF], b.at(3599)) == expiry.Keep(b.at(3600))
    found = expiry.verdict(waiting, [NO_PROOF], b.at(3600))
    assert isinstance(found, expiry.End)
    assert (found.end.state, found.end.reason) == (lease.LeaseState.FAILED, "PendingTimeout")
    assert "all full" in found.end.message


def test_a_lease_whose_worker_never_started_fails_with_what_stood_against_it() -> None:
    placed = lifecycle.place(b.L("a").pending(), b.at(1), "on worker w1")
    stuck = lifecycle.loading(placed, "Unschedulable", "no node fits", b.at(2))
    found = expiry.verdict(stuck, [NO_PROOF], b.at(3600))
    assert isinstance(found, expiry.End)
    assert found.end.message.endswith("; Unschedulable: no node fits")


@hypothesis.given(
    times=TIMES,
    used=st.none() | st.floats(0, 9000),
    received=st.floats(0, 50_000),
    now=st.floats(0, 50_000),
    known=st.booleans(),
)
def test_nothing_ends_before_its_deadline(
    *, times: lease.Times, used: float | None, received: float, now: float, known: bool
) -> None:
    held = active(times, used=used)
    evidence = expiry.Evidence(sampled_at=b.at(received), activity_known=known, worker_gone_since=b.at(received))
    if isinstance(expiry.verdict(held, [evidence], b.at(now)), expiry.End):
        assert b.at(now) >= due(held)


def _reason(found: expiry.Verdict) -> str:
    assert isinstance(found, expiry.End)
    assert found.end.state is lease.LeaseState.EXPIRED
    return found.end.reason


def _why() -> lease.LeaseEnd:
    return lease.LeaseEnd(state=lease.LeaseState.RELEASED, reason="Released", message="done", actor="ada", at=b.at(1))
