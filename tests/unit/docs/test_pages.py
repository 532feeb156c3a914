"""The reference pages are what their sources say, whoever writes them."""

from __future__ import annotations

import pathlib

import pytest

from docs import generate
from docs.pages import cli


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_pages_are_what_the_sources_say(page: str) -> None:
    assert (generate.HERE / "reference" / page).read_text() == generate.PAGES[page](), "run `make docs`"


def test_generating_writes_every_page(tmp_path: pathlib.Path) -> None:
    generate.generate(tmp_path)
    assert sorted(path.name for path in (tmp_path / "reference").iterdir()) == sorted(generate.PAGES)


def test_the_reference_does_not_depend_on_who_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cli.text()
    monkeypatch.setenv("TMS_TARGET", "h:1")
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.text() == before
