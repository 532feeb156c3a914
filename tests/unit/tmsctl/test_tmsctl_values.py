"""What people write is read exactly; what is wrong is refused with the remedy."""

from __future__ import annotations

import contextlib
import datetime as dt
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from tmsctl import values

SPANS = st.integers(0, values.MAX_SECONDS * 1_000_000).map(lambda micros: dt.timedelta(microseconds=micros))
WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
URIS = st.builds("{}://{}".format, st.sampled_from(["model", "s3", "file"]), st.text("abc/._-, :", min_size=1)).filter(
    lambda uri: not re.search(r",[a-z_]+=", uri)
)
MODELS = st.builds(
    values.Model,
    WORDS,
    URIS,
    st.sampled_from(["", "onnxruntime", "python"]),
    st.integers(0, values.MAX_INT64),
    st.sampled_from(["", "config.json", "/a/b c.json"]),
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h30m", 9000), ("1d", 86400), ("250ms", 0.25), ("1.5h", 5400), ("0s", 0)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10x", "-1s", "5m1h", "1s1s", "1 s", "1e3s", "0.1ms1", "0.0001ms", "99999999999999d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|finer|longer"):
        values.parse_duration(text)


@hypothesis.given(SPANS)
def test_durations_round_trip(span: dt.timedelta) -> None:
    assert values.parse_duration(values.format_duration(span)) == span


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("512MiB", 512 * 2**20), ("4GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), ("4 kb", 4000), ("7B", 7)],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert values.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "4G", "GiB", "-1", "0.3", "1.0000001KiB", "9223372036854775808", "9999999TiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole|more than"):
        values.parse_size(text)


@hypothesis.given(st.integers(0, values.MAX_INT64))
def test_sizes_round_trip(size_bytes: int) -> None:
    assert values.parse_size(values.format_size_exact(size_bytes)) == size_bytes


@hypothesis.given(st.text(max_size=30))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parser in (values.parse_duration, values.parse_size, values.parse_cpus, values.parse_model, values.parse_label):
        with contextlib.suppress(ValueError):
            parser(text)


@pytest.mark.parametrize(("size_bytes", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (250 * 2**30, "250 GiB")])
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert values.format_size(size_bytes) == text


@pytest.mark.parametrize(("text", "milli"), [("2", 2000), ("0.5", 500), ("1.25", 1250)])
def test_processors_are_read(text: str, milli: int) -> None:
    assert values.parse_cpus(text) == milli


@hypothesis.given(MODELS)
def test_models_round_trip(model: values.Model) -> None:
    assert values.parse_model(values.format_model(model)) == model


def test_the_short_form_of_a_model() -> None:
    assert values.parse_model("digits=model://a/b,c") == values.Model("digits", "model://a/b,c")


def test_the_short_form_may_go_on_with_keys() -> None:
    expected = values.Model("r", "model://a/b", "onnxruntime", 300 * 2**20)
    assert values.parse_model("r=model://a/b,bytes=300MiB,framework=onnxruntime") == expected


def test_a_uri_may_hold_equals_signs() -> None:
    assert values.parse_model("m=s3://b/p=1") == values.Model("m", "s3://b/p=1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("digits", "NAME=URI"),
        ("name=a", "lacks a uri"),
        ("uri=model://a/b", "lacks a name"),
        ("name=a,uri=model://a/b,framwork=x", "did you mean 'framework'"),
        ("a=model://a/b,size=1", "unknown key 'size'"),
        ("name=a,name=b,uri=model://a/b", "twice"),
        ("name=a,uri=model://a/b,bytes=4G", "no size"),
        ("name=a,uri=model://a/b,config=c.json", "config=@FILE"),
    ],
)
def test_a_wrong_model_is_refused_with_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        values.parse_model(text)


def test_the_last_label_of_a_key_counts() -> None:
    assert values.parse_labels(["a=1", "b=", "a=2=3"]) == {"a": "2=3", "b": ""}


@hypothesis.given(st.text())
def test_cleaned_text_cannot_steer_a_terminal(text: str) -> None:
    cleaned = values.clean(text)
    assert not any(ord(char) < 32 and char != "\t" for char in cleaned)
    assert "\x1b" not in cleaned
    assert "\x9b" not in cleaned
