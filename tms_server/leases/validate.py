"""Whether what a caller asks for can be meant at all: limits, alphabets and contradictions, without looking anything up.

Raises InvalidField with the dotted path of the field (as in the wire format) and the remedy; Unimplemented for what a
later version may do. Existence of pools, parents and models is for the services to check.
"""

from __future__ import annotations

import datetime as dt

from tms_server.model import lease, pool


def lease_spec(spec: lease.LeaseSpec) -> None:
    """Checks all of a lease's spec."""
    raise NotImplementedError


def pool_spec(spec: pool.PoolSpec) -> None:
    """Checks all of a pool's spec."""
    raise NotImplementedError


def name(path: str, value: str) -> None:
    """Checks a lease name, pool name or namespace: 1 to 63 of [a-z0-9-], first a letter."""
    raise NotImplementedError


def request_id(path: str, value: str) -> None:
    """Checks a request id: 1 to 128 printable characters."""
    raise NotImplementedError


def labels(path: str, values: dict[str, str]) -> None:
    """Checks labels (also those of a filter)."""
    raise NotImplementedError


def span(path: str, value: dt.timedelta) -> None:
    """Checks a span of time of a lease: one second to ten years."""
    raise NotImplementedError
