from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from sidecar import access

names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}k", fullmatch=True)
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@hypothesis.given(st.dictionaries(names, secrets, max_size=8))
def test_lines_give_their_headers(given: dict[str, str]) -> None:
    assert access.parse("\n".join(f" {name.upper()} = {value}" for name, value in given.items())) == given


def test_headers_go_with_every_call_and_the_token_with_some() -> None:
    shown = access.Access("t", {"key": "v"})

    assert shown.metadata() == (("key", "v"), ("triton-grpc-protocol-key", "v"))
    assert shown.control_metadata() == (*shown.metadata(), ("tms-control-token", "t"))
    assert shown.control_headers() == {"key": "v", "tms-control-token": "t"}
    assert access.NOTHING.control_metadata() == ()
    assert access.NOTHING.control_headers() == {}


def test_the_name_may_be_given_as_grpc_knows_it() -> None:
    assert access.parse("triton-grpc-protocol-key=v") == {"key": "v"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hunter2", "line 1 is not NAME=VALUE"),
        ("\n=hunter2", "line 2 is not NAME=VALUE"),
        ("a b=hunter2", "line 1 is not NAME=VALUE"),
        ("key=", "printable"),
        ("key=hunter2\u00e4", "printable"),
        ("key=hunter2\nKEY=hunter2", "line 2 gives 'key' again"),
        ("tms-control-token=hunter2", "meaning of its own"),
        ("Content-Length=hunter2", "meaning of its own"),
        ("grpc-timeout=hunter2", "meaning of its own"),
        ("key-bin=hunter2", "meaning of its own"),
        ("\n".join(f"key{each}=hunter2" for each in range(33)), "32 at most"),
    ],
)
def test_a_line_that_is_none_is_told_without_its_value(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        access.parse(text)

    assert "hunter2" not in str(caught.value)


@hypothesis.given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        found = access.parse(text)
    except ValueError:
        return
    assert all(value.isascii() and value.isprintable() for value in found.values())


def test_nothing_of_it_is_shown_by_repr() -> None:
    assert "hunter2" not in repr(access.Access("hunter2", {"key": "hunter2"}))


def test_only_a_refusal_has_a_remedy() -> None:
    assert access.remedy("no such model") == ""
    assert "--worker-headers-file" in access.remedy("This protocol is restricted, expecting header 'key'")
    assert "--control-token-file" in access.remedy("This API is restricted, expecting header 'tms-control-token'")
