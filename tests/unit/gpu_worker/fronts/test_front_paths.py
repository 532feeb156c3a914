"""Paths, content codings and metrics text: the small pure parts of the HTTP front."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.http import routes
from gpu_worker.http.routes import Endpoint
from gpu_worker.wire import compression


@pytest.mark.parametrize(
    ("target", "endpoint", "model", "version"),
    [
        (b"/v2", Endpoint.SERVER, "", ""),
        (b"/v2?x=/y", Endpoint.SERVER, "", ""),
        (b"http://host:1/v2/health/live", Endpoint.LIVE, "", ""),
        (b"/v2/models/stats", Endpoint.STATISTICS, "", ""),
        (b"/v2/models/a%2Fb/ready", Endpoint.MODEL_READY, "a/b", ""),
        (b"/v2/models/m/versions/12/infer", Endpoint.INFER, "m", "12"),
        (b"/v2/models/m/versions/12", Endpoint.MODEL, "m", "12"),
        (b"/v2/repository/models/m/load", Endpoint.LOAD, "m", ""),
        (b"/v2/repository/r/models/m/load", Endpoint.NAMED_REPOSITORY, "m", ""),
        (b"/v2/repository/r/index", Endpoint.NAMED_REPOSITORY, "", ""),
        (b"/v2/models/m/generate_stream", Endpoint.GENERATE_STREAM, "m", ""),
        (b"/v2/cudasharedmemory/region/r/register", Endpoint.CUDA_REGISTER, "", ""),
        (b"/v2/models/m/trace/setting", Endpoint.TRACE, "m", ""),
    ],
)
def test_paths_are_known(target: bytes, endpoint: Endpoint, model: str, version: str) -> None:
    route = routes.api(target)
    assert route is not None
    assert (route.endpoint, route.model, route.version) == (endpoint, model, version)


@pytest.mark.parametrize(
    "target", [b"/", b"", b"*", b"/v2/", b"/v2/models/", b"/v2/models/m/versions/x/infer", b"/v1", b"v2", b"http://"]
)
def test_other_paths_are_not(target: bytes) -> None:
    assert routes.api(target) is None


@given(st.binary(max_size=60).map(lambda tail: b"/v2/" + tail))
def test_any_target_has_a_route_or_none(target: bytes) -> None:
    route = routes.api(target)
    assert route is None or isinstance(route, routes.Route)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_what_is_deflated_inflates(body: bytes, coding: str) -> None:
    (packed,) = compression.deflate([body[:7], body[7:]], coding)
    assert bytes(compression.inflate(packed, coding, len(body))) == body
    if body:
        with pytest.raises(OverflowError):
            compression.inflate(packed, coding, len(body) - 1)


MEMBERS = st.lists(st.tuples(st.binary(max_size=4), st.integers(0, 2**19)), max_size=3)


def noting(work: Generator[int, None, border.Buffer], held: list[int]) -> Generator[int, None, border.Buffer]:
    """`work`, whose steps say what they hold."""
    while True:
        try:
            held.append(next(work))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what `work` returns
        yield held[-1]


@given(MEMBERS, st.integers(-1, 1), st.sampled_from([0, 1, 9]))
def test_inflating_in_steps_gives_what_was_deflated_within_the_bound(
    members: list[tuple[bytes, int]], spare: int, lost: int
) -> None:
    """However much comes out of a step, and wherever members and steps end."""
    parts = [unit * times for unit, times in members]
    packed, size = b"".join(map(gzip.compress, parts)), sum(map(len, parts))
    work = compression.inflating(packed[: len(packed) - lost], "gzip", max(0, size + spare))
    held: list[int] = []
    expected: type[Exception] | None = None
    if lost and packed:
        expected = border.InferenceError
    if spare < 0 < size:
        expected = OverflowError
    if expected is not None:
        with pytest.raises((expected, border.InferenceError)):
            compression.finished(noting(work, held))
    else:
        found = compression.finished(noting(work, held))
        assert found == b"".join(parts)
        assert size - 2**20 <= sum(held) <= size
    assert all(each < 2**21 for each in held)


@given(MEMBERS)
def test_deflating_in_steps_loses_nothing(members: list[tuple[bytes, int]]) -> None:
    parts = [unit * times for unit, times in members]
    assert gzip.decompress(b"".join(compression.deflate(parts, "gzip"))) == b"".join(parts)


def test_a_bomb_is_stopped_at_the_bound() -> None:
    with pytest.raises(OverflowError):
        compression.inflate(gzip.compress(bytes(2**24)), "gzip", 1000)


def test_gzip_of_several_members_is_read_whole() -> None:
    assert compression.inflate(gzip.compress(b"ab") + gzip.compress(b"c"), "gzip", 3) == b"abc"


def test_a_body_of_very_many_empty_members_is_not_taken_apart() -> None:
    with pytest.raises(border.InferenceError, match="cannot be inflated"):
        compression.inflate(gzip.compress(b"") * 100_000, "gzip", 1000)


@pytest.mark.parametrize(
    ("body", "coding"), [(b"x", "gzip"), (gzip.compress(b"abc")[:-1], "gzip"), (zlib.compress(b"a") + b"x", "deflate")]
)
def test_a_broken_stream_is_refused(body: bytes, coding: str) -> None:
    with pytest.raises(border.InferenceError, match="cannot be inflated"):
        compression.inflate(body, coding, 100)


def test_an_unknown_coding_is_unsupported() -> None:
    with pytest.raises(border.InferenceError) as caught:
        compression.inflate(b"", "br", 1)
    assert caught.value.kind is border.ErrorKind.UNSUPPORTED


@pytest.mark.parametrize(
    ("accepted", "choice"),
    [
        ("", ""),
        ("*", ""),
        ("br", ""),
        ("gzip", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=x", ""),
        ("GZIP ; Q=0.3", "gzip"),
    ],
)
def test_the_best_accepted_coding_is_chosen(accepted: str, choice: str) -> None:
    assert compression.choose(accepted) == choice
