"""Models in Google Cloud Storage, through its JSON API: gs:// URIs.

The version of a file is its generation (https://cloud.google.com/storage/docs/metadata#generation-number), asked for by
name, so that an object that was replaced is never mixed with the one that is meant.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator

from sidecar import errors, spans, values
from sidecar.sources import http, port

_ENDPOINT = "https://storage.googleapis.com"


class Bucket:
    """What is below the URI's prefix."""

    def __init__(self, uri: str, access: values.GcsAccess) -> None:
        bucket, _slash, prefix = uri.removeprefix("gs://").partition("/")
        if not bucket:
            raise errors.ModelFailed("InvalidUri", "a gs:// URI must be gs://<bucket>/<prefix>")
        self.place = f"gs://{bucket}"
        self._prefix = prefix.strip("/")
        self._objects = f"{access.endpoint_url.rstrip('/') or _ENDPOINT}/download/storage/v1/b/{_quoted(bucket)}/o"
        self._headers = {"Authorization": f"Bearer {access.bearer_token}"} if access.bearer_token else {}
        self._client = http.Client()

    @contextlib.contextmanager
    def open(self, file: values.SourceFile, span: spans.Span) -> Iterator[port.Body]:
        name = f"{self._prefix}/{file.path}" if self._prefix else file.path
        query = {"alt": "media", **({"generation": file.version} if file.version else {})}
        url = f"{self._objects}/{_quoted(name)}?{urllib.parse.urlencode(query)}"
        try:
            with self._client.open(url, self._headers, file, span) as answer:
                generation = answer.headers.get("x-goog-generation", file.version)
                if file.version and generation != file.version:
                    raise port.changed(file)
                yield http.Reading(answer)
        except errors.ModelFailed as error:
            # A token that ran out is answered 401, one without the right 403.
            if error.failure.reason == "AccessDenied" and "(401)" in error.failure.message and self._headers:
                raise port.expired(file) from error
            raise

    def close(self) -> None:
        self._client.close()


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
