"""Runs migrations on the connection that the caller put into the configuration, inside the caller's transaction."""

from __future__ import annotations

from alembic import context

from tms_server.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.METADATA,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
