"""The one thread that writes: it takes what waits, commits it together, and then answers all callers at once.

Each unit of work has a savepoint, so that one that raises takes back only its own changes. When the connection breaks
before the commit the whole group runs again on a new one; when the commit fails each caller gets Unavailable. It must
never answer before the commit is durable.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
import structlog

from tms_server import clock
from tms_server.model import errors
from tms_server.store import calls, database, kept, session, unit

GROUP_LIMIT = 256
"""Units of work that share one commit at most."""
ATTEMPTS = 3

log = structlog.get_logger(__name__)


class Writer:
    """Runs units of work in groups. `raised` is called on the loop after each commit that raised the revision."""

    def __init__(
        self,
        base: database.Database,
        clock_: clock.Clock,
        loop: asyncio.AbstractEventLoop,
        raised: Callable[[], None],
        queue_limit: int,
    ) -> None:
        self._engine = base.writing_engine()
        self._book = base.book()
        self._kept = kept.Kept()
        self._connection: sa.Connection | None = None
        self._clock = clock_
        self._loop = loop
        self._raised = raised
        self._inbox = calls.Inbox(queue_limit)
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, call: calls.Call[Any]) -> None:
        """ResourceExhausted when too many wait, Unavailable after `close`."""
        self._inbox.put(call)

    def close(self) -> None:
        """Takes no more; `join` waits until what was taken is done."""
        self._inbox.close()

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        while waiting := self._inbox.take(GROUP_LIMIT):
            # Nobody waits for a cancelled one, and it has not begun.
            group = [call for call in waiting if not call.future.cancelled()]
            raised = self._carry_out(group)
            calls.post(self._loop, group, self._raised if raised else None)
        calls.drop(self._connection)

    def _carry_out(self, group: Sequence[calls.Call[Any]]) -> bool:
        """Answers whether the revision was raised. Each call has its outcome then."""
        for left in reversed(range(ATTEMPTS)):
            try:
                self._connection = self._connection or self._engine.connect()
                return self._commit(self._connection, group)
            except Exception as error:  # noqa: BLE001 - the thread must live on whatever went wrong
                again = left > 0 and _nothing_happened(self._connection, error)
                calls.drop(self._connection)
                self._connection = None
                if not again:
                    log.error("store.group_lost", calls=len(group), error=repr(error))  # noqa: TRY400 - locals hold secrets
                    _lose(group, error)
                    break
        return False

    def _commit(self, connection: sa.Connection, group: Sequence[calls.Call[Any]]) -> bool:
        """One transaction for the group; answers whether the revision was raised."""
        touched = kept.Touched()
        try:
            with connection.begin() as transaction:
                revisions = self._book.begin(connection, self._kept)
                for call in group:
                    self._run(connection, revisions, call)
                    touched.add(revisions.touched)
                self._book.end(connection, revisions, touched)
                _finish(connection, transaction)
        except BaseException:
            self._kept.soil(None)
            raise
        finally:
            self._book.settle()
        return revisions.raised

    def _run(self, connection: sa.Connection, revisions: session.Revisions, call: calls.Call[Any]) -> None:
        """Leaves in `revisions.touched` what the unit of work has really touched."""
        before = revisions.last
        touched = revisions.touched = kept.Touched()
        work_unit = unit.SqlUnitOfWork(connection, revisions, self._clock, kept.OfWriter(self._kept, touched))
        connection.exec_driver_sql("SAVEPOINT unit")
        try:
            call.succeed(call.work(work_unit))
        except BaseException as error:
            if calls.passing(connection, error):
                raise
            _take_back(connection, error)
            revisions.last = before
            self._kept.forget(touched)
            revisions.touched = kept.Touched()
            call.fail(calls.answer_to(error))
        finally:
            work_unit.end()
        self._kept.soil(revisions.touched)
        connection.exec_driver_sql("RELEASE unit")


class _Unsure(errors.Unavailable):
    """The connection broke in the middle of the commit."""


def _finish(connection: sa.Connection, transaction: sa.RootTransaction) -> None:
    try:
        transaction.commit()
    except sa.exc.SQLAlchemyError as error:
        if connection.invalidated:
            raise _Unsure(f"the database did not confirm the change, it may have been made or not: {error}") from error
        raise


def _nothing_happened(connection: sa.Connection | None, error: Exception) -> bool:
    return connection is not None and not isinstance(error, _Unsure) and calls.passing(connection, error)


def _take_back(connection: sa.Connection, error: BaseException) -> None:
    try:
        connection.exec_driver_sql("ROLLBACK TO unit")
    except sa.exc.SQLAlchemyError:
        # A full disk or an I/O error makes the database drop the whole transaction by itself: the group is lost.
        raise errors.Unavailable(f"the database dropped the transaction: {error}") from error


def _lose(group: Sequence[calls.Call[Any]], error: Exception) -> None:
    happened = "" if isinstance(error, _Unsure) else "the database did not take the change, nothing has happened: "
    for call in group:
        call.fail(errors.Unavailable(f"{happened}{error}"))
