"""Says why a lease has, or would have, the place it has.

Reads the fleet with the planner's own rules; decides and changes nothing.
"""

from __future__ import annotations

import dataclasses

from tms_server.model import ids, lease, pool, resources, sizes
from tms_server.placement import booking, copies, feasible, report, snapshot
from tms_server.placement import index as fleet_index

_NEARNESS = {name: place for place, (name, _) in enumerate(feasible.RULES)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One lease before the fleet, as if it were booked nowhere."""

    index: fleet_index.Index
    candidate: booking.Candidate
    home: pool.Pool | None
    capacity_bytes: int
    workers: tuple[report.WorkerVerdict, ...]


def explain(fleet: snapshot.Fleet, asked: lease.Lease) -> report.Explanation:
    """Verdict of each worker of the lease's namespace, the nearest fit and the smallest change that would fit.

    The lease need not exist: for a dry run give one made by `lifecycle.request` and `lifecycle.resolve`.
    """
    if not asked.state.living:
        return _plain(str(asked.state), f"the lease is {asked.state}" + (f": {asked.end.message}" if asked.end else ""))
    if len(asked.sources) != len(asked.spec.models):
        return _plain("Unresolved", "its models are not looked up yet")
    held = [each for each in fleet.assignments if each.lease_id == asked.id and not each.draining]
    lacking = copies.missing(asked, held) if held else ()
    # A further copy looks at the others as they are; a first one as if the lease were booked nowhere.
    index = fleet_index.of(fleet, without=None if lacking else asked.id)
    home = index.pool_of(asked)
    spec = _worker_spec(asked, home)
    if spec is None:
        return _plain("PoolGone", "its pool is gone")
    candidate = booking.candidate(asked, spec, index.known)
    books = [book for book in index.books.values() if book.group.namespace == asked.namespace]
    own = {each.group_id for each in held} if home is None else set()
    workers = tuple(_own(book) if book.group.id in own else _verdict(candidate, book, index.aliases) for book in books)
    case = _Case(index=index, candidate=candidate, home=home, capacity_bytes=index.capacities[spec], workers=workers)
    if not held:
        return _unplaced(case)
    where = f"placed on worker {', '.join(each.group_id for each in copies.in_age(held))}"
    if not lacking:
        return _answer(case, "Placed", where)
    further = _unplaced(case)
    share = f"{where}: {len(held)} of {copies.wanted(asked)} copies"
    return dataclasses.replace(further, summary=f"{share}; another {further.summary}")


def _unplaced(case: _Case) -> report.Explanation:
    why = feasible.impossible(case.candidate, case.capacity_bytes, alone=case.home is None)
    if why is not None:
        return _answer(case, report.CANNOT_FIT, why, change=_fitting_change(case))
    if (fit := next((each.group_id for each in case.workers if each.fits), None)) is not None:
        return _answer(case, "Placed", f"fits on worker {fit}")
    if case.home is None:
        return _answer(case, "Placed", "gets a new worker of its own")
    members = len(case.index.members.get((case.home.namespace, case.home.name), ()))
    if members < case.home.spec.max_workers and not case.candidate.lease.spec.sharing.share_with:
        return _answer(case, "Placed", f"gets a new worker of pool {case.home.name}")
    return _waiting(case, case.home, members)


def _waiting(case: _Case, home: pool.Pool, members: int) -> report.Explanation:
    candidates = [each for each in case.workers if each.rule != "Pool"]
    nearest = min(candidates, key=lambda each: (-_NEARNESS[each.rule], each.missing_bytes, each.group_id), default=None)
    needs = f"needs {sizes.text(case.candidate.needed_bytes)} ({case.candidate.details()})"
    if nearest is None:
        return _answer(case, report.NO_CAPACITY, f"{needs}; no worker has the leases it wants to share with")
    summary = (
        f"{needs}; none of the {members} worker(s) of pool {home.name} (at most {home.spec.max_workers}) takes it; "
        f"nearest is {nearest.group_id}: {nearest.message}"
    )
    return _answer(
        case, report.NO_CAPACITY, summary, change=_room_change(case, home, nearest), nearest=nearest.group_id
    )


def _room_change(case: _Case, home: pool.Pool, nearest: report.WorkerVerdict) -> str:
    grow = f"raise max_workers of pool {home.name} above {home.spec.max_workers}"
    if case.candidate.lease.spec.sharing.share_with:
        grow = "drop share_with"
    if nearest.rule != "Memory":
        return grow
    book = case.index.books[nearest.group_id]
    enough = [
        (book.freed_bytes(each), each.id) for each in book.held if book.freed_bytes(each) >= nearest.missing_bytes
    ]
    free = f"free {sizes.enough(nearest.missing_bytes)} on worker {nearest.group_id}"
    return (
        f"{free} (the end of lease {min(enough)[1]} frees {sizes.text(min(enough)[0])}), or {grow}"
        if enough
        else f"{free}, or {grow}"
    )


def _fitting_change(case: _Case) -> str:
    if len(case.candidate.classes) > 1 and case.home is not None:
        return f"lease the models of {' and '.join(case.candidate.classes)} apart, or ask for a dedicated worker"
    where = "the worker" if case.home is None else "a pool whose workers"
    return f"ask for {where} {'with' if case.home is None else 'have'} at least {sizes.enough(case.candidate.needed_bytes)}"


def _own(book: booking.Book) -> report.WorkerVerdict:
    return report.WorkerVerdict(
        group_id=book.group.id,
        fits=True,
        rule="",
        message="is the lease's own worker",
        capacity_bytes=book.group.capacity_bytes,
        free_bytes=max(0, book.free_bytes),
        missing_bytes=0,
        held_by=tuple(each.id for each in book.held),
    )


def _verdict(candidate: booking.Candidate, book: booking.Book, aliases: feasible.Aliases) -> report.WorkerVerdict:
    refusal = feasible.refusal(candidate, book, aliases)
    return report.WorkerVerdict(
        group_id=book.group.id,
        fits=refusal is None,
        rule="" if refusal is None else refusal.rule,
        message=f"adds {sizes.text(book.added_bytes(candidate))}" if refusal is None else refusal.message,
        capacity_bytes=book.group.capacity_bytes,
        free_bytes=max(0, book.free_bytes),
        missing_bytes=0 if refusal is None else refusal.missing_bytes,
        held_by=tuple(each.id for each in book.held),
    )


def _worker_spec(asked: lease.Lease, home: pool.Pool | None) -> resources.WorkerSpec | None:
    placement = asked.spec.placement
    if isinstance(placement, lease.Dedicated):
        return placement.worker
    return None if home is None else home.spec.worker


def _answer(
    case: _Case, outcome: str, summary: str, *, change: str = "", nearest: ids.GroupId | None = None
) -> report.Explanation:
    return report.Explanation(
        fits=outcome == "Placed",
        outcome=outcome,
        summary=summary,
        workers=case.workers,
        nearest_fit=nearest,
        smallest_change=change,
        needed_bytes=case.candidate.needed_bytes,
    )


def _plain(outcome: str, summary: str) -> report.Explanation:
    return report.Explanation(
        fits=False, outcome=outcome, summary=summary, workers=(), nearest_fit=None, smallest_change="", needed_bytes=0
    )
