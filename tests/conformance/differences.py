"""In what our answers differ from Triton's, and why: the only differences that the suite lets pass.

An entry holds for every case that one of its patterns names, and each of these must need it.
"""

from __future__ import annotations

import functools

from tests.conformance.difference import Difference
from tests.conformance.known import ensembles, extensions, requests

DIFFERENCES: tuple[Difference, ...] = (*requests.DIFFERENCES, *extensions.DIFFERENCES, *ensembles.DIFFERENCES)


@functools.cache
def of(case_id: str) -> tuple[Difference, ...]:
    """The differences that are known of a case."""
    return tuple(each for each in DIFFERENCES if each.holds_for(case_id))
