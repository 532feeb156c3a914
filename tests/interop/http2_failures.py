"""The cases of h2spec that the own gRPC front fails, each with the reason. A page of the reference is made from this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

CASES = 145
LEAST_PASSED = 103
"""What the HTTP/2 library of most gRPC servers in Rust passes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One case: h2spec's name for its section and its place there, its title, why it fails."""

    case: str
    title: str
    reason: str


FAILURES = (
    Failure(
        "http2/4.2/3",
        "Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
        "The case sends 20 kB, more than the smallest MAX_FRAME_SIZE, but this server announces 256 KiB: the frame is legal. "
        "Its headers are larger than MAX_HEADER_LIST_SIZE allows, and that request is answered with status 431.",
    ),
)


def check(found: Mapping[str, str], table: Sequence[Failure] = FAILURES) -> Iterable[str]:
    """What is wrong with the table, given the titles of the cases that failed, by case."""
    known = {failure.case: failure.title for failure in table}
    yield from (f"{case} ({title}) fails, and no reason is given" for case, title in found.items() if case not in known)
    yield from (f"{case} ({title}) passes, and a reason is given" for case, title in known.items() if case not in found)
    for case, title in known.items():
        if found.get(case, title) != title:
            yield f"{case} is '{found[case]}', not '{title}'"
