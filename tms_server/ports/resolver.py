"""The resolver: from a model URI to the exact files it means."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from tms_server.model import lease, source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """How a sidecar reaches an S3 source. The secret never enters a store, a log or an error."""

    endpoint_url: str
    region: str
    path_style: bool
    access_key_id: str = ""
    secret_access_key: str = dataclasses.field(default="", repr=False)
    session_token: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpAccess:
    """The same of an HTTP source; an empty Authorization header is none."""

    authorization: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GcsAccess:
    """The same of a Google Cloud Storage source; without a token as anybody may."""

    endpoint_url: str = ""
    bearer_token: str = dataclasses.field(default="", repr=False)


Access = S3Access | HttpAccess | GcsAccess


class Resolver(Protocol):
    """Looks models up in their repositories."""

    async def resolve(self, reference: lease.ModelReference) -> source.ModelSource:
        """Lists the model's files and detects its framework.

        NotFound: no such repository or model. PermissionDenied: no access. InvalidField (``uri``): not a URI this server
        reads, or outside the declared repositories. Unimplemented: a scheme of a later version. Unavailable: no answer.
        """
        ...

    def access(self, uri: str) -> Access | None:
        """Material for the sidecar to read a concrete URI; None where it needs none."""
        ...
