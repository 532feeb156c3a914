"""When a lease ends by time.

Decides deadlines, renewals and whether the evidence at hand proves that an end is due. It never ends a lease itself, and
never takes silence for idleness.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection

from tms_server.model import errors, lease

PROOF_WAIT = dt.timedelta(seconds=60)
"""How long past its deadline a lease is kept whose worker is gone and cannot prove that it was idle."""
PROOF_RECHECK = dt.timedelta(seconds=5)
"""When to look again at a lease whose living worker still owes the proof; its next report may come earlier."""
SYSTEM_ACTOR = "system"


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Nothing is due before `until`; None: nothing will be due at all (the lease is on its way out)."""

    until: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class WaitForProof:
    """The deadline has passed, but a later report may show use; look again at `until`, or at the next report."""

    until: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """An end is due and proven."""

    end: lease.LeaseEnd


Verdict = Keep | WaitForProof | End


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one worker proves of the use of a lease's models.

    `sampled_at` is up to when its last report speaks of use, None if there never was one; `worker_gone_since` is set
    while the worker is not connected.
    """

    sampled_at: dt.datetime | None = None
    activity_known: bool = False
    in_use: bool = False
    worker_gone_since: dt.datetime | None = None


def deadline(held: lease.Lease) -> dt.datetime | None:
    """When the lease ends unless renewed or used; None before the first ACTIVE and once it is ending."""
    if held.active_at is None or not held.state.living:
        return None
    times = held.spec.times
    latest = held.active_at + times.hold
    if held.renewed_until is not None:
        latest = max(latest, held.renewed_until)
    if held.last_activity_at is not None and times.renewal is lease.Renewal.ON_ACTIVITY:
        latest = max(latest, held.last_activity_at + times.activity_window)
    limit = lifetime_limit(held)
    return latest + held.credit if limit is None else min(latest + held.credit, limit)


def lifetime_limit(held: lease.Lease) -> dt.datetime | None:
    """The instant past which no renewal reaches; None without `max_lifetime` or before the first ACTIVE."""
    if held.active_at is None or held.spec.times.max_lifetime is None:
        return None
    return held.active_at + held.spec.times.max_lifetime + held.credit


def pending_deadline(waiting: lease.Lease) -> dt.datetime | None:
    """When a lease that never was ACTIVE gives up; None from the first ACTIVE on and once it is ending."""
    if waiting.active_at is not None or not waiting.state.living:
        return None
    return waiting.created_at + waiting.spec.times.pending_timeout + waiting.credit


def verdict(held: lease.Lease, evidence: Collection[Evidence], now: dt.datetime) -> Verdict:
    """Says whether the lease ends now, may not end yet, or lacks the proof. Apply `activity.observe` before asking.

    `evidence` is that of every worker that may have served the lease; each owes its own proof of idleness.
    """
    if (pending := pending_deadline(held)) is not None:
        return Keep(pending) if now < pending else End(_pending_timeout(held, now))
    due = deadline(_with_present_use(held, evidence))
    if due is None or now < due:
        return Keep(due)
    limit = lifetime_limit(held)
    if limit is not None and now >= limit:
        return End(_end("MaxLifetime", f"reached its greatest lifetime of {held.spec.times.max_lifetime}", now))
    if held.spec.times.renewal is not lease.Renewal.ON_ACTIVITY:
        return End(_end("NotRenewed", f"not renewed before {due.isoformat()}", now))
    return _idle_verdict(held, evidence, due, now)


def renew(held: lease.Lease, duration: dt.timedelta | None, now: dt.datetime, *, allow_shorten: bool) -> lease.Lease:
    """Moves the explicit renewal to `duration` (None: the lease's hold) from now.

    Never brings the deadline nearer unless `allow_shorten`, and then not nearer than hold and use allow; `deadline` keeps
    it within the greatest lifetime. A lease that is not ACTIVE yet keeps the renewal for then. FailedPrecondition once the lease is ending.
    """
    if not held.state.living:
        raise errors.FailedPrecondition(f"lease {held.id} is {held.state} and cannot be renewed; create a new one")
    until = now + (held.spec.times.hold if duration is None else duration) - held.credit
    if held.renewed_until is not None and not allow_shorten:
        until = max(until, held.renewed_until)
    return dataclasses.replace(held, renewed_until=until)


def keep_alive(held: lease.Lease, now: dt.datetime) -> lease.Lease:
    """Renews by the lease's hold; FailedPrecondition where only explicit renewal is allowed, or once it is ending."""
    if held.spec.times.renewal is lease.Renewal.MANUAL:
        raise errors.FailedPrecondition(f"lease {held.id} has manual renewal; keep-alive does not renew it, Renew does")
    return renew(held, None, now, allow_shorten=False)


def granted(held: lease.Lease, now: dt.datetime) -> dt.timedelta:
    """What is left until the deadline, never negative; zero where there is no deadline."""
    due = deadline(held)
    return max(dt.timedelta(0), due - now) if due is not None else dt.timedelta(0)


def _with_present_use(held: lease.Lease, evidence: Collection[Evidence]) -> lease.Lease:
    uses = [each.sampled_at for each in evidence if each.in_use and each.sampled_at is not None]
    if not uses:
        return held
    last = max(uses) if held.last_activity_at is None else max(held.last_activity_at, *uses)
    return dataclasses.replace(held, last_activity_at=last)


def _idle_verdict(held: lease.Lease, evidence: Collection[Evidence], due: dt.datetime, now: dt.datetime) -> Verdict:
    owing = [each for each in evidence if not _proves(each, due)]
    if not owing:
        last = "never used" if held.last_activity_at is None else f"last used {held.last_activity_at.isoformat()}"
        return End(_end("Idle", f"{last}; idle past {due.isoformat()}", now))
    gone = [each.worker_gone_since for each in owing if each.worker_gone_since is not None]
    if len(gone) < len(owing):
        return WaitForProof(now + PROOF_RECHECK)
    wait_until = max(due, *gone) + PROOF_WAIT
    if now < wait_until:
        return WaitForProof(wait_until)
    return End(_end("Idle", f"its worker is gone since {max(gone).isoformat()}: no use since", now))


def _proves(evidence: Evidence, due: dt.datetime) -> bool:
    return evidence.activity_known and evidence.sampled_at is not None and evidence.sampled_at >= due


def _pending_timeout(waiting: lease.Lease, now: dt.datetime) -> lease.LeaseEnd:
    placed, ready = waiting.condition("Placed"), waiting.condition("ModelsReady")
    why = ""
    if placed is not None and not placed.status:
        why = f"; {placed.message}"
    elif ready is not None and not ready.status:
        why = f"; {ready.reason}: {ready.message}"
    message = f"not ACTIVE within {waiting.spec.times.pending_timeout}{why}"
    return _end("PendingTimeout", message, now, lease.LeaseState.FAILED)


def _end(
    reason: str, message: str, now: dt.datetime, state: lease.LeaseState = lease.LeaseState.EXPIRED
) -> lease.LeaseEnd:
    return lease.LeaseEnd(state=state, reason=reason, message=message, actor=SYSTEM_ACTOR, at=now)
