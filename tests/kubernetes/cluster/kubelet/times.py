"""The kubelet's only look at clocks: stamps as Kubernetes writes them, and waits that are nothing but time."""

from __future__ import annotations

import asyncio
import datetime as dt


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)  # noqa: TID251 - a kubelet stamps what it does with the time of its node


def stamp() -> str:
    """Now, to the second: metav1.Time."""
    return now().strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp() -> str:
    """Now, to the microsecond: metav1.MicroTime."""
    return now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def pause(seconds: float) -> None:
    """Lets a period go by: of a probe, a back-off, a lease."""
    await asyncio.sleep(seconds)  # noqa: TID251 - periods of a kubelet are waits by the clock and for nothing else
