"""Models in S3 and what speaks like it: s3:// URIs.

Decides what the store's refusals mean. Every answer is checked to be of the version that is meant, for some stores
ignore conditions. Must never try again itself, and must never put a credential into a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import botocore
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from sidecar import errors, spans, values
from sidecar.sources import port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECTIONS = 16
_ETAG = re.compile(r"[0-9a-fA-F]{32}(-[0-9]+)?")
_PASSING = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed", "InternalError"}
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestExpired"}
_CUT = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
# Sessions are not safe in several threads at once, unlike the clients they make.
_MAKING = threading.Lock()


class Bucket:
    """What is below the URI's prefix."""

    def __init__(self, uri: str, access: values.S3Access) -> None:
        self._bucket, self._prefix = location(uri)
        self.place = f"s3://{access.endpoint_url}/{self._bucket}"
        try:
            with _MAKING:
                self._client = _client(access)
        except (ValueError, botocore.exceptions.BotoCoreError) as error:
            raise errors.ModelFailed("InvalidAccess", "the access to the store is not usable") from error

    @contextlib.contextmanager
    def open(self, file: values.SourceFile, span: spans.Span) -> Iterator[port.Body]:
        try:
            answer = self._client.get_object(**self._request(file, span))
            with answer["Body"] as body:
                _check(answer, file, span)
                yield _Reading(body)
        except botocore.exceptions.ClientError as error:
            raise _refusal(error, file) from error
        except _CUT as error:
            raise port.unavailable(file, f"the store did not answer ({type(error).__name__})") from error
        except botocore.exceptions.BotoCoreError as error:
            raise errors.ModelFailed(
                "FetchFailed", f"{file.path!r} could not be read ({type(error).__name__})"
            ) from error

    def close(self) -> None:
        self._client.close()

    def _request(self, file: values.SourceFile, span: spans.Span) -> dict[str, Any]:
        key = f"{self._prefix}/{file.path}" if self._prefix else file.path
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if span.size_bytes:
            request["Range"] = f"bytes={span.start}-{span.end - 1}"
        version = file.version.strip('"')
        if _ETAG.fullmatch(version):
            request["IfMatch"] = f'"{version}"'
        elif version:
            request["VersionId"] = version
        return request


@dataclasses.dataclass(frozen=True, slots=True)
class _Reading:
    """The body of an answer; its own types say less than it can."""

    _body: Any

    def readinto(self, buffer: memoryview, /) -> int:
        return int(self._body.readinto(buffer))


def location(uri: str) -> tuple[str, str]:
    """Bucket and prefix of an s3:// URI. Characters that URLs give a meaning are plain letters of a key."""
    bucket, _slash, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise errors.ModelFailed("InvalidUri", "an s3:// URI must be s3://<bucket>/<prefix>")
    return bucket, prefix.strip("/")


def _client(access: values.S3Access) -> S3Client:
    config = botocore.config.Config(
        signature_version=None if access.access_key_id else botocore.UNSIGNED,
        connect_timeout=port.CONNECT_S,
        read_timeout=port.READ_S,
        max_pool_connections=_CONNECTIONS,
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


def _check(answer: Any, file: values.SourceFile, span: spans.Span) -> None:
    version = file.version.strip('"')
    if version and version not in {answer.get("ETag", "").strip('"'), answer.get("VersionId", "")}:
        raise port.changed(file)
    port.check_range(file, span, answer.get("ContentRange", ""), answer.get("ContentLength"))


def _refusal(error: botocore.exceptions.ClientError, file: values.SourceFile) -> errors.ModelFailed:
    answered = error.response.get("ResponseMetadata", {})
    code = error.response.get("Error", {}).get("Code", "")
    after_s = port.retry_after_s(answered.get("HTTPHeaders", {}).get("retry-after", ""))
    if code in _EXPIRED:
        return port.expired(file)
    if code in _PASSING:
        return port.unavailable(file, f"the store answered {code}", after_s)
    return port.refused(file, answered.get("HTTPStatusCode", 0), after_s)
