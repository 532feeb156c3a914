"""What every aggregate's module stands on: running statements inside the transaction that its caller holds.

It must never begin or end a transaction, and never outlive one.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from tms_server import clock
from tms_server.store import kept, tables

T = TypeVar("T")
Row = Mapping[Any, Any]

_REVISION = sa.select(tables.INSTALLATION.c.revision)


class ReadSession:
    """Statements on one connection within one transaction."""

    def __init__(self, connection: sa.Connection, source: kept.Source | None = None) -> None:
        """`source` is where whole tables are kept; without one they are read each time."""
        self._connection = connection
        self._source = source

    def end(self) -> None:
        """The transaction is over: whoever kept this gets an error instead of somebody else's transaction."""
        self._connection = typing.cast("sa.Connection", _Ended())

    def revision(self) -> int:
        """Revision of the last change."""
        return int(self._connection.execute(_REVISION).scalar_one())

    def _kept(self) -> kept.Kept | None:
        """What is kept, once the snapshot has begun."""
        if self._source is None:
            return None
        self.revision()
        return self._source.now(self._connection)

    def _whole(self, table: sa.Table, read: Callable[[], T]) -> T:
        """What `read` makes of a whole table, kept until somebody touches the table."""
        if (found := self._kept()) is None:
            return read()
        if table.name not in found.tables:
            found.tables[table.name] = read()
        value: T = found.tables[table.name]
        return value

    def _one(self, statement: sa.Executable, **parameters: Any) -> Row | None:
        return self._connection.execute(statement, parameters).mappings().one_or_none()

    def _all(self, statement: sa.Executable, **parameters: Any) -> Sequence[Row]:
        return self._connection.execute(statement, parameters).mappings().all()


class _Ended:
    def __getattr__(self, _name: str) -> typing.NoReturn:
        raise RuntimeError("this reader or unit of work has ended: use it only inside the function that was given it")


class Revisions:
    """Allots revisions within one transaction of the writer, which is alone, so that their order is that of commits."""

    def __init__(self, last: int) -> None:
        self.first = self.last = last
        self.touched = kept.Touched()
        """By the unit of work that runs."""

    @property
    def raised(self) -> bool:
        return self.last != self.first

    def next(self) -> int:
        self.last += 1
        return self.last


class WriteSession(ReadSession):
    """Adds what changes rows."""

    def __init__(
        self,
        connection: sa.Connection,
        revisions: Revisions,
        clock_: clock.Clock,
        source: kept.Source | None = None,
    ) -> None:
        super().__init__(connection, source)
        self._revisions = revisions
        self._clock = clock_

    def revision(self) -> int:
        """Revision of the last change, those of this transaction included."""
        return self._revisions.last

    def _run(self, statement: sa.Executable, **parameters: Any) -> int:
        """Executes and answers how many rows changed."""
        return self._connection.execute(statement, parameters).rowcount

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """A statement that breaks a constraint in here ends itself only, not the transaction."""
        if self._connection.dialect.name == "sqlite":
            # Every statement is so by itself.
            yield
            return
        with self._connection.begin_nested():
            yield

    def _put(self, table: sa.Table, row: Row) -> None:
        """Replaces the row of that primary key, or adds it."""
        self._touch(table)
        if not self._run(update_by_key(table), **{_bound(name): value for name, value in row.items()}):
            self._connection.execute(sa.insert(table), row)

    def _touch(self, table: sa.Table) -> None:
        """Whoever keeps the table has to read it again."""
        self._revisions.touched.tables.add(table.name)

    def _delete(self, table: sa.Table, **key: Any) -> bool:
        self._touch(table)
        return self._run(_delete_by_key(table), **{_bound(name): value for name, value in key.items()}) > 0


@functools.cache
def select_by_key(table: sa.Table) -> sa.Select[Any]:
    """One row by its primary key; the parameters are called ``b_<column>``."""
    return sa.select(table).where(*_key_matches(table))


@functools.cache
def update_by_key(table: sa.Table) -> sa.Update:
    """All columns of one row; the parameters are called ``b_<column>``."""
    values = {column.name: _parameter(column) for column in table.columns if not column.primary_key}
    return sa.update(table).where(*_key_matches(table)).values(values)


@functools.cache
def _delete_by_key(table: sa.Table) -> sa.Delete:
    return sa.delete(table).where(*_key_matches(table))


def _key_matches(table: sa.Table) -> list[sa.ColumnElement[bool]]:
    return [column == _parameter(column) for column in table.primary_key.columns]


def _parameter(column: sa.Column[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(_bound(column.name), type_=column.type)


def _bound(column_name: str) -> str:
    # A bare column name is what SQLAlchemy keeps for its own parameters.
    return f"b_{column_name}"
