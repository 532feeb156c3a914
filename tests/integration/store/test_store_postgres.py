"""The URL of a PostgreSQL database: what is refused, with which words, and that no password is among them."""

from __future__ import annotations

import logging
import pathlib

import psycopg
import pytest

from tests.support import postgres, stores
from tms_server.model import errors
from tms_server.store import migrate
from tms_server.store import postgres as adapter
from tms_server.store import store as sql

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hun%zzhunter2@h/db",
        "postgresql://u:x?hunter2@h/db",
        "postgresql://u:hunter2@h/db?sslmod=require",
        "postgresql://u:hunter2@[::1/db",
    ],
)
async def test_a_url_that_cannot_be_meant_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(errors.TmsError, match="database_url") as refused:
        await stores.open_store(url)
    assert PASSWORD not in str(refused.value)
    assert refused.value.__cause__ is None or PASSWORD not in str(refused.value.__cause__)


async def test_a_host_that_does_not_answer_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        errors.FailedPrecondition, match=r"database_url: postgresql://127.0.0.1:1/db cannot be used"
    ) as refused:
        await stores.open_store(f"postgresql://u:{PASSWORD}@127.0.0.1:1/db")
    assert "refused" in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert PASSWORD not in caplog.text


async def test_a_wrong_password_and_a_database_that_is_not_there_are_named(postgres_server: postgres.Server) -> None:
    postgres_server.execute("CREATE ROLE somebody LOGIN PASSWORD 'right'")
    with pytest.raises(errors.FailedPrecondition, match=r"database_url: .*password authentication failed") as refused:
        await stores.open_store(postgres_server.url("postgres", "somebody", PASSWORD))
    assert PASSWORD not in str(refused.value)
    with pytest.raises(errors.FailedPrecondition, match=r'database_url: .*"nowhere" does not exist'):
        await stores.open_store(postgres_server.url("nowhere"))


async def test_a_role_without_rights_is_told_what_it_may_not(
    postgres_server: postgres.Server, postgres_url: str
) -> None:
    postgres_server.execute("CREATE ROLE reader LOGIN PASSWORD 'right'")
    name = postgres_url.split("///")[1].split("?", maxsplit=1)[0]
    with pytest.raises(errors.FailedPrecondition, match=r"database_url: .*permission denied"):
        await stores.open_store(postgres_server.url(name, "reader", "right"))


async def test_a_database_of_another_encoding_is_refused(postgres_server: postgres.Server) -> None:
    postgres_server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    with pytest.raises(errors.FailedPrecondition, match=r"database_url: .*LATIN1.*UTF8"):
        await stores.open_store(postgres_server.url("latin"))


async def test_a_password_works_from_the_url_and_from_a_file(
    postgres_server: postgres.Server, tmp_path: pathlib.Path
) -> None:
    postgres_server.execute("CREATE ROLE owner LOGIN PASSWORD 'a secret/?&='")
    postgres_server.execute("CREATE DATABASE owned TEMPLATE template0 OWNER owner")
    await (await stores.open_store(postgres_server.url("owned", "owner", "a secret/?&="))).close()
    file = tmp_path / "passwords"
    file.write_text("*:*:owned:owner:a secret/?&=\n")
    file.chmod(0o600)
    store = await stores.open_store(postgres_server.url("owned", "owner") + f"&passfile={file}")
    assert await stores.add(store, stores.new_lease(1))
    await store.close()


async def test_what_was_acknowledged_is_synced_and_nothing_waits_for_ever(postgres_url: str) -> None:
    database = adapter.Database(adapter.parse(postgres_url))
    for engine, read_only in ((database.writing_engine(), "off"), (database.reading_engine(), "on")):
        with engine.connect() as connection, connection.begin():
            shown = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("synchronous_commit", "transaction_read_only", "statement_timeout", "lock_timeout")
            }
        assert shown == {
            "synchronous_commit": "on",
            "transaction_read_only": read_only,
            "statement_timeout": "30s",
            "lock_timeout": "10s",
        }


async def test_a_server_that_may_not_migrate_says_who_does(postgres_server: postgres.Server) -> None:
    name = postgres_server.create()
    url, options = postgres_server.url(name), sql.Options(migrate=False)
    for revision in (None, "0001"):
        if revision is not None:
            await migrate.upgrade(url, revision)
        assert await migrate.current(url) == revision
        with pytest.raises(errors.FailedPrecondition, match=r"database_url.*tms-server migrate.*migrate_at_start"):
            await stores.open_store(url, options)
        assert await migrate.current(url) == revision
    await migrate.upgrade(url)
    assert await migrate.current(url) == migrate.head()
    await (await stores.open_store(url, options)).close()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for chosen in (options, sql.Options()):
        with pytest.raises(errors.FailedPrecondition, match=r"database_url.*newer server"):
            await stores.open_store(url, chosen)
    postgres_server.drop(name)


async def test_no_more_connections_are_opened_than_there_are_threads(
    postgres_server: postgres.Server, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = await stores.open_store(postgres_url)
    for number in range(40):
        await stores.add(store, stores.new_lease(number))
        await store.read(lambda reader: reader.revision())
    name = postgres_url.split("///")[1].split("?", maxsplit=1)[0]
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'tms-server'"
    ((connections,),) = postgres_server.execute(count)
    await store.close()
    # One writes, some read, one listens.
    assert connections == adapter.READER_THREADS + 2
