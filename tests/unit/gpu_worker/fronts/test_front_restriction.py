"""Groups of calls behind a header, and headers that become parameters."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker import settings
from gpu_worker.engine import border
from gpu_worker.grpc import guard, health, service
from gpu_worker.http import routes
from gpu_worker.wire import forwarding, restriction
from protos.inference.v2 import predict_pb2

REPOSITORY = "--model-repository=/models"


def test_groups_are_read_from_flags() -> None:
    found = restriction.parse("f", ["health,trace:Key=a=b:c", "logging:other=x"], "p-")
    assert found == {"health": ("p-key", "a=b:c"), "trace": ("p-key", "a=b:c"), "logging": ("p-other", "x")}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["healthy:k=secret"], "--f=healthy:k= names the unknown API 'healthy'"),
        (["health:k=secret", "trace,health:k=secret"], "names the API 'health', which is in a group already"),
        (["health,health:k=secret"], "in a group already"),
        (["health"], "is not of the form API,API:HEADER=VALUE"),
        (["health:k"], "is not of the form"),
        ([":k=secret"], "is not of the form"),
        (["health:=secret"], "is not of the form"),
        (["health:k="], "is not of the form"),
    ],
)
def test_groups_that_make_no_sense_stop_the_start_without_telling_secrets(values: list[str], words: str) -> None:
    with pytest.raises(border.InferenceError, match=re.escape(words)) as caught:
        restriction.parse("f", values)
    assert "secret" not in caught.value.message
    with pytest.raises(border.InferenceError):
        settings.load([REPOSITORY, *(f"--http-restricted-api={value}" for value in values)])
    with pytest.raises(border.InferenceError):
        settings.load([REPOSITORY, *(f"--grpc-restricted-protocol={value}" for value in values)])


@given(st.lists(st.text(st.sampled_from("healthtrace,:=k"), max_size=20), max_size=4))
def test_any_flag_is_read_or_refused(values: list[str]) -> None:
    try:
        found = restriction.parse("f", values)
    except border.InferenceError:
        return
    assert set(found) <= set(restriction.APIS)


@given(st.sampled_from(restriction.APIS), st.binary(max_size=8), st.text(min_size=1, max_size=8))
def test_only_who_shows_the_value_may(api: str, shown: bytes, value: str) -> None:
    rule = restriction.Restriction("API", {"trace": ("key", value)})
    if api != "trace" or shown == value.encode():
        rule.check(api, {"key": shown}.__getitem__)
    else:
        with pytest.raises(border.InferenceError, match="This API is restricted, expecting header 'key'") as caught:
            rule.check(api, {"key": shown}.__getitem__)
        assert caught.value.kind is border.ErrorKind.UNAVAILABLE


def test_every_call_of_both_fronts_is_in_a_group() -> None:
    assert set(routes.APIS) == set(routes.Endpoint) - {routes.Endpoint.METRICS}
    assert {*routes.APIS.values()} == {*guard.APIS.values()} == set(restriction.APIS)
    methods = [each.name for each in predict_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
    assert set(guard.APIS) == {*methods, "Check", "Watch"}
    assert (service.NAME, health.NAME) == ("inference.GRPCInferenceService", "grpc.health.v1.Health")


def test_matching_headers_become_parameters() -> None:
    rule = forwarding.Forwarding("X-.*|user")
    headers = [("x-a", "1"), ("User", "me"), ("xx-b", "2"), ("host", "h")]
    given_: dict[str, border.Parameter] = {"x-a": 5, "other": True}
    assert rule.add(given_, headers) == {"x-a": "1", "User": "me", "other": True}
    assert given_ == {"x-a": 5, "other": True}
    assert forwarding.Forwarding("(?-i)x-.*").add({}, [("X-a", "1"), ("x-b", "2")]) == {"x-b": "2"}
    assert forwarding.Forwarding().add(given_, headers) is given_


@pytest.mark.parametrize("name", ["sequence_id", "priority", "timeout", "headers", "binary_data_output", "triton_x"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(border.InferenceError, match=f"header '{name}' cannot be forwarded") as caught:
        forwarding.Forwarding(".*").add({}, [(name, "1")])
    assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
    assert forwarding.Forwarding("x.*").add({}, [(name, "1")]) == {}


@pytest.mark.parametrize("pattern", ["(", "a**", r"(a)\1", "(?=a)", "[b-a]"])
def test_patterns_that_cannot_be_used_stop_the_start(pattern: str) -> None:
    with pytest.raises(border.InferenceError, match="--http-header-forward-pattern: the pattern of headers"):
        settings.load([REPOSITORY, f"--http-header-forward-pattern={pattern}"])
    with pytest.raises(border.InferenceError, match="--grpc-header-forward-pattern: the pattern of headers"):
        settings.load([REPOSITORY, f"--grpc-header-forward-pattern={pattern}"])


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=5))
def test_any_headers_are_forwarded_or_refused(headers: list[tuple[str, str]]) -> None:
    try:
        found = forwarding.Forwarding(".*").add({}, headers)
    except border.InferenceError:
        return
    assert set(found) <= {name for name, _ in headers}


def test_no_name_makes_a_pattern_slow() -> None:
    """A backtracking matcher would need 2^30000 steps; this one as many as there are characters."""
    began: Any = time.process_time()
    assert forwarding.Forwarding("(a+)+$").add({}, [("a" * 30_000 + "b", "1")]) == {}
    assert time.process_time() - began < 30
