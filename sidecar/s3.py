"""Reads an s3:// source in parallel ranges into a partial file of the cache.

Decides which answers are worth another try. Finished ranges are kept in a journal, so that a cut costs only the ranges
under way; every answer is checked to be of the version that is meant. Must never put a credential or an address of the
store into a message, and must never try for ever.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import boto3
import botocore
import botocore.config
import botocore.exceptions
import tenacity
import urllib3.exceptions
from tenacity import nap

from sidecar import cache, errors, values

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RANGE_BYTES = 8 << 20
_PARALLEL = 8
_PIECE_BYTES = 1 << 20
_TRIES = 5
_ETAG = re.compile(r"[0-9a-fA-F]{32}(-[0-9]+)?")
_PASSING = {"SlowDown", "Throttling", "RequestTimeout", "ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired"}
_CUT = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


class Fetcher:
    """Fetches one object into one file."""

    def __init__(self, uri: str, file: values.SourceFile, access: values.S3Access, stop: threading.Event) -> None:
        self._bucket, self._key = location(uri, file.path)
        self._file = file
        try:
            self._client = _client(access)
        except (ValueError, botocore.exceptions.BotoCoreError) as error:
            raise errors.ModelFailed("InvalidAccess", "the access to the store is not usable") from error
        self._stop = stop
        self._journal_lock = threading.Lock()

    def read(self, partial: pathlib.Path, progress: Callable[[int], None]) -> None:
        """Fills `partial`, going on where an earlier fetch was cut. Raises ModelFailed or Stopped."""
        try:
            with cache.room(self._file.size_bytes):
                self._read(partial, progress)
        finally:
            self._client.close()

    def _read(self, partial: pathlib.Path, progress: Callable[[int], None]) -> None:
        journal = partial.with_name(f"{partial.name}.{_boot_id()}")
        done = _done(journal) if partial.exists() and partial.stat().st_size == self._file.size_bytes else set()
        progress(sum(length for start, length in self._ranges() if start in done))
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not done:
                journal.unlink(missing_ok=True)
                os.truncate(descriptor, 0)
                cache.reserve(descriptor, self._file.size_bytes)
            with journal.open("a", encoding="ascii") as log:
                self._fill(descriptor, done, lambda start, length: self._note(log, start, length, progress))
        finally:
            os.close(descriptor)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        size = self._file.size_bytes
        # An empty object has one empty range, so that its version is checked as well.
        return ((start, min(RANGE_BYTES, size - start)) for start in range(0, max(size, 1), RANGE_BYTES))

    def _fill(self, descriptor: int, done: set[int], note: Callable[[int, int], None]) -> None:
        """All missing ranges; the first failure calls the others off."""
        failed = threading.Event()

        def one(start: int, length: int) -> None:
            try:
                if not failed.is_set():
                    self._range(descriptor, start, length)
                    note(start, length)
            except BaseException:
                failed.set()
                raise

        with concurrent.futures.ThreadPoolExecutor(_PARALLEL, "s3-range") as pool:
            ranges = [pool.submit(one, start, length) for start, length in self._ranges() if start not in done]
            for finished in concurrent.futures.as_completed(ranges):
                finished.result()

    def _note(self, log: Any, start: int, length: int, progress: Callable[[int], None]) -> None:
        with self._journal_lock:
            log.write(f"{start}\n")
            log.flush()
        progress(length)

    def _range(self, descriptor: int, start: int, length: int) -> None:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_when_event_set(self._stop),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=3),
            retry=tenacity.retry_if_exception(lambda error: _failure(error, self._file).failure.retryable),
            sleep=nap.sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            retrying(self._get, descriptor, start, length)
        except Exception as error:
            if self._stop.is_set():
                raise errors.Stopped from error
            if isinstance(error, OSError) and not isinstance(error, _CUT):
                raise
            raise _failure(error, self._file) from error

    def _get(self, descriptor: int, start: int, length: int) -> None:
        if self._stop.is_set():
            raise errors.Stopped
        answer = self._client.get_object(**self._request(start, length))
        with answer["Body"] as body:
            self._check(answer, start, length)
            _pour(body, descriptor, start, length, self._stop)

    def _request(self, start: int, length: int) -> dict[str, Any]:
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key}
        if length:
            request["Range"] = f"bytes={start}-{start + length - 1}"
        version = self._file.version.strip('"')
        if _ETAG.fullmatch(version):
            request["IfMatch"] = f'"{version}"'
        elif version:
            request["VersionId"] = version
        return request

    def _check(self, answer: Any, start: int, length: int) -> None:
        """Some stores ignore conditions, so what came is looked at."""
        version = self._file.version.strip('"')
        if version and version not in {answer.get("ETag", "").strip('"'), answer.get("VersionId", "")}:
            raise _changed(self._file)
        whole = f"bytes {start}-{start + length - 1}/{self._file.size_bytes}"
        ranged = answer.get("ContentRange", "")
        if ranged and ranged != whole:
            raise _changed(self._file)
        if not ranged and not length == self._file.size_bytes == answer.get("ContentLength"):
            raise _changed(self._file)


def location(uri: str, path: str) -> tuple[str, str]:
    """Bucket and key of a file below an s3:// URI."""
    # Characters that URLs give a meaning are plain letters of a key.
    bucket, _slash, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise errors.ModelFailed("InvalidUri", "an s3:// URI must be s3://<bucket>/<prefix>")
    return bucket, f"{prefix.strip('/')}/{path}" if prefix.strip("/") else path


def _client(access: values.S3Access) -> S3Client:
    config = botocore.config.Config(
        signature_version=None if access.access_key_id else botocore.UNSIGNED,
        connect_timeout=5,
        read_timeout=10,
        max_pool_connections=_PARALLEL,
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if access.path_style else "auto"},
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg] # the stubs lack it
    )
    # Always given keys, used or not, so that none meant for somebody else are searched for in this environment.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=access.endpoint_url or None,
        region_name=access.region or None,
        aws_access_key_id=access.access_key_id or "anonymous",
        aws_secret_access_key=access.secret_access_key or "anonymous",
        aws_session_token=access.session_token or None,
        config=config,
    )


def _pour(body: Any, descriptor: int, start: int, length: int, stop: threading.Event) -> None:
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(length, 1))))
    at, end = start, start + length
    while at < end:
        if stop.is_set():
            raise errors.Stopped
        got = body.readinto(buffer[: min(len(buffer), end - at)])
        if not got:
            raise ConnectionError("the store ended the answer early")
        _write(descriptor, buffer[:got], at)
        at += got


def _write(descriptor: int, piece: memoryview, at: int) -> None:
    while piece:
        written = os.pwrite(descriptor, piece, at)
        piece, at = piece[written:], at + written


def _failure(error: BaseException, file: values.SourceFile) -> errors.ModelFailed:
    """What an error of the store means. Its own text may name addresses, so only its kind is told."""
    if isinstance(error, errors.ModelFailed):
        return error
    if isinstance(error, botocore.exceptions.ClientError):
        return _refusal(error, file)
    if isinstance(error, _CUT):
        return errors.ModelFailed(
            "StoreUnavailable", f"the store did not answer for {file.path!r} ({type(error).__name__})", retryable=True
        )
    return errors.ModelFailed("FetchFailed", f"{file.path!r} could not be read ({type(error).__name__})")


def _refusal(error: botocore.exceptions.ClientError, file: values.SourceFile) -> errors.ModelFailed:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = error.response.get("Error", {}).get("Code", "")
    if status >= 500 or status == 429 or code in _PASSING:
        return errors.ModelFailed("StoreUnavailable", f"the store answered {status} for {file.path!r}", retryable=True)
    if status in {404, 412, 416}:
        return _changed(file)
    if status in {401, 403}:
        return errors.ModelFailed("AccessDenied", f"the store refused to give {file.path!r} ({status})")
    return errors.ModelFailed("FetchFailed", f"the store answered {status} for {file.path!r}")


def _changed(file: values.SourceFile) -> errors.ModelFailed:
    return errors.ModelFailed("SourceChanged", f"{file.path!r} changed since the lease was resolved")


def _done(journal: pathlib.Path) -> set[int]:
    """Starts of the ranges that were finished. A last line that was cut is no number of a range."""
    try:
        lines = journal.read_text(encoding="ascii").splitlines(keepends=True)
    except FileNotFoundError:
        return set()
    return {int(line) for line in lines if line.endswith("\n") and line.strip().isdigit()}


def _boot_id() -> str:
    """Written pages survive a crash of this process but not of the machine: a journal counts within one boot."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
