"""What people write by hand says what is: commands exist with their options, links lead somewhere, settings are settings."""

from __future__ import annotations

import pathlib
import re
import subprocess
import tomllib

import pydantic
import pytest

from deploy.images import locks
from tests.support import commands
from tms_server import settings

GUIDES = [locks.ROOT / "README.md", *sorted((locks.ROOT / "docs").glob("*.md"))]
EXAMPLES = locks.ROOT / "examples" / "kubernetes"
PAGES = [*GUIDES, EXAMPLES / "README.md"]
TEXTS = [*PAGES, EXAMPLES / "ci" / "acquire-release.sh"]


def _named(file: pathlib.Path) -> str:
    return str(file.relative_to(locks.ROOT))


@pytest.mark.parametrize("file", TEXTS, ids=_named)
def test_every_command_that_is_shown_exists_with_its_options(file: pathlib.Path) -> None:
    for words in commands.shown(_code(file)):
        own = words[: words.index("--")] if "--" in words else words
        path = [word for word in own if not word.startswith("-")]
        given = {word.partition("=")[0] for word in own if word.startswith("-") and word != "-"}
        assert given <= commands.options(path), " ".join(words)


@pytest.mark.parametrize("file", PAGES, ids=_named)
def test_every_link_leads_somewhere(file: pathlib.Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", file.read_text()):
        if "://" in link:
            continue
        target = (file.parent / link) if link else file
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), f"{link}#{anchor}"


@pytest.mark.parametrize("file", GUIDES, ids=_named)
def test_settings_that_are_shown_are_settings(file: pathlib.Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", file.read_text(), re.DOTALL):
        assert _unknown(block) == [], block


def test_targets_of_make_that_are_shown_are_there() -> None:
    there = set(re.findall(r"^([a-z0-9-]+):", (locks.ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in PAGES:
        shown = set(re.findall(r"^make ([a-z0-9-]+)|`make ([a-z0-9-]+)", file.read_text(), re.MULTILINE))
        assert {name for pair in shown for name in pair if name} <= there, file


def test_scripts_are_scripts() -> None:
    for script in EXAMPLES.rglob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def _unknown(block: str) -> list[object]:
    """Keys that no setting has; files that are only shown need not be there."""
    try:
        settings.Settings.model_validate(tomllib.loads(block))
    except pydantic.ValidationError as wrong:
        return [each["loc"] for each in wrong.errors() if each["type"] == "extra_forbidden"]
    return []


def _code(file: pathlib.Path) -> str:
    """Blocks and spans of code; all of what is no page."""
    if file.suffix != ".md":
        return file.read_text()
    text = file.read_text()
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return "\n".join([*blocks, *spans])


def _anchors(file: pathlib.Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
