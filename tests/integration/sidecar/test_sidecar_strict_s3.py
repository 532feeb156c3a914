"""Fetches from an S3 server that checks signatures, sends whole objects' checksums with ranges, and ignores If-Match: rclone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sidecar import errors, values
from sidecar.cache import store as cache_store
from sidecar.fetching import fetch, progress, reading

pytestmark = pytest.mark.slow  # a server of another make starts and answers

SPAN = 1 << 18
KEY, SECRET = "a-key-id-for-tests", "a-secret-for-tests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("rclone")
    (made / "models" / "m").mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def url(folder: pathlib.Path) -> Iterator[str]:
    """The folder's directories are buckets."""
    program = pathlib.Path(sys.executable).with_name("rclone")
    argv = [
        str(program),
        "serve",
        "s3",
        "--addr=127.0.0.1:0",
        f"--auth-key={KEY},{SECRET}",
        "--dir-cache-time=0",
        str(folder),
    ]
    environment = {**os.environ, "RCLONE_CONFIG": "/dev/null", "XDG_CACHE_HOME": str(folder.with_name("rclone-cache"))}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        found = next(match for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        yield found[0]
        server.kill()


def put(folder: pathlib.Path, path: str, data: bytes) -> values.SourceFile:
    (folder / "models" / "m" / path).write_bytes(data)
    return values.SourceFile(path=path, size_bytes=len(data), version=f'"{hashlib.md5(data).hexdigest()}"')


def model_of(url: str, *files: values.SourceFile, secret: str = SECRET) -> values.Model:
    access = values.S3Access(
        endpoint_url=url, path_style=True, region="us-east-1", access_key_id=KEY, secret_access_key=secret
    )
    return values.Model(name="m", uri="s3://models/m", files=files, source_digest="d", access=access)


def run(directory: pathlib.Path, model: values.Model) -> list[str]:
    kept = cache_store.Cache(directory / "cache")
    found = fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes))
    return [file.sha256 for file in found.learnt]


@pytest.mark.parametrize("size_bytes", [0, 1, 5 * SPAN + 7])
def test_signed_stretches_make_the_object(
    url: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(reading, "SPAN_BYTES", SPAN)
    data = os.urandom(size_bytes)

    assert run(tmp_path, model_of(url, put(folder, f"f{size_bytes}", data))) == [hashlib.sha256(data).hexdigest()]


def test_a_wrong_secret_is_refused_and_never_told(url: str, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ModelFailed) as caught:
        run(tmp_path, model_of(url, put(folder, "f", b"x"), secret="another-secret"))

    assert (caught.value.failure.reason, caught.value.failure.retryable) == ("AccessDenied", False)
    assert "another-secret" not in str(caught.value)


def test_a_change_is_noticed_although_the_condition_is_ignored(
    url: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = put(folder, "changed", b"first")
    put(folder, "changed", b"other")
    with pytest.raises(errors.ModelFailed, match="SourceChanged"):
        run(tmp_path, model_of(url, file))
    with pytest.raises(errors.ModelFailed, match="SourceChanged"):
        run(tmp_path, model_of(url, dataclasses.replace(file, path="never")))
