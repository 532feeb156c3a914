"""Decides how calls are sent: where to, how long they may take, which may be repeated. Never prints but one note.

Every call has a deadline. A call that may be repeated without harm is, while the server does not answer, until that
deadline; `create` may be, because it carries a request id.
"""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf import message as message_lib

from protos.tms.v1 import lease_pb2, lease_pb2_grpc, pool_pb2_grpc
from tmsctl import config, errors

Request = TypeVar("Request", bound=message_lib.Message)
Answer = TypeVar("Answer", bound=message_lib.Message)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
_CLOSE_S = 1.0

_OPTIONS = (
    # Without these a channel that met a server in restart would not look again for 20 s and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 * 2**20),
)


def new_request_id() -> str:
    """Makes a create repeatable."""
    return f"tmsctl-{secrets.token_hex(16)}"


class Client:
    """A connection to one server. Usable from several threads; a context manager.

    `notify` is told once for each call that has to be repeated.
    """

    def __init__(
        self, target: config.Target, *, timeout_s: float, notify: Callable[[str], None] = lambda _: None
    ) -> None:
        self.address = target.address
        self.timeout_s = timeout_s
        self._notify = notify
        self._closing = threading.Event()
        self._channel = _channel(target)
        self.leases = lease_pb2_grpc.LeasesStub(self._channel)
        self.names = lease_pb2_grpc.LeaseNamesStub(self._channel)
        self.pools = pool_pb2_grpc.PoolsStub(self._channel)
        self.images = pool_pb2_grpc.ImagesStub(self._channel)
        self.workers = pool_pb2_grpc.WorkersStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls; they raise CliError."""
        self._closing.set()
        # A call that Ctrl-C met while it was being made is in gRPC's books for ever, and its close would wait for it.
        closing = threading.Thread(target=self._channel.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def once(self, method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer:
        """Calls a method that must not be repeated. Raises CliError."""
        try:
            return method(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise errors.from_rpc(error, self.address) from error

    def call(self, method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer:
        """Calls a method that may be repeated, while the server is away. Raises CliError."""
        patience = _Patience(self)
        while True:
            try:
                return method(request, timeout=max(patience.left_s(), FIRST_PAUSE_S))
            except grpc.RpcError as error:
                patience.after(error)

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[Request, Answer], request: Request, *, endless: bool
    ) -> Iterator[Answer]:
        """Yields what the server streams; without a deadline if `endless`. Cancels the call when closed. Raises CliError."""
        call = method(request, timeout=None if endless else self.timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise errors.from_rpc(error, self.address) from error
        finally:
            call.cancel()

    def watch(
        self, request: lease_pb2.WatchLeasesRequest, *, ends: float | None = None
    ) -> Iterator[lease_pb2.LeaseUpdate]:
        """Follows leases; goes on after the last revision seen when the server was away for less than the timeout.

        Raises TimeoutError when the monotonic clock reaches `ends`, CliError otherwise.
        """
        resumed = lease_pb2.WatchLeasesRequest()
        resumed.CopyFrom(request)
        patience = _Patience(self)
        while True:
            call = self._watch(resumed, None if ends is None else max(ends - time.monotonic(), 0.0))
            try:
                for update in call:
                    patience = _Patience(self)
                    resumed.after_revision = max(resumed.after_revision, update.revision)
                    yield update
            except grpc.RpcError as error:
                if ends is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError from None
                patience.after(error)
            else:
                return
            finally:
                call.cancel()

    def leases_matching(self, request: lease_pb2.ListLeasesRequest) -> Iterator[lease_pb2.Lease]:
        """All pages."""
        page = lease_pb2.ListLeasesRequest()
        page.CopyFrom(request)
        while True:
            answer = self.call(self.leases.List, page)
            yield from answer.leases
            if not answer.next_page_token:
                return
            page.page_token = answer.next_page_token

    def _watch(self, request: lease_pb2.WatchLeasesRequest, timeout_s: float | None) -> Any:
        try:
            return self.leases.Watch(request, timeout=timeout_s)
        except ValueError as problem:
            if not self._closing.is_set():
                raise
            raise errors.CliError("interrupted", code=errors.Exit.INTERRUPTED) from problem

    @property
    def closing(self) -> bool:
        """Whether its owner has closed it, which cuts its calls off."""
        return self._closing.is_set()

    def pause(self, pause_s: float) -> bool:
        """Waits that long, or until the client is closed; answers whether to go on."""
        return not self._closing.wait(pause_s)

    def notify(self, note: str) -> None:
        self._notify(note)


class _Patience:
    """How often one call is repeated: with growing pauses, until the timeout."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ends = time.monotonic() + client.timeout_s
        self._pause_s = FIRST_PAUSE_S
        self._told = False

    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def after(self, error: grpc.RpcError) -> None:
        """Waits if the call is worth repeating; raises CliError otherwise."""
        problem = errors.from_rpc(error, self._client.address)
        passing = isinstance(error, grpc.Call) and error.code() in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.CANCELLED,
        }
        if not passing or problem.code == errors.Exit.DENIED or self._client.closing or self.left_s() <= self._pause_s:
            raise problem from error
        if not self._told:
            self._told = True
            self._client.notify(f"{problem.message}; trying again for {self.left_s():.0f} s")
        if not self._client.pause(self._pause_s):
            raise problem from error
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _channel(target: config.Target) -> grpc.Channel:
    if not target.encrypted:
        return grpc.insecure_channel(target.address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem("ca", target.ca),
        private_key=_pem("key", target.key),
        certificate_chain=_pem("cert", target.cert),
    )
    return grpc.secure_channel(target.address, credentials, options=_OPTIONS)


def _pem(field: str, path: str) -> bytes | None:
    if not path:
        return None
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_bytes()
    raise errors.CliError(
        f"cannot read {path}", code=errors.Exit.USAGE, field=field, remedy="See `tmsctl target list`."
    )
