"""Saved targets survive a round trip, belong to their owner alone, and a broken file is said to be broken."""

from __future__ import annotations

import pathlib
import stat

import hypothesis
import pytest
from hypothesis import strategies as st

from tmsctl import config, errors

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TARGETS = st.builds(config.Target, TEXTS.filter(bool), TEXTS, TEXTS, TEXTS, st.booleans())
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True)


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@hypothesis.given(st.dictionaries(NAMES, TARGETS, max_size=4), st.booleans())
def test_targets_round_trip(by_name: dict[str, config.Target], use: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    targets = config.Targets(by_name, next(iter(by_name), "") if use else "")
    assert config.parse(config.render(targets)) == targets


def test_the_file_is_its_owners_alone_and_replaced_as_a_whole(home: pathlib.Path) -> None:
    for port in (1, 2):
        config.save(config.Targets({"a": config.Target(f"h:{port}")}, "a"))
    file = home / "tms" / "targets.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["targets.toml"]
    assert config.load().by_name["a"].address == "h:2"


def test_a_target_is_resolved_by_name_address_use_and_default() -> None:
    assert config.resolve(None) == config.Target(config.DEFAULT_ADDRESS)
    config.save(config.Targets({"a": config.Target("a:1", ca="/ca"), "b": config.Target("b:2")}, "b"))
    assert config.resolve(None).address == "b:2"
    assert config.resolve("a") == config.Target("a:1", ca="/ca")
    assert config.resolve("[::1]:99") == config.Target("[::1]:99")
    assert config.resolve("unix:/run/tms") == config.Target("unix:/run/tms")


def test_an_unknown_target_is_not_found_and_the_known_ones_are_named() -> None:
    config.save(config.Targets({"prod": config.Target("a:1")}))
    with pytest.raises(errors.CliError) as raised:
        config.resolve("prdo")
    assert raised.value.code == errors.Exit.NOT_FOUND
    assert "prod" in raised.value.remedy


@pytest.mark.parametrize("address", ["localhost", "h:0", "h:65536", "http://h:1", ":1", "a b:1", "h:x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(errors.CliError) as raised:
        config.check_address(address)
    assert raised.value.code == errors.Exit.USAGE


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 64, "../x", "a.b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(errors.CliError):
        config.check_name(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("targets = 1", "targets: write a table"),
        ("[targets]\na = 1", "targets.a: write a table"),
        ("[targets.a]\naddres = 'x'", "did you mean 'address'"),
        ("[targets.a]\naddress = 1", "targets.a.address: write text"),
        ("[targets.a]\nca = 'x'", "has no address"),
        ("[targets.a]\naddress = 'x'\ntls = 'yes'", "true or false"),
        ("use = 'a'", "no target 'a'"),
        ("used = 'a'", "did you mean 'use'"),
        ("=", "Invalid"),
    ],
)
def test_a_broken_file_is_said_to_be_broken(home: pathlib.Path, text: str, said: str) -> None:
    (home / "tms").mkdir()
    (home / "tms" / "targets.toml").write_text(text)
    with pytest.raises(errors.CliError) as raised:
        config.load()
    assert said in raised.value.message
    assert raised.value.field.endswith("targets.toml")


def test_a_target_with_files_is_encrypted() -> None:
    assert not config.Target("a:1").encrypted
    assert config.Target("a:1", ca="/ca").encrypted
    assert config.Target("a:1", tls=True).encrypted
