"""Picks addresses that this host can really give: routed, and with nobody listening there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection

from tms_server.fleet import addresses
from tms_server.model import errors, ids, resources

_TRIES = 64
"""Busy places to step over in each of the two ranges; more means that something else owns the range."""

Choose = Callable[[ids.InstallationId, Collection[resources.Endpoint]], resources.Endpoint]


def publish(owner: str, installation: ids.InstallationId, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
    """An address of its own where the host routes it, else own ports; ResourceExhausted when none can be had."""
    for choose in (addresses.host_endpoint, addresses.port_endpoint):
        if found := _free(choose, installation, taken):
            return found
    raise errors.ResourceExhausted(
        f"no address is free for {owner} on this host; end some leases, or stop what else listens on its addresses"
    )


def _free(
    choose: Choose, installation: ids.InstallationId, taken: Collection[resources.Endpoint]
) -> resources.Endpoint | None:
    busy = set(taken)
    for _ in range(_TRIES):
        try:
            candidate = choose(installation, busy)
        except errors.ResourceExhausted:
            return None
        found = [_bind(candidate.host, port) for port in _ports(candidate)]
        if not any(found):
            return candidate
        if errno.EADDRNOTAVAIL in found:
            return None
        busy.add(candidate)
    return None


def _bind(host: str, port: int) -> int:
    """0 if one could listen there, else the error's number."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections of the past that still linger do not make a port busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as failure:
            return failure.errno or errno.EIO
    return 0


def _ports(endpoint: resources.Endpoint) -> tuple[int, int, int]:
    return endpoint.http_port, endpoint.grpc_port, endpoint.metrics_port
