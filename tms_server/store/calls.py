"""The way of a closure from the event loop to a thread and of its outcome back.

The event loop never waits for a thread here, and a thread never touches a future: it posts outcomes to the loop.
"""

from __future__ import annotations

import asyncio
import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
import structlog

from tms_server.model import errors

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Call(Generic[T]):
    """One closure, and the future that its caller waits on."""

    __slots__ = ("_error", "_value", "future", "work")

    def __init__(self, work: Callable[[Any], T], future: asyncio.Future[T]) -> None:
        self.work = work
        self.future = future
        self._value: T | None = None
        self._error: BaseException | None = None

    def succeed(self, value: T) -> None:
        """Notes the outcome; the last word counts."""
        self._value, self._error = value, None

    def fail(self, error: BaseException) -> None:
        """Notes the outcome; the last word counts."""
        if isinstance(error, StopIteration):
            # A future refuses it.
            error = RuntimeError(f"the work raised {error!r}")
        self._value, self._error = None, error

    def settle(self) -> None:
        """Tells the caller; only on the event loop."""
        if self.future.done():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._value)  # type: ignore[arg-type] # T may itself be optional


class Inbox:
    """A bounded queue into threads that takes many at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: collections.deque[Call[Any]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, call: Call[Any]) -> None:
        """ResourceExhausted when full, Unavailable when closed; never waits."""
        with self._changed:
            if self._closed:
                raise errors.Unavailable("the store is closed")
            if len(self._calls) >= self._limit:
                raise errors.ResourceExhausted(f"{self._limit} calls wait for the database already: try again later")
            self._calls.append(call)
            self._changed.notify()

    def take(self, at_most: int) -> list[Call[Any]]:
        """Waits for calls; answers none once it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed)
            return [self._calls.popleft() for _ in range(min(at_most, len(self._calls)))]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def post(loop: asyncio.AbstractEventLoop, calls: Sequence[Call[Any]], then: Callable[[], None] | None = None) -> None:
    """Settles the calls on the event loop in one go, then calls `then` there. From any thread."""
    try:
        loop.call_soon_threadsafe(_settle, calls, then)
    except RuntimeError:
        log.warning("store.loop_closed", calls=len(calls))


def _settle(calls: Sequence[Call[Any]], then: Callable[[], None] | None) -> None:
    for call in calls:
        call.settle()
    if then is not None:
        then()


def answer_to(error: BaseException) -> BaseException:
    """What a caller is told when its work raised: the driver's trouble becomes Unavailable, all else stays."""
    if isinstance(error, sa.exc.OperationalError) or (
        isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    ):
        return errors.Unavailable(f"the database did not answer: {error.orig}")
    if isinstance(error, sa.exc.PendingRollbackError):
        return errors.Unavailable("the database did not answer: the connection was lost")
    return error


def passing(connection: sa.Connection, error: BaseException) -> bool:
    """Whether what was not committed has failed for a reason that is over with a new transaction on a new connection."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, sa.exc.DBAPIError) else None
    return connection.invalidated or state in _PASSING


def drop(connection: sa.Connection | None) -> None:
    """A connection in an unknown state is not used again."""
    if connection is None:
        return
    try:
        connection.close()
    except sa.exc.SQLAlchemyError:
        log.warning("store.close_failed")


_PASSING = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "57P01",  # the server shuts down
        "57P02",  # it has crashed
        "25P03",  # the transaction was idle for too long
    }
)
