"""Everything known, and a few thousand inputs near it, keeps the promises. `make fuzz` looks for more."""

from __future__ import annotations

import pytest

from tests.fuzz import inputs

COUNT = 3000


@pytest.mark.parametrize("name", inputs.TARGETS)
def test_what_is_known_keeps_the_promises(name: str) -> None:
    for data in inputs.known(name):
        check(name, data)


@pytest.mark.slow  # thousands of inputs
@pytest.mark.parametrize("name", inputs.TARGETS)
def test_what_is_near_keeps_the_promises(name: str) -> None:
    for data in inputs.mutations(name, COUNT):
        check(name, data)


def check(name: str, data: bytes) -> None:
    try:
        inputs.TARGETS[name].fuzz(data)
    except Exception as error:
        error.add_note(f"the input is {data!r}: put it into a file below tests/fuzz/corpus/{name}")
        raise


def test_mutations_are_the_same_in_every_run() -> None:
    assert list(inputs.mutations("http1", 50)) == list(inputs.mutations("http1", 50))
