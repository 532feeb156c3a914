"""Says why a lease has, or would have, the place it has.

Reads the fleet with the planner's own rules; decides and changes nothing.
"""

from __future__ import annotations

from tms_server.model import lease
from tms_server.placement import report, snapshot


def explain(fleet: snapshot.Fleet, asked: lease.Lease) -> report.Explanation:
    """Verdict of each worker of the lease's namespace, the nearest fit and the smallest change that would fit.

    The lease need not exist: for a dry run give one made by `lifecycle.request` and `lifecycle.resolve`.
    """
    raise NotImplementedError
