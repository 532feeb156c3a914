"""Local ports that lead to a lease: what becomes of them when they cannot be kept."""

from __future__ import annotations

import socket

import pytest

from tmsctl import client, config, errors, tunnel


def plan(**ports: int) -> tunnel.Plan:
    return tunnel.Plan(lease="digits", namespace="", address="127.0.0.1", ports=ports, note=lambda _: None)


def test_a_listener_that_breaks_ends_the_wait() -> None:
    with client.Client(config.Target("127.0.0.1:1"), timeout_s=1) as over:
        opened = tunnel.Tunnels(over, plan(http=0, grpc=0))
        try:
            opened._listeners["grpc"].shutdown(socket.SHUT_RDWR)
            with pytest.raises(errors.CliError, match="accepted no more"):
                opened.wait()
        finally:
            opened.close()


def test_a_port_that_is_taken_is_named_and_the_others_are_let_go() -> None:
    with client.Client(config.Target("127.0.0.1:1"), timeout_s=1) as over, socket.create_server(("127.0.0.1", 0)) as it:
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        with pytest.raises(errors.CliError, match="cannot listen") as refused:
            tunnel.Tunnels(over, plan(http=number, grpc=it.getsockname()[1]))
        assert refused.value.field == "--grpc"
        socket.create_server(("127.0.0.1", number)).close()
