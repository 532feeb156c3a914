"""Which of several possible workers is better.

Coarse on purpose: few grades, so that most workers tie and the one stable order (oldest first) decides. That fills old
workers and lets young ones run empty; fine grades would scatter leases instead.
"""

from __future__ import annotations

import datetime as dt

from tms_server.model import ids
from tms_server.placement import booking

GRADES = 4

Rank = tuple[int, int, int, dt.datetime, ids.GroupId]


def rank(candidate: booking.Candidate, book: booking.Book) -> Rank:
    """The smallest wins: most bytes already loaded, then a class already given, then fullest, then oldest."""
    shared = GRADES * book.shared_bytes(candidate) // max(1, candidate.needed_bytes)
    after = book.booked_bytes + book.added_bytes(candidate)
    full = GRADES * after // max(1, book.group.capacity_bytes)
    return -shared, book.group.framework_class is None, -full, book.group.created_at, book.group.id
