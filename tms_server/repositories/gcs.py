"""Models in Google Cloud Storage, through its JSON API. Blocks, for a bounded time.

The version of an object is its generation, which changes with each write.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

from tms_server.model import errors, source
from tms_server.repositories import calls, listing, options

ENDPOINT = "https://storage.googleapis.com"
_PAGE_BYTES = 8 * 2**20
_FIELDS = "items(name,size,generation),nextPageToken"


def look_up(
    caller: calls.Caller, repository: options.GcsRepository, path: str, limits: options.Limits
) -> listing.Listing:
    """Lists the objects below the prefix `path`. Errors as the port names them."""
    place = _Place(caller, repository)
    files = listing.bounded(place.objects(f"{path}/"), limits)
    if not files:
        raise errors.NotFound(f"uri: no objects below gs://{repository.bucket}/{path}/")
    return listing.Listing(f"gs://{repository.bucket}/{path}", files, place.config(path, files))


class _Place:
    """One bucket, asked for one model."""

    def __init__(self, caller: calls.Caller, repository: options.GcsRepository) -> None:
        self._caller, self._repository = caller, repository
        token = repository.token.read()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        bucket = urllib.parse.quote(repository.bucket, safe="")
        self._endpoint = repository.endpoint_url.rstrip("/") or ENDPOINT
        self._objects = f"storage/v1/b/{bucket}/o"

    def objects(self, prefix: str) -> Iterator[source.SourceFile]:
        page = ""
        while True:
            query = {"prefix": prefix, "fields": _FIELDS, **({"pageToken": page} if page else {})}
            said = self._parsed(self._ask(self._objects, query, _PAGE_BYTES).body)
            for each in said.get("items", ()):
                # Consoles make empty objects that stand for directories.
                if not each["name"].endswith("/"):
                    yield source.SourceFile(
                        path=each["name"].removeprefix(prefix),
                        size_bytes=int(each["size"]),
                        version=str(each["generation"]),
                    )
            if not (page := said.get("nextPageToken", "")):
                return

    def config(self, path: str, files: tuple[source.SourceFile, ...]) -> bytes | None:
        for file in files:
            if file.path == listing.CONFIG:
                listing.check_config_size(file.size_bytes)
                name = urllib.parse.quote(f"{path}/{file.path}", safe="")
                query = {"alt": "media", "generation": file.version}
                return self._ask(f"download/{self._objects}/{name}", query, listing.MOST_CONFIG_BYTES).body
        return None

    def _ask(self, path: str, query: dict[str, str], most_bytes: int) -> calls.Answer:
        url = f"{self._endpoint}/{path}?{urllib.parse.urlencode(query)}"
        return self._caller.ask("GET", url, self._headers, self._repository.name, most_bytes)

    def _parsed(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as failure:
            raise errors.Unavailable(f"repository {self._repository.name!r} answers with no JSON") from failure
