"""Fetches from Google Cloud Storage, as its emulator plays it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterator

import pytest

from sidecar import errors, values
from sidecar.cache import store as cache_store
from sidecar.fetching import fetch, progress, reading
from tests.support import web_stores

from . import weather

SPAN = 1 << 18


@pytest.fixture
def gcs() -> Iterator[web_stores.Gcs]:
    with web_stores.gcs() as store:
        yield store


def put(gcs: web_stores.Gcs, data: bytes) -> values.SourceFile:
    return values.SourceFile(path="1/a b#ü", size_bytes=len(data), version=gcs.put("team/m/1/a b#ü", data))


def model_of(url: str, file: values.SourceFile, token: str = "") -> values.Model:
    access = values.GcsAccess(endpoint_url=url, bearer_token=token)
    return values.Model(name="m", uri="gs://bucket/team/m", files=(file,), source_digest="d", access=access)


def run(directory: pathlib.Path, model: values.Model) -> str:
    kept = cache_store.Cache(directory / "cache")
    [file] = fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes)).learnt
    assert hashlib.sha256(kept.blob(file.sha256).read_bytes()).hexdigest() == file.sha256
    return file.sha256


@pytest.mark.parametrize("size_bytes", [1, SPAN, 5 * SPAN + 7])
def test_an_object_comes_in_stretches_whole(
    gcs: web_stores.Gcs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(reading, "SPAN_BYTES", SPAN)
    data = os.urandom(size_bytes)

    assert run(tmp_path, model_of(gcs.url, put(gcs, data))) == hashlib.sha256(data).hexdigest()


def test_a_missing_object_is_refused(gcs: web_stores.Gcs, tmp_path: pathlib.Path) -> None:
    file = dataclasses.replace(put(gcs, b"x"), path="2/never")
    with pytest.raises(errors.ModelFailed, match="SourceChanged"):
        run(tmp_path, model_of(gcs.url, file))


def test_another_generation_is_refused(tmp_path: pathlib.Path) -> None:
    """The emulator does not tell which one it gives."""
    with weather.running() as site:
        site.files["/download/storage/v1/b/bucket/o/team%2Fm%2Ff?alt=media&generation=7"] = b"weights"
        site.weather = [
            lambda handler, data: handler.answer(
                206, data, {"x-goog-generation": "8", "Content-Range": f"bytes 0-6/{len(data)}"}
            )
        ]
        with pytest.raises(errors.ModelFailed, match="SourceChanged"):
            run(tmp_path, model_of(site.url, values.SourceFile(path="f", size_bytes=7, version="7")))


def test_a_token_that_ran_out_waits_for_another_and_is_never_told(tmp_path: pathlib.Path) -> None:
    """The emulator asks for no token."""
    with weather.running() as site:
        path = "/download/storage/v1/b/bucket/o/team%2Fm%2Ff?alt=media&generation=7"
        site.files[path], site.wanted_authorization = b"weights", "Bearer fresh"
        file = values.SourceFile(path="f", size_bytes=7, version="7")
        with pytest.raises(errors.ModelFailed) as caught:
            run(tmp_path, model_of(site.url, file, "stale-secret"))

        assert (caught.value.failure.reason, caught.value.failure.retryable) == ("CredentialsExpired", True)
        assert "stale-secret" not in str(caught.value)
        with pytest.raises(errors.ModelFailed, match="AccessDenied"):
            run(tmp_path, model_of(site.url, file))
        assert run(tmp_path, model_of(site.url, file, "fresh")) == hashlib.sha256(b"weights").hexdigest()
