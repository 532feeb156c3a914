"""Decides how `tmsctl run` holds a lease around a command. Whatever happens, the command is waited for and the lease released.

The main thread does nothing but wait for signals; all calls are made by threads in which those signals are blocked. A
thread that has news sends a wake signal, which carries no data: the main thread looks at the holder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from protos.tms.v1 import common_pb2, lease_pb2
from tmsctl import client, errors, follow, progress, render

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
# The terminal sends these to the command as well, as they share a process group.
FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})
SI_KERNEL = 0x80
WAKE = signal.Signals(signal.SIGRTMIN)

LEAST_PAUSE_S = 0.1
GRACE_S = 10.0
LONGEST_WAIT_S = 3600.0
HOLD = dt.timedelta(minutes=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run, and the lease to hold meanwhile. `connect` makes a new connection at each call."""

    request: lease_pb2.CreateLeaseRequest
    command: Sequence[str]
    environment: Mapping[str, str]
    connect: Callable[[], client.Client]
    reporter: Callable[[], progress.Reporter]
    note: Callable[[str], None]
    within_s: float | None


def run(plan: Plan) -> int:
    """Answers the command's exit code, 128+n if signal n ended it. CliError, its code above 200, when the lease fails."""
    watched = _not_ignored()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    holder = _Holder(plan)
    try:
        return _held(plan, holder, watched)
    except errors.CliError as problem:
        problem.code += errors.RUN_OFFSET
        problem.remedy = holder.epitaph() or problem.remedy
        raise
    finally:
        holder.release()
        _forget(watched)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keep(request: lease_pb2.CreateLeaseRequest) -> None:
    """Has the lease live by keep-alive, and not much longer than we do, where the request leaves that open."""
    times = request.times
    times.renewal = times.renewal or lease_pb2.RENEWAL_KEEPALIVE
    if not times.HasField("hold"):
        longest = times.max_lifetime.ToTimedelta() if times.HasField("max_lifetime") else HOLD
        times.hold.FromTimedelta(min(HOLD, longest))


def environment(lease: lease_pb2.Lease, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with the variables that the command finds the lease by."""
    return {**base, "TMS_LEASE_ID": lease.id, **_addresses(lease.endpoint)}


def _addresses(endpoint: common_pb2.Endpoint) -> dict[str, str]:
    host = render.host(endpoint)
    http, grpc = f"{host}:{endpoint.http_port}", f"{host}:{endpoint.grpc_port}"
    return {
        "TMS_HTTP_URL": f"http://{http}",
        "TMS_HTTP_ADDRESS": http,
        "TMS_GRPC_URL": grpc,
        "TMS_METRICS_URL": f"http://{host}:{endpoint.metrics_port}/metrics",
    }


def _held(plan: Plan, holder: _Holder, watched: frozenset[int]) -> int:
    holder.start()
    while holder.lease is None:
        if holder.problem:
            raise holder.problem
        came = signal.sigwaitinfo(watched).si_signo
        if came in FORWARDED:
            return 128 + came
    code = _Command(plan, holder.lease).wait(holder, watched)
    if holder.problem:
        raise holder.problem
    return code


def _forget(pending: frozenset[int]) -> None:
    # Came after the command's end: a wake, or a second Ctrl-C while the lease was released. Unblocked it would kill us.
    while signal.sigtimedwait(pending, 0) is not None:
        pass


def _not_ignored() -> frozenset[int]:
    # What is ignored (nohup, a background job's SIGINT) stays so for us and for the command.
    heard = (each for each in FORWARDED if signal.getsignal(each) is not signal.SIG_IGN)
    return frozenset({*heard, signal.SIGCHLD, WAKE})


class _Command:
    """The command as a process of ours."""

    def __init__(self, plan: Plan, lease: lease_pb2.Lease) -> None:
        self._kill_at: float | None = None
        self._pid = os.posix_spawnp(
            plan.command[0],
            list(plan.command),
            environment(lease, plan.environment),
            setsigmask=[],
            # Python ignores these; the command shall not.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )

    def wait(self, holder: _Holder, watched: frozenset[int]) -> int:
        """Forwards signals until the command has ended; ends it when the lease is lost."""
        while True:
            came = signal.sigtimedwait(watched, self._patience_s())
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            self._answer(came, lost=holder.problem is not None)

    def _answer(self, came: signal.struct_siginfo | None, *, lost: bool) -> None:
        if came and came.si_signo in FORWARDED:
            if not (came.si_code == SI_KERNEL and came.si_signo in FROM_TERMINAL):
                os.kill(self._pid, came.si_signo)
        elif lost and self._kill_at is None:
            self._kill_at = time.monotonic() + GRACE_S
            os.kill(self._pid, signal.SIGTERM)
        elif self._kill_at is not None and time.monotonic() >= self._kill_at:
            os.kill(self._pid, signal.SIGKILL)

    def _patience_s(self) -> float:
        if self._kill_at is None:
            return LONGEST_WAIT_S
        return max(self._kill_at - time.monotonic(), LEAST_PAUSE_S)


class _Holder:
    """Acquires a lease, keeps it and follows it. `lease` is set once it is ACTIVE, `problem` when it is lost or never came."""

    def __init__(self, plan: Plan) -> None:
        self.lease: lease_pb2.Lease | None = None
        self.problem: errors.CliError | None = None
        self._plan = plan
        self._created: lease_pb2.Lease | None = None
        self._leaving = threading.Event()
        self._wakes = threading.get_ident()
        # Calls that must not be cut off go over one connection; what only waits goes over the other.
        self._calls = plan.connect()
        self._waits = plan.connect()
        self._threads = [threading.Thread(target=self._hold), threading.Thread(target=self._follow)]
        self._active = threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def epitaph(self) -> str:
        """Where to read more about the lease; empty when there never was one."""
        return f"`tmsctl lease events {self._created.id}` tells more; the lease is released." if self._created else ""

    def release(self) -> None:
        """Stops keeping, and releases what was created; says so if that fails. Does not raise."""
        self._leaving.set()
        self._active.set()
        self._waits.close()
        for thread in self._threads:
            if thread.ident:
                thread.join()
        if self._created:
            self._release(self._created)
        self._calls.close()

    def _release(self, lease: lease_pb2.Lease) -> None:
        said = lease_pb2.ReleaseLeaseRequest(lease=lease.id, namespace=lease.namespace, message="tmsctl run has ended")
        try:
            self._calls.call(self._calls.leases.Release, said)
        except errors.CliError as problem:
            self._plan.note(f"lease {lease.id} was not released and ends by itself: {problem.message}")

    def _hold(self) -> None:
        with self._told():
            self._created = self._calls.call(self._calls.leases.Create, self._plan.request)
            with self._plan.reporter() as reporter:
                lease = follow.until_active(self._waits, self._created, reporter, self._plan.within_s)
            self.lease = lease
            self._active.set()
            signal.pthread_kill(self._wakes, WAKE)
            self._keep(lease)

    def _keep(self, lease: lease_pb2.Lease) -> None:
        renewal = lease_pb2.RenewLeaseRequest(lease=lease.id, namespace=lease.namespace)
        remaining = lease.expires.remaining
        while not self._leaving.wait(max(remaining.ToTimedelta().total_seconds() / 3, LEAST_PAUSE_S)):
            with self._outages_outlived():
                remaining = self._calls.call(self._calls.leases.Renew, renewal).expires.remaining

    def _follow(self) -> None:
        self._active.wait()
        lease = self.lease
        while lease and not self._leaving.is_set():
            watched = lease_pb2.WatchLeasesRequest(namespace=lease.namespace, leases=[lease.id])
            with self._told(), self._outages_outlived():
                for update in self._waits.watch(watched):
                    if update.lease.state != lease_pb2.LEASE_STATE_ACTIVE:
                        raise follow.ended(update.lease)
                return
            if self.problem:
                return

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except errors.CliError as problem:
            if not self._leaving.is_set():
                self.problem = self.problem or problem
                signal.pthread_kill(self._wakes, WAKE)
            self._active.set()

    @contextlib.contextmanager
    def _outages_outlived(self) -> Iterator[None]:
        # While the server is away workers go on serving, and it credits the outage to the lease.
        try:
            yield
        except errors.CliError as problem:
            if problem.code != errors.Exit.UNAVAILABLE:
                raise
