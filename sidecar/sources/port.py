"""What every store can do: give a stretch of a file's bytes, of the version that is meant.

Decides how the troubles that all stores share are told: what passes, what does not. Must never let a credential, an
address of a store or a store's own words into a message.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from sidecar import errors, spans, values

CONNECT_S, READ_S = 5.0, 10.0
"""How long a store may take to be reached, and to send the next byte."""


class Body(Protocol):
    """Bytes on their way."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills the beginning of the buffer; 0 at the end. May raise whatever its library does."""
        ...


class Source(Protocol):
    """A model in its store. Safe in threads."""

    place: str
    """Whom its reads burden: a bucket, a host, a directory."""

    def open(self, file: values.SourceFile, span: spans.Span) -> contextlib.AbstractContextManager[Body]:
        """These bytes of the file. Raises ModelFailed, also in place of what reading raises, or Unranged."""
        ...

    def close(self) -> None: ...


class Unranged(Exception):
    """The store gives this file only whole."""


def unavailable(file: values.SourceFile, why: str, retry_after_s: float = 0.0) -> errors.ModelFailed:
    """Passes by itself."""
    return errors.ModelFailed(
        "StoreUnavailable", f"{why} for {file.path!r}", retryable=True, retry_after_s=retry_after_s
    )


def changed(file: values.SourceFile) -> errors.ModelFailed:
    return errors.ModelFailed("SourceChanged", f"{file.path!r} changed since the lease was resolved")


def refused(file: values.SourceFile, status: int, retry_after_s: float = 0.0) -> errors.ModelFailed:
    """What an HTTP status means, of RFC 9110 section 15 and RFC 6585 section 4."""
    if status >= 500 or status in {408, 425, 429}:
        return unavailable(file, f"the store answered {status}", retry_after_s)
    if status in {404, 410, 412, 416}:
        return changed(file)
    if status in {401, 403}:
        return errors.ModelFailed("AccessDenied", f"the store refused to give {file.path!r} ({status})")
    return errors.ModelFailed("FetchFailed", f"the store answered {status} for {file.path!r}")


def expired(file: values.SourceFile) -> errors.ModelFailed:
    """The server sends new credentials; what came until then is kept."""
    return errors.ModelFailed(
        "CredentialsExpired",
        f"the credentials for {file.path!r} are not valid any more; new ones are waited for",
        retryable=True,
    )


def check_range(file: values.SourceFile, span: spans.Span, content_range: str, length: int | None) -> None:
    """Whether an answer holds the span (RFC 9110 section 14.4). Raises ModelFailed, or Unranged for a whole file."""
    if content_range:
        if content_range != f"bytes {span.start}-{span.end - 1}/{file.size_bytes}":
            raise changed(file)
    elif length is not None and length != file.size_bytes:
        raise changed(file)
    elif span != spans.Span(0, file.size_bytes):
        raise Unranged


def retry_after_s(said: str) -> float:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3). Its other form, a date, is as good as silence."""
    return min(float(said), 86400.0) if said.isascii() and said.isdigit() else 0.0
