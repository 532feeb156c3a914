"""Chooses a place for every lease that needs one.

Decides groups, bytes and generations of one pass; leaves nothing open and touches nothing. Never random: the same fleet,
in whatever order, gives the same plan.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt

from tms_server.model import group, ids, lease, pool, resources, sizes
from tms_server.placement import booking, check, copies, feasible, report, score, snapshot
from tms_server.placement import index as fleet_index


def plan(fleet: snapshot.Fleet, now: dt.datetime, source: ids.IdSource) -> report.Plan:
    """Places what can be placed, in order of priority, creation and id; says of the rest why not.

    Every plan has passed the laws of `check`; LawBroken (a defect) otherwise.
    """
    made = _Pass(fleet_index.of(fleet), now, source).run(fleet.leases)
    check.enforce(fleet, made)
    return made


def order(asked: lease.Lease) -> tuple[int, dt.datetime, ids.LeaseId]:
    """Who is served first when there is no room for all."""
    return -asked.spec.priority, asked.created_at, asked.id


class _Pass:
    """Working state of one pass: the books as they fill, and the decisions made so far."""

    def __init__(self, fleet: fleet_index.Index, now: dt.datetime, source: ids.IdSource) -> None:
        self._index = fleet
        self._now = now
        self._ids = source
        self._books = dict(fleet.books)
        self._members = {key: list(members) for key, members in fleet.members.items()}
        self._changes: dict[ids.GroupId, report.GroupChange] = {}
        self._assignments: list[group.Assignment] = []
        self._drained: list[group.Assignment] = []
        self._leaving = self._count_leaving()

    def run(self, leases: tuple[lease.Lease, ...]) -> report.Plan:
        living = sorted((each for each in leases if each.state.living), key=order)
        for each in living:
            self._shrink(each)
        asking = [each for each in living if each.id not in self._index.copies]
        decisions = {each.id: self._decide(each) for each in asking}
        # A lease that wants company may come before the lease it wants: ask again while somebody finds a place.
        while moved := self._again([each for each in asking if each.spec.sharing.share_with], decisions):
            decisions |= moved
        found = decisions.values()
        # First everybody has a place, then some have more.
        placed = self._index.copies.keys() | {each.lease_id for each in found if isinstance(each, report.Placed)}
        further = [answer for each in living if each.id in placed for answer in self._grow(each)]
        return report.Plan(
            groups=tuple(self._changes.values()),
            assignments=tuple(self._assignments),
            placed=tuple(each for each in found if isinstance(each, report.Placed)),
            waiting=tuple(each for each in found if isinstance(each, report.Waiting)),
            failed=tuple(each for each in found if isinstance(each, report.Failed)),
            grown=tuple(each for each in further if isinstance(each, report.Placed)),
            short=tuple(each for each in further if isinstance(each, report.Waiting)),
            drained=tuple(self._drained),
        )

    def _shrink(self, held: lease.Lease) -> None:
        for each in copies.surplus(held, self._index.copies.get(held.id, ())):
            book = self._books[each.group_id]
            changed = self._raise(book.group)
            self._books[changed.id] = dataclasses.replace(book.letting_go(held.id), group=changed)
            self._drained.append(dataclasses.replace(each, draining=True, generation=changed.generation))

    def _grow(self, held: lease.Lease) -> list[report.Placed | report.Waiting]:
        """Further copies, until there are enough or one finds no place."""
        if copies.wanted(held) == 1:
            return []
        placed = [each for each in self._assignments if each.lease_id == held.id]
        home, answers = self._index.pool_of(held), list[report.Placed | report.Waiting]()
        for number in copies.missing(held, (*self._index.copies.get(held.id, ()), *placed)):
            answer = self._pooled(held, home, number) if home is not None else _gone(held)
            if isinstance(answer, report.Placed):
                answers.append(answer)
                continue
            return [*answers, report.Waiting(lease_id=held.id, reason=answer.reason, message=answer.message)]
        return answers

    def _again(
        self, asking: list[lease.Lease], decisions: dict[ids.LeaseId, report.Decision]
    ) -> dict[ids.LeaseId, report.Decision]:
        waiting = [each for each in asking if isinstance(decisions[each.id], report.Waiting)]
        renewed = {each.id: self._decide(each) for each in waiting}
        return {key: value for key, value in renewed.items() if isinstance(value, report.Placed)}

    def _decide(self, asked: lease.Lease) -> report.Decision:
        if len(asked.sources) != len(asked.spec.models):
            return report.Waiting(lease_id=asked.id, reason="Unresolved", message="its models are not looked up yet")
        if isinstance(asked.spec.placement, lease.Dedicated):
            return self._dedicated(asked, asked.spec.placement)
        home = self._index.pool_of(asked)
        if home is None:
            return _gone(asked)
        return self._pooled(asked, home, 0)

    def _dedicated(self, asked: lease.Lease, placement: lease.Dedicated) -> report.Decision:
        capacity_bytes = self._index.capacities[placement.worker]
        candidate = booking.candidate(asked, placement.worker, self._index.known)
        if (why := feasible.impossible(candidate, capacity_bytes, alone=True)) is not None:
            return report.Failed(lease_id=asked.id, reason=report.CANNOT_FIT, message=why)
        least = asked.spec.autoscaling.min_replicas if asked.spec.autoscaling is not None else 1
        started = self._start(asked.namespace, placement.worker, None, max(placement.replicas, least))
        return self._place(candidate, started, 0)

    def _pooled(self, asked: lease.Lease, home: pool.Pool, copy: int) -> report.Decision:
        candidate = booking.candidate(asked, home.spec.worker, self._index.known)
        why = feasible.impossible(candidate, self._index.capacities[home.spec.worker], alone=False)
        if why is not None:
            return report.Failed(lease_id=asked.id, reason=report.CANNOT_FIT, message=why)
        members = self._members.setdefault((home.namespace, home.name), [])
        best = self._best(candidate, members)
        if best is not None:
            return self._place(candidate, best, copy)
        if asked.spec.sharing.share_with:
            return self._wait(candidate, home, "no worker with the leases it wants to share with has room")
        if len(members) < home.spec.max_workers:
            return self._place(candidate, self._start(home.namespace, home.spec.worker, home), copy)
        self._make_way(candidate, home)
        return self._wait(candidate, home, f"the pool has all of its {home.spec.max_workers} worker(s)")

    def _best(self, candidate: booking.Candidate, members: list[ids.GroupId]) -> booking.Book | None:
        best, best_rank = None, None
        for group_id in members:
            book = self._books[group_id]
            if not book.room_for(candidate):
                continue
            # The rules cost more than the rank: only a worker that would win is asked.
            rank = score.rank(candidate, book)
            if best_rank is not None and rank >= best_rank:
                continue
            if feasible.refusal(candidate, book, self._index.aliases) is None:
                best, best_rank = book, rank
        return best

    def _place(self, candidate: booking.Candidate, book: booking.Book, copy: int) -> report.Placed:
        class_ = candidate.classes[0] if len(candidate.classes) == 1 else None
        changed = self._raise(book.group, class_)
        self._books[changed.id] = dataclasses.replace(book.adding(candidate), group=changed)
        self._assignments.append(
            group.Assignment(
                lease_id=candidate.lease.id,
                group_id=changed.id,
                copy=copy,
                generation=changed.generation,
                booked_bytes=candidate.needed_bytes,
                assigned_at=self._now,
            )
        )
        beside = f"beside {len(book.held)} other lease(s)" if book.held else "as its first lease"
        message = f"on worker {changed.id}, {beside}: {sizes.text(candidate.needed_bytes)} ({candidate.details()})"
        return report.Placed(lease_id=candidate.lease.id, group_id=changed.id, message=message)

    def _raise(self, target: group.WorkerGroup, class_: str | None = None) -> group.WorkerGroup:
        """The group as it is written: one generation higher than stored, once for each pass."""
        before = self._changes.get(target.id)
        expected = target.generation if before is None else before.expected_generation
        changed = dataclasses.replace(
            target,
            framework_class=target.framework_class or class_,
            generation=1 if expected is None else expected + 1,
            emptied_at=None,
        )
        self._changes[changed.id] = report.GroupChange(group=changed, expected_generation=expected)
        return changed

    def _start(
        self, namespace: ids.Namespace, spec: resources.WorkerSpec, home: pool.Pool | None, replicas: int = 1
    ) -> booking.Book:
        """A new, empty worker: of a pool, or the lease's own."""
        started = group.WorkerGroup(
            id=self._ids.group(),
            namespace=namespace,
            pool=None if home is None else home.name,
            spec=spec,
            capacity_bytes=self._index.capacities[spec],
            framework_class=None,
            phase=group.GroupPhase.RUNNING,
            generation=1,
            token=self._ids.token(),
            created_at=self._now,
            replicas=replicas,
        )
        self._changes[started.id] = report.GroupChange(group=started, expected_generation=None)
        if home is not None:
            self._members[home.namespace, home.name].append(started.id)
        return booking.Book(group=started)

    def _wait(self, candidate: booking.Candidate, home: pool.Pool, why: str) -> report.Waiting:
        members = self._members.get((home.namespace, home.name), [])
        most = max((self._books[group_id].free_bytes for group_id in members), default=0)
        freest = f"the freest of pool {home.name} has {sizes.text(max(0, most))} free"
        message = f"needs {sizes.text(candidate.needed_bytes)}; {why}; {freest}"
        return report.Waiting(lease_id=candidate.lease.id, reason=report.NO_CAPACITY, message=message)

    def _make_way(self, candidate: booking.Candidate, home: pool.Pool) -> None:
        """Lets an empty worker of another framework class go, so that the full pool can start one of this class."""
        pool_key = (home.namespace, home.name)
        if self._leaving[pool_key] > 0:
            self._leaving[pool_key] -= 1
            return
        empty = (self._books[group_id] for group_id in self._members[pool_key] if self._books[group_id].empty)
        other = (book for book in empty if book.group.framework_class not in (None, *candidate.classes))
        book = next((book for book in other if book.group.phase is group.GroupPhase.RUNNING), None)
        if book is None:
            return
        leaving = dataclasses.replace(book.group, phase=group.GroupPhase.DRAINING, generation=book.group.generation + 1)
        self._books[leaving.id] = dataclasses.replace(book, group=leaving)
        self._changes[leaving.id] = report.GroupChange(group=leaving, expected_generation=book.group.generation)

    def _count_leaving(self) -> collections.Counter[pool.Key]:
        leaving: collections.Counter[pool.Key] = collections.Counter()
        for pool_key, members in self._members.items():
            books = [self._books[group_id] for group_id in members]
            leaving[pool_key] = sum(book.empty and book.group.phase is group.GroupPhase.DRAINING for book in books)
        return leaving


def _gone(asked: lease.Lease) -> report.Waiting:
    return report.Waiting(lease_id=asked.id, reason="PoolGone", message="its pool is gone")
