"""Our worker and a real tritonserver answer the same bytes alike, but for what `differences` tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import bench, catalogue, difference, differences, expected
from tests.conformance.triton import environment

pytestmark = pytest.mark.skipif(bool(environment.unfit()), reason=environment.unfit() or "none")

_ALL = [(name, frontend) for name, of in catalogue.CASES.items() for frontend in bench.ways(of)]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bench.Bench]:
    with bench.Bench(tmp_path_factory.mktemp("conformance")) as started:
        yield started


@pytest.mark.parametrize(("name", "frontend"), _ALL)
def test_the_answers_are_alike(servers: bench.Bench, name: str, frontend: str) -> None:
    found = servers.compare(catalogue.CASES[name], frontend)
    known = {aspect for each in differences.of(name) for aspect in each.aspects}
    unknown = {aspect.value: words for aspect, words in found.aspects.items() if aspect not in known}
    assert not unknown, f"{found.answers}: mend our worker, or say why in known"
    assert found.answers == expected.recorded().get(name), "look at it, then run `python -m tests.conformance`"


@pytest.mark.parametrize("entry", differences.DIFFERENCES, ids=lambda entry: entry.patterns[0])
def test_every_known_difference_is_one(servers: bench.Bench, entry: difference.Difference) -> None:
    for pattern in entry.patterns:
        names = [name for name in catalogue.CASES if difference.matches(pattern, name)]
        assert names, f"{pattern} names no case"
    needed = set()
    for name in filter(entry.holds_for, catalogue.CASES):
        of = catalogue.CASES[name]
        found = {aspect for frontend in bench.ways(of) for aspect in servers.compare(of, frontend).aspects}
        assert found & entry.aspects, f"{name} needs no such entry any more: {entry.reason}"
        answers = expected.recorded()[name]
        assert entry.fragment in answers.ours.text
        assert entry.fragment in answers.triton.text
        needed |= found & entry.aspects
    assert needed == entry.aspects
