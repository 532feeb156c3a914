"""What the threads of a store need to know of the database below them; the rest of SQL is the same on all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import sqlalchemy as sa

from tms_server.store import kept, session


class Book(Protocol):
    """How the one thread that writes begins and ends a transaction. Of one thread."""

    def begin(self, connection: sa.Connection, known: kept.Kept) -> session.Revisions:
        """Comes first: from here on nobody else writes. Soils in `known` what others have changed meanwhile."""
        ...

    def end(self, connection: sa.Connection, revisions: session.Revisions, touched: kept.Touched) -> None:
        """Comes last before the commit: notes for all readers, and for other servers, what was touched."""
        ...

    def settle(self) -> None:
        """Comes after the commit, or after it failed."""
        ...


class Source(kept.Source, Protocol):
    """What a thread that reads keeps between its snapshots."""

    def begin(self) -> None:
        """Comes before each snapshot."""
        ...


class Ears(Protocol):
    """Hears of what other servers have committed."""

    async def close(self) -> None: ...


class Database(Protocol):
    """An opened database that this server may use."""

    @property
    def shared(self) -> bool:
        """Whether other servers may use it at the same time."""
        ...

    @property
    def reader_threads(self) -> int:
        """How many reads are worth running at once."""
        ...

    def writing_engine(self) -> sa.Engine:
        """Connections whose transactions may change rows."""
        ...

    def reading_engine(self) -> sa.Engine:
        """Connections that cannot write; a transaction sees the state at its first statement."""
        ...

    def book(self) -> Book: ...

    def source(self) -> Source:
        """For one more thread that reads."""
        ...

    def listen(self, changed: Callable[[], None], reported: Callable[[], None]) -> Awaitable[Ears]:
        """Calls `changed` on the event loop after other servers raised the revision, `reported` after they stored reports.

        Also whenever that may have been missed. Answers once it listens.
        """
        ...

    def release(self) -> None:
        """Lets go of it; may be called again."""
        ...
