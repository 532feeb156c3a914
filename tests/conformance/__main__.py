"""Records what the servers answer: ``python -m tests.conformance [PATTERN]``.

Writes expected.json and prints every difference from Triton that `differences` does not know. To be run after a change
of cases or of the worker's answers; what changes in the file is to be looked at.
"""

from __future__ import annotations

import fnmatch
import pathlib
import sys
import tempfile

from tests.conformance import bench, catalogue, differences, expected


def main(pattern: str) -> None:
    answers = dict(expected.recorded())
    with tempfile.TemporaryDirectory() as folder, bench.Bench(pathlib.Path(folder)) as servers:
        for name in fnmatch.filter(catalogue.CASES, pattern):
            known = {aspect for each in differences.of(name) for aspect in each.aspects}
            for frontend in reversed(bench.ways(catalogue.CASES[name])):  # the first one's answers are recorded
                found = servers.compare(catalogue.CASES[name], frontend)
                if set(found.aspects) - known or answers.get(name) not in {None, found.answers}:
                    _report(f"{name} on {frontend}", found)
                answers[name] = found.answers
    expected.write({name: answers[name] for name in catalogue.CASES if name in answers})


def _report(name: str, found: bench.Compared) -> None:
    sys.stdout.write(f"## {name}\n   Triton: {found.answers.triton}\n   ours:   {found.answers.ours}\n")
    for aspect, words in found.aspects.items():
        sys.stdout.write(f"   {aspect.value}: {words}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "*")
