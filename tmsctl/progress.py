"""Decides how waiting looks: bars on a terminal, one line for each change elsewhere. Always on stderr, never on stdout."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

from protos.tms.v1 import common_pb2, lease_pb2
from tmsctl import render, values


class Reporter(Protocol):
    """Shows how a lease comes along; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def update(self, lease: lease_pb2.Lease) -> None:
        """Shows the lease as it is now."""


def reporter() -> Reporter:
    """Bars if stderr is a terminal, lines otherwise."""
    return Bars() if sys.stderr.isatty() else Lines()


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def update(self, lease: lease_pb2.Lease) -> None:
        del lease


class Lines(Silence):
    """A line for each change of the lease's state or reason, and of each model's."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def update(self, lease: lease_pb2.Lease) -> None:
        self._say("", headline(lease))
        for status in lease.model_statuses:
            self._say(status.name, f"  {model_line(status)}")

    def _say(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


class Bars:
    """A line for the lease with the time that has gone, and a bar for each model's bytes."""

    def __init__(self) -> None:
        from rich import console, progress  # noqa: PLC0415 - only a terminal needs it, and it takes long to import

        self._progress = progress.Progress(
            progress.SpinnerColumn(finished_text="•"),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[said]}", markup=False),
            progress.TimeElapsedColumn(),
            console=console.Console(stderr=True),
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, lease: lease_pb2.Lease) -> None:
        settled = lease.state not in {
            lease_pb2.LEASE_STATE_PENDING,
            lease_pb2.LEASE_STATE_PLACED,
            lease_pb2.LEASE_STATE_LOADING,
        }
        self._show("", headline(lease), "", 1 if settled else 0, 1 if settled else None)
        for status in lease.model_statuses:
            ready = status.state == common_pb2.MODEL_STATE_READY
            total = status.total_bytes or (1 if ready else None)
            said = f"{_said(status)}{_pace(status)}"
            self._show(status.name, f"  {status.name}", said, total if ready else status.fetched_bytes, total)

    def _show(self, key: str, text: str, said: str, done: int | None, total: int | None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(values.clean(text), total=total, said=said)
        self._progress.update(
            self._tasks[key], description=values.clean(text), said=values.clean(said), completed=done, total=total
        )


def headline(lease: lease_pb2.Lease) -> str:
    """One line: which lease, its state, and why."""
    said = ": ".join(filter(None, (render.reason(lease), render.why(lease))))
    return values.clean(f"{lease.id} {render.state(lease)}{f' ({said})' if said else ''}")


def watched(lease: lease_pb2.Lease) -> str:
    """The headline, and how far the fetches are."""
    fetching = [each for each in lease.model_statuses if each.state == common_pb2.MODEL_STATE_FETCHING]
    return "; ".join((headline(lease), *(values.clean(f"{each.name} {_fetched(each)}") for each in fetching)))


def model_line(status: common_pb2.ModelStatus) -> str:
    """One line: which model, its state, and why."""
    return values.clean(f"{status.name} {_said(status)}")


def _pace(status: common_pb2.ModelStatus) -> str:
    """How fast a fetch goes, and how long it takes; nothing where that is not known."""
    if status.state != common_pb2.MODEL_STATE_FETCHING or not status.fetch_bytes_per_s:
        return ""
    rate = f", {values.format_size(status.fetch_bytes_per_s)}/s"
    return f"{rate}, {render.span(status.fetch_remaining)} left" if status.HasField("fetch_remaining") else rate


def _said(status: common_pb2.ModelStatus) -> str:
    state = common_pb2.ModelState.Name(status.state).removeprefix("MODEL_STATE_")
    size = f" {values.format_size(status.total_bytes)}" if status.total_bytes else ""
    problem = ": ".join(filter(None, (status.reason, status.message)))
    return f"{state}{size}{f' ({problem})' if problem else ''}"


def _fetched(status: common_pb2.ModelStatus) -> str:
    return f"{values.format_size(status.fetched_bytes)} of {values.format_size(status.total_bytes)}{_pace(status)}"
