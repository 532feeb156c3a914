"""Models in S3 and what speaks like it. Blocks, for a bounded time; errors never carry a secret."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import botocore
from botocore import config as botocore_config
from botocore import exceptions

from tms_server.model import errors, source
from tms_server.repositories import listing, options

if TYPE_CHECKING:
    from mypy_boto3_s3 import client as s3_client

_MISSING = frozenset({"NoSuchBucket", "NoSuchKey", "404"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "401",
        "403",
    }
)

# Sessions are not safe in several threads at once, unlike the clients they make.
_MAKING = threading.Lock()


class Clients:
    """One client for each repository, made anew when its keys change. Safe in any thread."""

    def __init__(self, limits: options.Limits) -> None:
        self._limits = limits
        self._made: dict[str, tuple[options.Keys, s3_client.S3Client]] = {}

    def get(self, repository: options.S3Repository) -> s3_client.S3Client:
        """Unavailable when the credentials cannot be read."""
        keys = repository.credentials.read()
        with _MAKING:
            known = self._made.get(repository.name)
            if known is not None and known[0] == keys:
                return known[1]
            made = _client(repository, keys, self._limits)
            self._made[repository.name] = (keys, made)
            return made


def look_up(clients: Clients, repository: options.S3Repository, path: str, limits: options.Limits) -> listing.Listing:
    """Lists the objects below the key prefix `path`. Errors as the port names them."""
    try:
        client = clients.get(repository)
        files = listing.bounded(_objects(client, repository.bucket, f"{path}/"), limits)
        if not files:
            raise errors.NotFound(f"uri: no objects below s3://{repository.bucket}/{path}/")
        return listing.Listing(
            f"s3://{repository.bucket}/{path}", files, _config(client, repository.bucket, path, files)
        )
    except exceptions.ClientError as failure:
        raise _translate(failure, repository) from failure
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as failure:
        raise errors.Unavailable(
            f"repository {repository.name!r} does not answer: {type(failure).__name__}"
        ) from failure


def _client(repository: options.S3Repository, keys: options.Keys, limits: options.Limits) -> s3_client.S3Client:
    signed = bool(keys.access_key_id)
    config = botocore_config.Config(
        signature_version=None if signed else botocore.UNSIGNED,
        connect_timeout=limits.connect_timeout_s,
        read_timeout=limits.read_timeout_s,
        retries={"total_max_attempts": 2, "mode": "standard"},
        s3={"addressing_style": "path" if repository.path_style else "auto"},
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg] # the stubs lack it
    )
    # Always given keys, used or not, so that none meant for somebody else are searched for in this environment.
    return _session().client(
        "s3",
        aws_access_key_id=keys.access_key_id or "anonymous",
        aws_secret_access_key=keys.secret_access_key or "anonymous",
        aws_session_token=keys.session_token or None,
        region_name=repository.region,
        endpoint_url=repository.endpoint_url or None,
        config=config,
    )


@functools.cache
def _session() -> boto3.Session:
    """One for all, as it holds the parsed description of the service."""
    return boto3.Session()


def _objects(client: s3_client.S3Client, bucket: str, prefix: str) -> Iterator[source.SourceFile]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            # Consoles make empty objects that stand for directories.
            if not found["Key"].endswith("/"):
                yield source.SourceFile(
                    path=found["Key"].removeprefix(prefix), size_bytes=found["Size"], version=found["ETag"].strip('"')
                )


def _config(client: s3_client.S3Client, bucket: str, path: str, files: tuple[source.SourceFile, ...]) -> bytes | None:
    for file in files:
        if file.path == listing.CONFIG:
            listing.check_config_size(file.size_bytes)
            # The text must be that of the listed version.
            answer = client.get_object(Bucket=bucket, Key=f"{path}/{file.path}", IfMatch=f'"{file.version}"')
            return answer["Body"].read(listing.MOST_CONFIG_BYTES)
    return None


def _translate(failure: exceptions.ClientError, repository: options.S3Repository) -> errors.TmsError:
    code = str(failure.response.get("Error", {}).get("Code", "unknown"))
    if code in _MISSING:
        return errors.NotFound(f"uri: repository {repository.name!r} has no bucket {repository.bucket!r} ({code})")
    if code in _DENIED:
        return errors.PermissionDenied(f"uri: repository {repository.name!r} gives the server no access ({code})")
    return errors.Unavailable(f"repository {repository.name!r} answers with an error ({code})")
