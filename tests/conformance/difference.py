"""What a known difference between our answers and Triton's is: for which cases, in what, and why. Pure."""

from __future__ import annotations

import dataclasses
import enum
import fnmatch

from tests.conformance.comparing import Aspect


class Verdict(enum.Enum):
    """How a difference is to be judged."""

    STRICTER = "ours is stricter"
    NEWER = "newer Triton answers as ours"
    LACKING = "not supported yet"
    DELIBERATE = "deliberate"
    WORDS = "other words"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A known difference; the patterns are those of a shell, over the ids of cases.

    `fragment` is what clients may match on: both servers say it, each in its own sentence.
    """

    patterns: tuple[str, ...]
    aspects: frozenset[Aspect]
    verdict: Verdict
    reason: str
    fragment: str = ""

    def holds_for(self, case_id: str) -> bool:
        return any(matches(pattern, case_id) for pattern in self.patterns)


def matches(pattern: str, case_id: str) -> bool:
    return fnmatch.fnmatchcase(case_id, pattern)


def known(verdict: Verdict, reason: str, aspects: str, *patterns: str, fragment: str = "") -> Difference:
    """An entry; aspects by their names, with a plus between them."""
    return Difference(patterns, frozenset(Aspect(name) for name in aspects.split("+")), verdict, reason, fragment)
