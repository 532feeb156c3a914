"""What a benchmark says: machine facts, and rows of a figure beside its reference."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure. `ratio` is figure over reference, None where only latencies are told."""

    what: str
    figure: str
    reference: str = ""
    ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of rows and what they were measured with."""

    title: str
    method: str
    rows: Sequence[Row]


def median_of(runs: int, measure: Callable[[], float]) -> float:
    """The median of several runs of one measurement."""
    return statistics.median(measure() for _ in range(runs))


def machine() -> str:
    """Processor, cores, memory, Python: what the figures depend on."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def show(console: Console, section: Section) -> None:
    """Prints one section as a table."""
    table = Table(
        "measured", "figure", "reference", "ratio", title=section.title, caption=section.method, title_justify="left"
    )
    for row in section.rows:
        table.add_row(row.what, row.figure, row.reference, "" if row.ratio is None else f"{row.ratio:.2f}")
    console.print(table)
