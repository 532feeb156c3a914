"""Scripted fleets and what came of them, as golden files."""

from __future__ import annotations

import pathlib

import pytest

from tests.simulation import script

SCRIPTS = sorted(pathlib.Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_goes_as_written(path: pathlib.Path) -> None:
    text = path.read_text()
    assert script.run(text) == text


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 6
