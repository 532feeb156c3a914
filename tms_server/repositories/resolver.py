"""Looks models up in the declared repositories, off the event loop and for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent import futures

from tms_server.model import errors, lease, source
from tms_server.ports import resolver
from tms_server.repositories import calls, files, frameworks, gcs, listing, options, s3, sharing, uris, web


class RepositoryResolver:
    """The port's resolver over file systems, S3, Google Cloud Storage and web servers.

    A repository that hangs holds one of a few threads until its own timeout; others wait for no longer than the bound.
    """

    def __init__(self, repositories: Iterable[options.Repository], limits: options.Limits | None = None) -> None:
        self._repositories = tuple(repositories)
        self._limits = limits or options.Limits()
        self._clients = s3.Clients(self._limits)
        self._caller = calls.Caller(self._limits)
        self._threads = futures.ThreadPoolExecutor(self._limits.lookups_at_once, thread_name_prefix="lookup")
        self._shared = sharing.Shared(self._look_up)
        names = [each.name for each in self._repositories]
        if len(set(names)) != len(names):
            raise ValueError("repositories: a name is declared twice")

    async def resolve(self, reference: lease.ModelReference) -> source.ModelSource:
        target = uris.locate(reference.uri, self._repositories)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                found, detected = await self._shared.of(target)
        except TimeoutError:
            name = target.repository.name
            raise errors.Unavailable(f"repository {name!r} gave no answer in {self._limits.timeout_s:g} s") from None
        return source.ModelSource(uri=found.uri, framework=frameworks.decide(reference, detected), files=found.files)

    def access(self, uri: str) -> resolver.Access | None:
        """Beside the port: Unavailable when the credentials cannot be read now."""
        if uri.startswith("file://"):
            return None
        match uris.locate(uri, self._repositories).repository:
            case options.S3Repository() as bucket:
                return self._s3_access(bucket)
            case options.HttpRepository() as site:
                return resolver.HttpAccess(authorization=site.authorization.read())
            case options.GcsRepository() as bucket:
                return resolver.GcsAccess(endpoint_url=bucket.endpoint_url, bearer_token=bucket.token.read())
        return None

    def _s3_access(self, repository: options.S3Repository) -> resolver.S3Access:
        keys = repository.credentials.read()
        return resolver.S3Access(
            endpoint_url=repository.endpoint_url,
            region=repository.region,
            path_style=repository.path_style,
            access_key_id=keys.access_key_id,
            secret_access_key=keys.secret_access_key,
            session_token=keys.session_token,
        )

    def close(self) -> None:
        """Takes no more work; lookups under way end by their own timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, target: uris.Target) -> tuple[listing.Listing, source.Framework | None]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, target)

    def _read(self, target: uris.Target) -> tuple[listing.Listing, source.Framework | None]:
        found = self._list(target)
        return found, frameworks.detect(found)

    def _list(self, target: uris.Target) -> listing.Listing:
        match target.repository:
            case options.FileRepository() as repository:
                return files.look_up(repository, target.path, self._limits)
            case options.S3Repository() as repository:
                return s3.look_up(self._clients, repository, target.path, self._limits)
            case options.HttpRepository() as repository:
                return web.look_up(self._caller, repository, target.path, self._limits)
            case options.GcsRepository() as repository:
                return gcs.look_up(self._caller, repository, target.path, self._limits)
