"""All cases of the suite, by their ids. Pure."""

from __future__ import annotations

from tests.conformance.case import Case
from tests.conformance.cases import (
    basics,
    bodies,
    caching,
    ensembles,
    extensions,
    generate,
    inference,
    python,
    repository,
    restricted,
    scheduling,
    shared_memory,
    streams,
)

_MODULES = (
    basics,
    inference,
    bodies,
    streams,
    python,
    scheduling,
    caching,
    ensembles,
    extensions,
    repository,
    shared_memory,
    generate,
    restricted,
)

_ALL = tuple(case for module in _MODULES for case in module.cases())

CASES: dict[str, Case] = {case.id: case for case in _ALL}
assert len(CASES) == len(_ALL), "two cases have one id"
