"""What each server answers to each case, as recorded in expected.json; the suite verifies every line of it.

``python -m tests.conformance`` writes the file anew from the servers' answers. Where ours answers as Triton does, only
Triton's answer is in it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping

from tests.conformance import case, comparing

FILE = pathlib.Path(__file__).with_name("expected.json")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status or code, and the words of a refusal."""

    status: str
    text: str = ""

    @property
    def good(self) -> bool:
        return self.status in {"200", "OK"} and not self.text


@dataclasses.dataclass(frozen=True)
class Expected:
    """The answers to the call that a case shows."""

    triton: Answer
    ours: Answer


@functools.cache
def recorded() -> Mapping[str, Expected]:
    """All answers, by the ids of cases."""
    lines = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {
        name: Expected(Answer(*answers["triton"]), Answer(*answers.get("ours", answers["triton"])))
        for name, answers in lines.items()
    }


def write(answers: Mapping[str, Expected]) -> None:
    """Replaces the record; a line for each case, in the given order."""
    lines = []
    for name, answer in answers.items():
        told = {"triton": [answer.triton.status, answer.triton.text]}
        if answer.ours != answer.triton:
            told["ours"] = [answer.ours.status, answer.ours.text]
        lines.append(f"  {json.dumps(name)}: {json.dumps(told, ensure_ascii=False)}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def answer(of: case.Case, known: comparing.Known) -> Answer:
    """The answer as it is recorded: words that are free are left out."""
    free = of.text is case.Text.FREE
    return Answer(known.status, "" if free else known.text)
