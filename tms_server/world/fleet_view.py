"""The whole fleet as stored, read in one go, for those who decide about all of it."""

from __future__ import annotations

from collections.abc import Callable

from tms_server.model import lease, resources
from tms_server.placement import snapshot
from tms_server.ports import store


def fleet(reader: store.Reader, capacity: Callable[[resources.WorkerSpec], int], *more: lease.Lease) -> snapshot.Fleet:
    """A frozen view of all that placement asks about; `more` leases need not be stored."""
    leases = (*reader.unended_leases(), *more)
    pools = reader.pools()
    return snapshot.Fleet(
        leases=leases,
        pools=pools,
        groups=reader.groups(),
        assignments=reader.assignments(),
        measurements=reader.measurements(),
        names=reader.names(),
        capacities={spec: capacity(spec) for spec in snapshot.worker_specs(leases, pools)},
    )
