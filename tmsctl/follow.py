"""Decides how long to wait for a lease and what counts as arriving. Ends with the ACTIVE lease or with an error."""

from __future__ import annotations

import time

from protos.tms.v1 import lease_pb2
from tmsctl import client, errors, progress, render, values

WAITING = frozenset({lease_pb2.LEASE_STATE_PENDING, lease_pb2.LEASE_STATE_PLACED, lease_pb2.LEASE_STATE_LOADING})


def until_active(
    connection: client.Client, lease: lease_pb2.Lease, reporter: progress.Reporter, within_s: float | None
) -> lease_pb2.Lease:
    """Follows the lease until it is ACTIVE and answers it.

    CliError when it has ended (the code says why) and, with NO_CAPACITY, when `within_s` is over; it goes on waiting then.
    """
    ends = None if within_s is None else time.monotonic() + within_s
    watched = lease_pb2.WatchLeasesRequest(namespace=lease.namespace, leases=[lease.id])
    last = lease
    try:
        reporter.update(last)
        for update in connection.watch(watched, ends=ends):
            last = update.lease
            reporter.update(last)
            if last.state not in WAITING:
                break
    except TimeoutError:
        raise _still_waiting(last) from None
    except KeyboardInterrupt:
        raise _left(last) from None
    if last.state != lease_pb2.LEASE_STATE_ACTIVE:
        raise ended(last)
    return last


def _left(lease: lease_pb2.Lease) -> errors.CliError:
    message = f"interrupted; lease {lease.id} stays and is {render.state(lease)}"
    remedy = f"`tmsctl lease release {lease.id}` ends it, `tmsctl lease watch {lease.id}` waits again."
    return errors.CliError(message, code=errors.Exit.INTERRUPTED, remedy=remedy)


def ended(lease: lease_pb2.Lease) -> errors.CliError:
    """The lease is not there any more; says who or what ended it."""
    message = f"lease {lease.id} is {render.state(lease)}: {lease.end.reason or 'no reason'}: {lease.end.message}"
    remedy = f"`tmsctl lease explain {lease.id}` and `tmsctl lease events {lease.id}` tell more."
    return errors.CliError(values.clean(message), code=errors.exit_for_end(lease.end.reason), remedy=remedy)


def _still_waiting(lease: lease_pb2.Lease) -> errors.CliError:
    said = ": ".join(filter(None, (render.reason(lease), render.why(lease))))
    return errors.CliError(
        values.clean(f"lease {lease.id} is still {render.state(lease)}{f' ({said})' if said else ''}"),
        code=errors.Exit.NO_CAPACITY,
        field="--wait-timeout",
        remedy=f"It goes on waiting. `tmsctl lease explain {lease.id}` says for what; `lease release` gives it up.",
    )
