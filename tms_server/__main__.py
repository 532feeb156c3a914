"""Entry of the program tms-server: flags, signals, exit codes (0 stopped, 1 failed, 2 wrong settings)."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import structlog
import uvloop

from tms_server import app as app_module
from tms_server import settings as settings_module
from tms_server.model import errors
from tms_server.observability import logs
from tms_server.store import migrate

log = structlog.get_logger(__name__)


def main() -> None:
    """Runs the server until SIGTERM or SIGINT, or brings its database to this version."""
    parser = settings_module.parser()
    parser.usage = "tms-server [migrate] [OPTIONS]"
    parser.add_argument(
        "action", nargs="?", choices=("serve", "migrate"), default="serve", help="migrate: only prepare the database"
    )
    arguments = parser.parse_args()
    try:
        settings = settings_module.from_arguments(arguments)
    except settings_module.SettingsError as error:
        sys.stderr.write(f"tms-server: wrong settings\n{error}\n")
        sys.exit(2)
    if arguments.print_config:
        sys.stdout.write(json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
        return
    logs.configure(settings.log.level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_migrate(settings) if arguments.action == "migrate" else _run(settings)))


async def _migrate(settings: settings_module.Settings) -> int:
    try:
        await migrate.upgrade(settings.database)
    except errors.TmsError as error:
        log.error("database.not_migrated", error=str(error))  # noqa: TRY400 - the message says it all
        return 1
    log.info("database.migrated", schema=migrate.head())
    return 0


async def _run(settings: settings_module.Settings) -> int:
    app = app_module.build(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    try:
        await app.run()
    except errors.TmsError as error:
        log.error("server.failed", error=str(error))  # noqa: TRY400 - the message says it all
        return 1
    return 0


if __name__ == "__main__":
    main()
