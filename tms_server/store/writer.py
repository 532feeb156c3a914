"""The one thread that writes: it takes what waits, commits it together, and then answers all callers at once.

Each unit of work has a savepoint, so that one that raises takes back only its own changes. When the commit fails none of
the group has happened and each caller gets Unavailable. It must never answer before the commit is durable.
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
from tms_server.store import calls, kept, session, unit

GROUP_LIMIT = 256
"""Units of work that share one commit at most."""

log = structlog.get_logger(__name__)


class Writer:
    """Runs units of work in groups. `raised` is called on the loop after each commit that raised the revision."""

    def __init__(
        self,
        engine: sa.Engine,
        ledger: kept.Ledger,
        clock_: clock.Clock,
        loop: asyncio.AbstractEventLoop,
        raised: Callable[[], None],
        queue_limit: int,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._kept = kept.Kept()
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
        connection: sa.Connection | None = None
        while waiting := self._inbox.take(GROUP_LIMIT):
            # Nobody waits for a cancelled one, and it has not begun.
            group = [call for call in waiting if not call.future.cancelled()]
            try:
                connection = connection or self._engine.connect()
                raised = self._commit(connection, group)
            except Exception as error:  # noqa: BLE001 - the thread must live on whatever went wrong
                log.error("store.group_lost", calls=len(group), error=repr(error))  # noqa: TRY400 - locals hold secrets
                _lose(group, error)
                raised = False
                _drop(connection)
                connection = None
            calls.post(self._loop, group, self._raised if raised else None)
        _drop(connection)

    def _commit(self, connection: sa.Connection, group: Sequence[calls.Call[Any]]) -> bool:
        """One transaction for the group; answers whether the revision was raised."""
        touched = kept.Touched()
        try:
            with connection.begin():
                revisions = session.Revisions(session.ReadSession(connection).revision())
                before = revisions.last
                for call in group:
                    self._run(connection, revisions, call)
                    touched.add(revisions.touched)
                if revisions.last != before:
                    unit.save_revision(connection, revisions)
                self._ledger.record(touched)
        except BaseException:
            self._kept.soil(None)
            raise
        finally:
            self._ledger.settle()
        return revisions.last != before

    def _run(self, connection: sa.Connection, revisions: session.Revisions, call: calls.Call[Any]) -> None:
        """Leaves in `revisions.touched` what the unit of work has really touched."""
        before = revisions.last
        touched = revisions.touched = kept.Touched()
        work_unit = unit.SqlUnitOfWork(connection, revisions, self._clock, kept.OfWriter(self._kept, touched))
        connection.exec_driver_sql("SAVEPOINT unit")
        try:
            call.succeed(call.work(work_unit))
        except BaseException as error:  # noqa: BLE001 - whatever the work raises belongs to its caller
            _take_back(connection, error)
            revisions.last = before
            self._kept.forget(touched)
            revisions.touched = kept.Touched()
            call.fail(calls.answer_to(error))
        finally:
            work_unit.end()
        self._kept.soil(revisions.touched)
        connection.exec_driver_sql("RELEASE unit")


def _take_back(connection: sa.Connection, error: BaseException) -> None:
    try:
        connection.exec_driver_sql("ROLLBACK TO unit")
    except sa.exc.OperationalError:
        # A full disk or an I/O error makes the database drop the whole transaction by itself: the group is lost.
        raise errors.Unavailable(f"the database dropped the transaction: {error}") from error


def _lose(group: Sequence[calls.Call[Any]], error: Exception) -> None:
    for call in group:
        call.fail(errors.Unavailable(f"the database did not take the change, nothing has happened: {error}"))


def _drop(connection: sa.Connection | None) -> None:
    """A connection in an unknown state is not used again."""
    if connection is None:
        return
    try:
        connection.close()
    except sa.exc.SQLAlchemyError:
        log.warning("store.close_failed")
