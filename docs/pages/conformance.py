"""The page of the worker's conformance, from the cases that the suite replays against it and a real Triton.

No server is asked: what each answers is in the suite's record, which the suite verifies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from docs.pages import markdown
from tests.conformance import case, catalogue, difference, differences, expected

_MOST_CHARACTERS = 160
_OPENING = """# Conformance of the worker

Generated from `tests/conformance`, whose cases replay the same bytes against the worker and a real Triton Inference Server
2.51 (`tritonserver` as the wheel `nvidia-pytriton` 0.7.0 carries it) and compare what comes back: status, error text, JSON, tensors
byte by byte. What is here is verified by each run of `make test-conformance`.

*as Triton* means that every case of the row is answered alike; a status and words show how both refuse. Where the answers differ, the
note says in what and why, and what the worker does.
"""


def text() -> str:
    """A table for each part of the protocol, and the notes to it."""
    notes = _Notes()
    sections = itertools.groupby(_sorted(catalogue.CASES.values()), key=lambda each: each.section)
    tables = [_section(title, list(cases), notes) for title, cases in sections]
    return "\n".join([_OPENING, _summary(), *tables, notes.text()])


class _Notes:
    """Differences in the order in which the tables name them."""

    def __init__(self) -> None:
        self._numbers: dict[difference.Difference, int] = {}

    def mark(self, entries: Iterable[difference.Difference]) -> str:
        numbers = [self._numbers.setdefault(entry, len(self._numbers) + 1) for entry in entries]
        return "".join(f" [{number}](#note-{number})" for number in numbers)

    def text(self) -> str:
        lines = ["## Differences", ""]
        for entry, number in self._numbers.items():
            what = ", ".join(sorted(aspect.value for aspect in entry.aspects))
            lines.append(f'{number}. <a id="note-{number}"></a>{entry.verdict.value} ({what}): {entry.reason}.')
        return "\n".join([*lines, ""])


def _sorted(cases: Iterable[case.Case]) -> list[case.Case]:
    """By section, in the order in which sections come first."""
    order: dict[str, list[case.Case]] = {}
    for each in cases:
        order.setdefault(each.section, []).append(each)
    return [each for group in order.values() for each in group]


def _summary() -> str:
    counted = dict.fromkeys(difference.Verdict, 0)
    for name in catalogue.CASES:
        for verdict in {entry.verdict for entry in differences.of(name)}:
            counted[verdict] += 1
    alike = sum(not differences.of(name) for name in catalogue.CASES)
    lines = [
        f"{len(catalogue.CASES)} cases; {alike} are answered alike.",
        "",
        "| difference | cases |",
        "| --- | --- |",
    ]
    lines += [f"| {verdict.value} | {count} |" for verdict, count in counted.items()]
    return "\n".join([*lines, ""])


def _section(title: str, cases: Sequence[case.Case], notes: _Notes) -> str:
    rows: dict[str, list[case.Case]] = {}
    for each in cases:
        rows.setdefault(each.row, []).append(each)
    lines = [f"## {title}", "", "| case | HTTP | gRPC |", "| --- | --- | --- |"]
    for row, of_row in rows.items():
        cells = [_cell([each for each in of_row if each.transport is one], notes) for one in case.Transport]
        lines.append(f"| {markdown.cell(row)} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def _cell(cases: Sequence[case.Case], notes: _Notes) -> str:
    """What our worker does, once for each way in which it does it; a dash where the transport has no such thing."""
    found = {_answer(each) + notes.mark(differences.of(each.id)): None for each in cases}
    shown: dict[str, str] = {}
    for words in found:
        shown.setdefault(words.split("`", 1)[0] + words.rsplit("`", 1)[-1], words)
    return "; ".join(shown.values()) or "-"


def _answer(of: case.Case) -> str:
    answers = expected.recorded()[of.id]
    if answers.ours.good:
        return "answered" if differences.of(of.id) else "as Triton"
    words = markdown.cell(answers.ours.text.replace("`", "'"))
    cut = words if len(words) <= _MOST_CHARACTERS else words[:_MOST_CHARACTERS].rstrip() + " …"
    return f"{answers.ours.status}" + (f" `{cut}`" if cut else "")
