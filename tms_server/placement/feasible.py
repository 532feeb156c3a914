"""May this lease go on that worker? Named rules, asked in one order; the first that refuses says why.

Each rule looks at one thing and knows nothing of the others. `not_with` and `exclusive` bind both sides, and leases that
are draining still count: their requests in flight and their bytes are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tms_server.model import group, ids, lease, sizes
from tms_server.placement import booking


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Which rule refuses a worker, and why."""

    rule: str
    message: str
    missing_bytes: int = 0


Aliases = Mapping[ids.LeaseId, frozenset[str]]
"""Stable names that point at each lease."""
Rule = Callable[[booking.Candidate, booking.Book, Aliases], str | None]


def refusal(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> Refusal | None:
    """The first rule that refuses, or None if the lease may go there."""
    for name, rule in RULES:
        if (message := rule(candidate, book, aliases)) is not None:
            missing = book_lack(candidate, book) if name == "Memory" else 0
            return Refusal(name, message, missing)
    return None


def book_lack(candidate: booking.Candidate, book: booking.Book) -> int:
    """Bytes that the candidate lacks there; 0 when they suffice."""
    return max(0, book.added_bytes(candidate) - book.free_bytes)


def impossible(candidate: booking.Candidate, capacity_bytes: int, *, alone: bool) -> str | None:
    """Why not even an empty worker of that capacity could take the lease; None if it could.

    A worker of its own (`alone`) may hold any mix of frameworks.
    """
    if len(candidate.classes) > 1 and not alone:
        return (
            f"its models are of the framework classes {' and '.join(candidate.classes)}, which never share a worker of a "
            "pool; lease them apart or on a dedicated worker"
        )
    lack = candidate.needed_bytes - capacity_bytes
    if lack <= 0:
        return None
    return (
        f"needs {sizes.text(candidate.needed_bytes)} ({candidate.details()}), "
        f"an empty worker holds {sizes.text(capacity_bytes)}: {sizes.text(lack)} too few"
    )


def matches(selector: str, other: lease.Lease, aliases: Aliases) -> bool:
    """Whether a selector (lease id, lease name or key=value) means that lease."""
    if selector == other.id or selector in aliases.get(other.id, frozenset()):
        return True
    key, equals, value = selector.partition("=")
    return bool(equals) and other.spec.labels.get(key) == value


def _pool(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    placement = candidate.lease.spec.placement
    if isinstance(placement, lease.Dedicated):
        return "the lease asks for a worker of its own"
    if candidate.lease.namespace != book.group.namespace:
        return f"the worker is of namespace {book.group.namespace}"
    if book.group.pool is None:
        return "the worker belongs to one lease alone"
    return None if book.group.pool == placement.pool else f"the worker is of pool {book.group.pool}"


def _draining(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del candidate, aliases
    return "the worker takes no new leases" if book.group.phase is group.GroupPhase.DRAINING else None


def _copy(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    if all(each.id != candidate.lease.id for each in book.held):
        return None
    return "a copy of the lease is there" + ("" if candidate.lease.id in book.staying else " and not gone yet")


def _framework_class(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    if len(candidate.classes) > 1:
        return f"the lease mixes the framework classes {', '.join(candidate.classes)}"
    if book.group.framework_class in (None, *candidate.classes):
        return None
    return f"the worker is of framework class {book.group.framework_class}, the lease of {candidate.classes[0]}"


def _name_clash(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    for name in sorted(candidate.names & book.models.keys()):
        if candidate.keys[name] != book.models[name].key:
            return f"model name {name!r} is taken there by other files or another configuration"
    return None


def _share_with(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    for selector in candidate.lease.spec.sharing.share_with:
        if not any(each.id in book.staying and matches(selector, each, aliases) for each in book.held):
            return f"no lease there matches share_with {selector!r}"
    return None


def _not_with(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    for other in book.held:
        for selector in candidate.lease.spec.sharing.not_with:
            if matches(selector, other, aliases):
                return f"lease {other.id} there matches not_with {selector!r}"
        for selector in other.spec.sharing.not_with:
            if matches(selector, candidate.lease, aliases):
                return f"lease {other.id} there refuses to be with {selector!r}"
    return None


def _exclusive(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    if candidate.lease.spec.sharing.exclusive and book.held:
        return f"the lease is exclusive and lease {book.held[0].id} is there"
    alone = next((each.id for each in book.held if each.spec.sharing.exclusive), None)
    return None if alone is None else f"lease {alone} there is exclusive"


def _memory(candidate: booking.Candidate, book: booking.Book, aliases: Aliases) -> str | None:
    del aliases
    if (lack := book_lack(candidate, book)) == 0:
        return None
    free = f"{sizes.text(max(0, book.free_bytes))} of {sizes.text(book.group.capacity_bytes)} are free"
    return f"needs {sizes.text(book.added_bytes(candidate))}, {free}: {sizes.text(lack)} too few"


RULES: tuple[tuple[str, Rule], ...] = (
    ("Pool", _pool),
    ("Draining", _draining),
    ("Copy", _copy),
    ("FrameworkClass", _framework_class),
    ("NameClash", _name_clash),
    ("ShareWith", _share_with),
    ("NotWith", _not_with),
    ("Exclusive", _exclusive),
    ("Memory", _memory),
)
"""Asked in this order."""
