"""What a worker's report says of the use of a lease.

Decides when a lease's models were last used. It never decides whether that keeps the lease alive, and never takes a
counter that started anew, or a clock that is wrong, for idleness.
"""

from __future__ import annotations

import datetime as dt

from tms_server.model import bundle, group, lease


def observe(held: lease.Lease, previous: group.GroupReport | None, report: group.GroupReport) -> dt.datetime | None:
    """Last use of the lease's models, never before what the lease already knows; None if never used.

    Use of a model counts for every lease that holds it. `previous` is the report before, of the same group.
    """
    known = {bundle.reported_key(model): model for model in report.models}
    before = {bundle.reported_key(model): model for model in previous.models} if previous is not None else {}
    held_keys = [model.key for model in bundle.models(held) if model.key in known]
    uses = [_last_use(before.get(key), known[key], previous, report) for key in held_keys]
    return max((use for use in (held.last_activity_at, *uses) if use is not None), default=None)


def in_use(held: lease.Lease, report: group.GroupReport) -> bool:
    """Whether a request to one of the lease's models was in flight when the report was made."""
    keys = {model.key for model in bundle.models(held)}
    return any(model.in_flight > 0 and bundle.reported_key(model) in keys for model in report.models)


def _last_use(
    before: group.ModelReport | None,
    seen: group.ModelReport,
    previous: group.GroupReport | None,
    report: group.GroupReport,
) -> dt.datetime | None:
    if seen.in_flight > 0:
        return report.received_at
    last = None if seen.last_inference is None else min(seen.last_inference, report.received_at)
    if before is None or previous is None:
        return last or (report.received_at if seen.inference_count > 0 else None)
    if seen.inference_count == before.inference_count and not (_restarted(previous, report) and seen.inference_count):
        return last
    # The counter moved, so there was use since the report before, whatever the worker's clock says.
    return max(last, min(previous.received_at, report.received_at)) if last is not None else report.received_at


def _restarted(previous: group.GroupReport, report: group.GroupReport) -> bool:
    return (previous.incarnation, previous.server_restarts) != (report.incarnation, report.server_restarts)
