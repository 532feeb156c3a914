"""How tmsctl connects: TLS in both directions, patience while a server restarts. The servers here know no calls at all."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import trustme

from tmsctl import errors

ALWAYS_ANSWERED = errors.Exit.UNIMPLEMENTED


@contextlib.asynccontextmanager
async def serving(credentials: grpc.ServerCredentials | None = None, port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server()
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def credentials_of(authority: trustme.CA, *, mutual: bool) -> grpc.ServerCredentials:
    own = authority.issue_cert("127.0.0.1")
    pair = (own.private_key_pem.bytes(), b"".join(blob.bytes() for blob in own.cert_chain_pems))
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes() if mutual else None, mutual)


def written(folder: pathlib.Path, authority: trustme.CA) -> dict[str, str]:
    own = authority.issue_cert("client.example")
    files = {"ca": authority.cert_pem, "key": own.private_key_pem, "cert": own.cert_chain_pems[0]}
    for name, blob in files.items():
        blob.write_to_path(folder / f"{name}.pem")
    return {name: str(folder / f"{name}.pem") for name in files}


async def test_tls_is_spoken_to_a_target_with_an_authority(
    stray: Any, tmp_path: pathlib.Path, authority: trustme.CA
) -> None:
    files = written(tmp_path, authority)
    async with serving(credentials_of(authority, mutual=False)) as address:
        assert (await stray("target", "add", "safe", address, "--ca", files["ca"])).code == 0
        assert (await stray("lease", "list", "--target", "safe")).code == ALWAYS_ANSWERED
        plain = await stray("lease", "list", "--target", address, "--timeout", "500ms")
        assert plain.code == errors.Exit.UNAVAILABLE


async def test_a_server_of_another_authority_is_not_trusted(
    stray: Any, tmp_path: pathlib.Path, authority: trustme.CA
) -> None:
    files = written(tmp_path, trustme.CA())
    async with serving(credentials_of(authority, mutual=False)) as address:
        await stray("target", "add", "wrong", address, "--ca", files["ca"])
        done = await stray("lease", "list")
        assert done.code == errors.Exit.DENIED
        assert "cannot be trusted" in done.err
        assert "ssl_transport_security" not in done.err


async def test_the_clients_certificate_is_shown(stray: Any, tmp_path: pathlib.Path, authority: trustme.CA) -> None:
    files = written(tmp_path, authority)
    async with serving(credentials_of(authority, mutual=True)) as address:
        await stray("target", "add", "nobody", address, "--ca", files["ca"])
        assert (await stray("lease", "list", "--timeout", "500ms")).code == errors.Exit.UNAVAILABLE
        both = ("--cert", files["cert"], "--key", files["key"])
        await stray("target", "add", "me", address, "--ca", files["ca"], *both, "--use")
        assert (await stray("lease", "list")).code == ALWAYS_ANSWERED


async def test_a_key_that_has_gone_is_named(stray: Any, tmp_path: pathlib.Path, authority: trustme.CA) -> None:
    files = written(tmp_path, authority)
    await stray("target", "add", "me", "127.0.0.1:1", "--ca", files["ca"])
    forget(files["ca"])
    done = await stray("lease", "list")
    assert done.code == errors.Exit.USAGE
    assert done.err.startswith(f"error: ca: cannot read {files['ca']}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["lease", "get", "l-1"],
        ["lease", "create", "--model", "a=model://r/a"],
        ["lease", "release", "l-1"],
        ["lease", "watch", "l-1"],
    ],
)
async def test_a_call_that_may_be_repeated_outlives_a_restart(stray: Any, arguments: list[str]) -> None:
    port = free_port()
    process = await stray.start(*arguments, "--target", f"127.0.0.1:{port}", "--timeout", "50s")
    async with asyncio.timeout(60):
        assert b"trying again" in await process.stderr.readline()
        async with serving(port=port):
            assert await process.wait() == ALWAYS_ANSWERED


@pytest.mark.parametrize("arguments", [["pool", "delete", "p"], ["lease", "name", "delete", "n"]])
async def test_a_call_that_may_not_be_repeated_is_not(stray: Any, arguments: list[str]) -> None:
    done = await stray(*arguments, "--target", f"127.0.0.1:{free_port()}")
    assert done.code == errors.Exit.UNAVAILABLE
    assert "trying again" not in done.err


def forget(file: str) -> None:
    pathlib.Path(file).unlink()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
