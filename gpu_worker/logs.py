"""What is logged, in what form, and where to; clients may change the first two while the server runs.

Logs are JSON lines, or lines for reading where stderr is a terminal; `ISO8601` is a line of text that begins with the
time. One process has one log, so its settings are the process's. A log that cannot be written to must never harm a request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import structlog

from gpu_worker.engine import border

DEFAULT, ISO8601 = "default", "ISO8601"
FORMATS = (DEFAULT, ISO8601)

# Without the values of variables: those hold tokens and what clients send.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
_CALLSITE = structlog.processors.CallsiteParameterAdder(
    {
        structlog.processors.CallsiteParameter.FILENAME,
        structlog.processors.CallsiteParameter.LINENO,
        structlog.processors.CallsiteParameter.PROCESS,
    },
    additional_ignores=[__name__],
)
_MAX_VERBOSE = 2**32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`verbose_level` above 0 adds debug messages. An empty `file` is stderr."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: str = DEFAULT
    file: str = ""

    def shows(self, level: str) -> bool:
        """Whether messages of that level, in lower case, are logged."""
        if level == "debug":
            return self.verbose_level > 0
        if level == "info":
            return self.info
        return self.warning if level in {"warn", "warning"} else self.error

    def told(self) -> dict[str, border.LogSetting]:
        """As the logging extension names them."""
        return {
            "log_file": self.file,
            "log_info": self.info,
            "log_warning": self.warning,
            "log_error": self.error,
            "log_verbose_level": self.verbose_level,
            "log_format": self.format,
        }

    def changed(self, changes: Mapping[str, border.LogSetting]) -> Settings:
        """With what a client wants changed. Raises InferenceError for what is not to be had, and then nothing changes."""
        found: dict[str, Any] = {}
        for name, value in changes.items():
            found[name.removeprefix("log_")] = _checked(name, value)
        return dataclasses.replace(self, **found)


class _Log:
    """The process's log."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.terminal = False
        self.listeners: list[Callable[[Settings], None]] = []


_log = _Log()


def configure(settings: Settings) -> None:
    """Sets up structlog, and the standard library's logging in the same form. OSError for a file that cannot be opened."""
    stream = _opened(settings.file) if settings.file else sys.stderr
    _log.settings, _log.terminal = settings, not settings.file and stream.isatty()
    sink: Any = _Sink(stream)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[_wanted, *shared, _rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(sink),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sink)
    handler.addFilter(lambda record: _log.settings.shows(record.levelname.lower()))
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[_rendered], foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)


def _opened(path: str) -> TextIO:
    return pathlib.Path(path).open("a", encoding="utf-8", errors="backslashreplace")


def current() -> Settings:
    return _log.settings


def update(changes: Mapping[str, border.LogSetting]) -> Settings:
    """Changes the process's log from now on; see `Settings.changed`. Returns all settings."""
    _log.settings = _log.settings.changed(changes)
    for listener in tuple(_log.listeners):
        listener(_log.settings)
    return _log.settings


def follow(told: Mapping[str, border.LogSetting]) -> None:
    """Takes over the settings of another process of this worker, but for the file. Raises as `Settings.changed`."""
    changes = {name: value for name, value in told.items() if name != "log_file"}
    if _log.settings.changed(changes) != _log.settings:
        update(changes)


def listen(listener: Callable[[Settings], None]) -> Callable[[], None]:
    """Tells the listener the settings now, and again whenever they change; what is returned ends that."""
    _log.listeners.append(listener)
    listener(_log.settings)

    def end() -> None:
        if listener in _log.listeners:
            _log.listeners.remove(listener)

    return end


class _Sink:
    """Where lines go. A full disk or a closed pipe loses lines, not requests."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _wanted(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if not _log.settings.shows(method):
        raise structlog.DropEvent
    return event


_JSON = structlog.processors.JSONRenderer()
_CONSOLE = structlog.dev.ConsoleRenderer()


def _rendered(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    if _log.settings.format == ISO8601:
        return _text(_TRACEBACKS(logger, method, _CALLSITE(logger, method, event)))
    _drop_meta(event)
    if _log.terminal:
        return _CONSOLE(logger, method, event)
    return str(_JSON(logger, method, _TRACEBACKS(logger, method, event)))


def _text(event: structlog.typing.EventDict) -> str:
    """Time, level, process, place], the event and its keys; everything a client may have sent is JSON."""
    _drop_meta(event)
    taken = [event.pop(key, "-") for key in ("timestamp", "level", "process", "filename", "lineno", "event")]
    when, level, process, file, line, what = taken
    rest = "".join(f" {key}={json.dumps(value, default=repr)}" for key, value in event.items())
    return f"{when} {str(level)[:1].upper()} {process} {file}:{line}] {json.dumps(str(what))}{rest}"


def _drop_meta(event: structlog.typing.EventDict) -> None:
    for key in ("_record", "_from_structlog"):
        event.pop(key, None)


def _checked(name: str, value: border.LogSetting) -> border.LogSetting:
    if name == "log_file":
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED, "log file location can not be updated through network protocol"
        )
    if name in {"log_info", "log_warning", "log_error"}:
        if not isinstance(value, bool):
            raise _refused(f"Unable to parse '{name}': must be a boolean")
    elif name == "log_verbose_level":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_VERBOSE:
            raise _refused("Unable to parse 'log_verbose_level': must be a non-negative integer below 2^32")
    elif name == "log_format":
        if value not in FORMATS:
            raise _refused(f"Unable to parse 'log_format': must be one of {', '.join(FORMATS)}, got '{value}'")
    else:
        raise _refused(f"unknown log setting '{name}': known are {', '.join(Settings().told())}")
    return value


def _refused(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
