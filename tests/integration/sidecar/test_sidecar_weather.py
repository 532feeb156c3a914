"""Fetches from stores that misbehave. What comes is what was meant, or a failure that says what was wrong."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sidecar import errors, values
from sidecar.cache import store as cache_store
from sidecar.fetching import fetch, progress, reading, retry
from sidecar.sources import port

from . import weather
from .conftest import ACCESS, BUCKET

SPAN = 1 << 20


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> cache_store.Cache:
    return cache_store.Cache(tmp_path / "cache")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[weather.Store]:
    """Stretches are small here."""
    monkeypatch.setattr(reading, "SPAN_BYTES", SPAN)
    with weather.running() as store:
        yield store


def run(kept: cache_store.Cache, model: values.Model) -> tuple[values.SourceFile, ...]:
    return fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes)).learnt


def failure(kept: cache_store.Cache, model: values.Model) -> tuple[str, bool]:
    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, model)
    assert "127.0.0.1" not in str(caught.value), "the address of a store is not told"
    return caught.value.failure.reason, caught.value.failure.retryable


def came_whole(kept: cache_store.Cache, learnt: tuple[values.SourceFile, ...], data: bytes) -> bool:
    [file] = learnt
    return file.sha256 == hashlib.sha256(data).hexdigest() and kept.blob(file.sha256).read_bytes() == data


def leftovers(tmp_path: pathlib.Path) -> list[str]:
    return [each.name for each in (tmp_path / "cache" / "partial").iterdir()]


PASSING: dict[str, list[weather.Wrong]] = {
    "cut": [weather.cut_after(SPAN // 3)],
    "cut at once": [weather.cut_after(0)],
    "cut again and again": [weather.cut_after(SPAN // 8)] * 12,
    "busy": [weather.status(503)],
    "too many": [weather.status(429, Retry_After="0")],
    "timeout": [weather.status(408)],
    "stalled": [weather.stalled],
    "silent": [weather.silent],
    "nonsense": [weather.nonsense],
    "all of it": [weather.status(500), weather.cut_after(99), weather.nonsense, weather.status(502)],
}


@pytest.mark.slow  # tries again as often as it may, after real pauses
@pytest.mark.parametrize("trouble", PASSING)
@pytest.mark.parametrize("size_bytes", [SPAN // 2, 5 * SPAN + 17])
def test_what_passes_costs_tries_but_no_bytes(
    kept: cache_store.Cache,
    site: weather.Store,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    size_bytes: int,
) -> None:
    data, wrong = os.urandom(size_bytes), PASSING[trouble]
    if trouble in {"stalled", "silent"}:
        monkeypatch.setattr(port, "READ_S", 0.5)
    model = site.model(site.put("1/model.onnx", data))
    # The first two stretches are fetched in good weather where there are so many.
    site.weather = [*([None] * 2 if size_bytes > SPAN else []), *wrong]

    assert came_whole(kept, run(kept, model), data)
    assert site.sent_bytes < size_bytes + SPAN


LASTING = {
    "longer": ([weather.longer], ("SourceChanged", False)),
    "longer without saying so": ([weather.unmeasured], ("SourceChanged", False)),
    "another range": ([weather.other_range], ("SourceChanged", False)),
    "another total": ([weather.other_total], ("SourceChanged", False)),
    "another version": ([weather.other_version], ("SourceChanged", False)),
    "a coding": ([weather.coded], ("FetchFailed", False)),
    "gone": ([weather.status(410)], ("SourceChanged", False)),
    "forbidden": ([weather.status(403)], ("AccessDenied", False)),
    "odd": ([weather.status(418)], ("FetchFailed", False)),
    "in circles": ([weather.to("/models/m/1/model.onnx")] * 9, ("FetchFailed", False)),
    "to nowhere": ([weather.to("gopher://elsewhere/")], ("FetchFailed", False)),
    "nowhere": ([weather.status(302)], ("FetchFailed", False)),
    "broken for long": ([weather.status(500)] * 99, ("StoreUnavailable", True)),
    "busy for an hour": ([weather.status(503, Retry_After="3600")], ("StoreUnavailable", True)),
    "cut for ever": ([weather.cut_after(0)] * 99, ("StoreUnavailable", True)),
}


@pytest.mark.slow  # tries again as often as it may, after real pauses
@pytest.mark.parametrize(("wrong", "told"), LASTING.values(), ids=LASTING)
def test_what_lasts_is_a_failure_that_says_so(
    kept: cache_store.Cache,
    site: weather.Store,
    tmp_path: pathlib.Path,
    wrong: list[weather.Wrong],
    told: tuple[str, bool],
) -> None:
    model = site.model(site.put("1/model.onnx", b"weights"))
    site.weather = list(wrong)

    assert failure(kept, model) == told
    assert list((tmp_path / "cache" / "blobs").iterdir()) == []
    assert told[1] or leftovers(tmp_path) == []


@pytest.mark.slow  # tries again as often as it may, after real pauses
def test_a_store_that_stays_broken_is_not_asked_for_ever(kept: cache_store.Cache, site: weather.Store) -> None:
    files = [site.put(f"{number}", b"x") for number in range(100)]
    site.weather = [weather.status(500)] * 10_000

    assert failure(kept, site.model(*files)) == ("StoreUnavailable", True)
    assert len(site.asked) < 60


def test_a_cut_connection_goes_on_at_the_byte_where_it_ended(kept: cache_store.Cache, site: weather.Store) -> None:
    data = os.urandom(SPAN)
    model = site.model(site.put("f", data))
    site.weather = [weather.cut_after(300_000), weather.cut_after(300_000)]

    assert came_whole(kept, run(kept, model), data)
    assert [asked for _path, asked, _auth in site.asked] == [
        f"bytes={start}-{SPAN - 1}" for start in (0, 300_000, 600_000)
    ]


@pytest.mark.slow  # tries again as often as it may, after real pauses
def test_a_fetch_that_died_goes_on_from_what_is_on_the_disk(
    kept: cache_store.Cache, site: weather.Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(8 * SPAN)
    model = site.model(site.put("f", data))
    monkeypatch.setattr(fetch, "PARALLEL", 1)
    site.weather = [None, None, weather.cut_after(SPAN // 2), *[weather.cut_after(0)] * 99]
    assert failure(kept, model) == ("StoreUnavailable", True)
    site.weather.clear()
    sent_bytes = site.sent_bytes

    # Another process, after a start that swept.
    again = cache_store.Cache(tmp_path / "cache")
    again.sweep()
    told = progress.Progress(model.size_bytes)
    learnt = fetch.fetch(again, model, threading.Event(), told).learnt

    assert came_whole(again, learnt, data)
    assert site.sent_bytes - sent_bytes == 8 * SPAN - 5 * SPAN // 2
    assert told.fetched_bytes == model.size_bytes


@pytest.mark.slow  # tries again as often as it may, after real pauses
def test_what_changed_between_two_tries_is_never_mixed(
    kept: cache_store.Cache, site: weather.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = site.model(site.put("f", os.urandom(8 * SPAN)))
    monkeypatch.setattr(fetch, "PARALLEL", 1)
    site.weather = [None, *[weather.cut_after(0)] * 99]
    assert failure(kept, model) == ("StoreUnavailable", True)
    site.weather.clear()
    site.put("f", os.urandom(8 * SPAN))

    assert failure(kept, model) == ("SourceChanged", False)


def test_other_bytes_under_the_same_version_are_noticed(
    kept: cache_store.Cache, site: weather.Store, tmp_path: pathlib.Path
) -> None:
    file = site.put("f", b"what it was")
    pinned = dataclasses.replace(file, sha256=hashlib.sha256(b"something else").hexdigest())

    assert failure(kept, site.model(pinned)) == ("SourceChanged", False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("size_bytes", [0, 100, 3 * SPAN])
def test_a_store_without_ranges_is_read_whole(kept: cache_store.Cache, site: weather.Store, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    site.ranges = False
    model = site.model(site.put("f", data))
    site.weather = [None, weather.cut_after(size_bytes // 2)]
    told = progress.Progress(model.size_bytes)

    learnt = fetch.fetch(kept, model, threading.Event(), told).learnt

    assert came_whole(kept, learnt, data)
    assert told.fetched_bytes == size_bytes


@pytest.mark.slow  # tries again as often as it may, after real pauses
def test_a_store_without_ranges_that_cuts_every_time_is_given_up(kept: cache_store.Cache, site: weather.Store) -> None:
    site.ranges = False
    model = site.model(site.put("f", os.urandom(3 * SPAN)))
    site.weather = [weather.cut_after(SPAN)] * 99

    assert failure(kept, model) == ("StoreUnavailable", True)


def test_a_redirect_is_followed_and_takes_no_credentials_elsewhere(
    kept: cache_store.Cache, site: weather.Store
) -> None:
    with weather.running() as elsewhere:
        elsewhere.files["/cdn/f"] = b"weights"
        model = site.model(site.put("f", b"weights"), authorization="Bearer secret")
        site.weather = [weather.to(f"{elsewhere.url}/cdn/f")]

        assert came_whole(kept, run(kept, model), b"weights")
        assert [auth for _path, _range, auth in elsewhere.asked] == [""]
        assert [auth for _path, _range, auth in site.asked] == ["Bearer secret"]


def test_credentials_are_sent_and_never_told(kept: cache_store.Cache, site: weather.Store) -> None:
    site.wanted_authorization = "Bearer right"
    file = site.put("f", b"weights")
    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, site.model(file, authorization="Bearer wrong-secret"))

    assert caught.value.failure.reason == "AccessDenied"
    assert "wrong-secret" not in f"{caught.value!r} {site.model(file, authorization='Bearer wrong-secret')!r}"
    assert came_whole(kept, run(kept, site.model(file, authorization="Bearer right")), b"weights")


def test_odd_names_are_asked_for_as_they_are(kept: cache_store.Cache, site: weather.Store) -> None:
    site.files["/models/m/a%20b/%C3%BC%23%3F%25.bin"] = b"x"
    file = values.SourceFile(path="a b/ü#?%.bin", size_bytes=1, version=weather.tag(b"x"))

    assert came_whole(kept, run(kept, site.model(file)), b"x")


# Credentials that end half way, S3.


@pytest.mark.slow  # tries again as often as it may, after real pauses
def test_credentials_that_expire_half_way_cost_nothing_that_came(
    kept: cache_store.Cache, site: weather.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(8 * SPAN)
    monkeypatch.setattr(fetch, "PARALLEL", 1)
    site.files[f"/{BUCKET}/m/f"] = data
    file = values.SourceFile(path="f", size_bytes=len(data), version=weather.tag(data))
    expired = b"<Error><Code>ExpiredToken</Code><Message>secret words</Message></Error>"
    site.weather = [None, None, lambda handler, _data: handler.answer(400, expired)]
    access = values.S3Access(endpoint_url=site.url, path_style=True, session_token="old", **ACCESS)
    model = values.Model(name="m", uri=f"s3://{BUCKET}/m", files=(file,), source_digest="d", access=access)

    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, model)
    assert caught.value.failure.reason == "CredentialsExpired"
    assert caught.value.failure.retryable
    assert "secret words" not in str(caught.value)
    assert len(site.asked) == 3, "the same credentials are not tried again"
    fresh = dataclasses.replace(model, access=dataclasses.replace(access, session_token="new"))
    assert came_whole(kept, run(kept, fresh), data)
    assert len(site.asked) == 3 + 6


def test_a_store_that_throttles_is_asked_again_later(
    kept: cache_store.Cache, site: weather.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    make = retry.Retries
    monkeypatch.setattr(retry, "Retries", lambda stop: make(stop, pause=pauses.append))
    site.weather = [weather.status(429, Retry_After="7"), weather.status(503, Retry_After="11")]

    assert came_whole(kept, run(kept, site.model(site.put("f", b"x"))), b"x")
    assert 7 <= pauses[0] < 11 <= pauses[1] < 13


# What a fetch takes.


@pytest.mark.slow  # a process fetches 256 MiB
def test_memory_does_not_grow_with_the_file(site: weather.Store, tmp_path: pathlib.Path) -> None:
    data = os.urandom(1 << 20) * 256
    model = site.model(site.put("f", data))
    argv = [sys.executable, "-m", "tests.integration.sidecar.measuring", str(tmp_path / "cache")]
    said = subprocess.run(argv, input=base64.b64encode(pickle.dumps(model)), capture_output=True, timeout=100)

    assert said.returncode == 0, said.stderr
    assert int(said.stdout) < 100 << 20


# Many who ask at once.


def test_a_node_asks_a_place_for_little_at_once(tmp_path: pathlib.Path, site: weather.Store) -> None:
    limits = cache_store.Limits(fetches_of_a_place=2)
    caches = [cache_store.Cache(tmp_path / "cache", limits) for _ in range(3)]
    files = [site.put(f"{number}", bytes([number])) for number in range(24)]
    at_once, most, lock = 0, 0, threading.Lock()
    pair = threading.Barrier(2, timeout=30)

    def counted(handler: weather.Handler, data: bytes) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        pair.wait()
        with lock:
            at_once -= 1
        handler.good(data)

    site.weather = [counted] * len(files)
    threads = [
        threading.Thread(target=run, args=(kept, site.model(*files[number * 8 : number * 8 + 8])))
        for number, kept in enumerate(caches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most <= 2
    assert len(site.asked) == len(files)
