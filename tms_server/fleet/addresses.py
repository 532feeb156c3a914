"""Which address a worker or an endpoint gets on the local machine.

Chooses among addresses not taken, always the same for the same input. Whether a port is really free is for the caller to
find out: it adds what it found busy to `taken` and asks again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from tms_server.model import errors, ids, resources

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
NETWORK = (127 << 24) | (64 << 16)
HOST_BITS = 22
PORTS_EACH = 3
LOOPBACK = "127.0.0.1"
FIRST_PORT, LAST_PORT = 20_000, 29_999


def host_endpoint(installation: ids.InstallationId, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
    """An address of its own in 127.64.0.0/10 with the standard ports.

    The search begins at a place derived from the installation, so that several on one machine keep apart.
    ResourceExhausted when every address is taken.
    """
    hosts = {each.host for each in taken}
    start = _offset(installation, 1 << HOST_BITS)
    for step in range(1 << HOST_BITS):
        number = (start + step) % (1 << HOST_BITS)
        if number & 0xFF not in (0, 255) and (host := _dotted(NETWORK | number)) not in hosts:
            return resources.Endpoint(host, HTTP_PORT, GRPC_PORT, METRICS_PORT)
    raise errors.ResourceExhausted("no address is left in 127.64.0.0/10; end some leases")


def port_endpoint(
    installation: ids.InstallationId,
    taken: Collection[resources.Endpoint],
    first: int = FIRST_PORT,
    last: int = LAST_PORT,
) -> resources.Endpoint:
    """Three ports of its own on 127.0.0.1 out of `first` to `last`, for hosts that route no other loopback address.

    ResourceExhausted when no three are left.
    """
    busy = {port for each in taken if each.host == LOOPBACK for port in _ports(each)}
    slots = (last - first + 1) // PORTS_EACH
    start = _offset(installation, max(slots, 1))
    for step in range(slots):
        port = first + PORTS_EACH * ((start + step) % slots)
        if busy.isdisjoint(range(port, port + PORTS_EACH)):
            return resources.Endpoint(LOOPBACK, port, port + 1, port + 2)
    raise errors.ResourceExhausted(f"no three ports are left between {first} and {last}; widen the range or end leases")


def _offset(installation: ids.InstallationId, bound: int) -> int:
    return int.from_bytes(hashlib.sha256(installation.encode()).digest()[:8], "big") % bound


def _dotted(number: int) -> str:
    return ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))


def _ports(endpoint: resources.Endpoint) -> tuple[int, int, int]:
    return endpoint.http_port, endpoint.grpc_port, endpoint.metrics_port
