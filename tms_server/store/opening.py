"""Which database a URL means. Whoever opens one has it to itself for a moment, to set it up."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from tms_server.model import errors
from tms_server.store import database, postgres, sqlite


def open_database(url: str, prepare: Callable[[sa.Connection], None]) -> database.Database:
    """Opens the database; `prepare` runs first, in a transaction that nobody else on the database is in.

    Blocks. InvalidField or Unimplemented for a URL that cannot be meant; FailedPrecondition when the database cannot be
    used, or another server has it. Each names the setting, and none a password.
    """
    if postgres.is_one(url):
        return postgres.open_database(postgres.parse(url), prepare)
    path = sqlite.parse(url)
    try:
        return sqlite.open_database(path, prepare)
    except (OSError, sa.exc.DatabaseError) as error:
        reason = error.orig if isinstance(error, sa.exc.DatabaseError) else error
        raise errors.FailedPrecondition(f"{sqlite.SETTING}: {path} cannot be opened: {reason}") from error


def exists(url: str) -> bool:
    """False where opening would make a new file."""
    return postgres.is_one(url) or sqlite.parse(url).exists()
