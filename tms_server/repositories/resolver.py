"""Looks models up in the declared repositories, off the event loop and for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent import futures

from tms_server.model import errors, lease, source
from tms_server.ports import resolver
from tms_server.repositories import files, frameworks, listing, options, s3, sharing, uris


class RepositoryResolver:
    """The port's resolver over file systems and S3.

    A repository that hangs holds one of a few threads until its own timeout; others wait for no longer than the bound.
    """

    def __init__(self, repositories: Iterable[options.Repository], limits: options.Limits | None = None) -> None:
        self._repositories = tuple(repositories)
        self._limits = limits or options.Limits()
        self._clients = s3.Clients(self._limits)
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

    def access(self, uri: str) -> resolver.S3Access | None:
        """Beside the port: Unavailable when the credentials cannot be read now."""
        if not uri.startswith("s3://"):
            return None
        repository = uris.locate(uri, self._repositories).repository
        if not isinstance(repository, options.S3Repository):
            return None
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
        if isinstance(target.repository, options.FileRepository):
            return files.look_up(target.repository, target.path, self._limits)
        return s3.look_up(self._clients, target.repository, target.path, self._limits)
