"""Readings of this machine: CPU and memory through /proc, NVIDIA GPUs through NVML where it is there.

Decides nothing. Must never be called on the event loop: drivers may take their time.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

log = structlog.get_logger(__name__)

_PROC = pathlib.Path("/proc")
_IDLE = (3, 4)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a family; kind is `gauge` or `counter`."""

    family: str
    words: str
    value: float
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kind: str = "gauge"


# Family, words, kind, and how NVML tells it of a device.
_GPU: tuple[tuple[str, str, str, Callable[[Any, Any], float]], ...] = (
    (
        "nv_gpu_utilization",
        "GPU utilization rate [0.0 - 1.0)",
        "gauge",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    (
        "nv_gpu_memory_total_bytes",
        "GPU total memory, in bytes",
        "gauge",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        "nv_gpu_memory_used_bytes",
        "GPU used memory, in bytes",
        "gauge",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        "nv_gpu_power_usage",
        "GPU power usage in watts",
        "gauge",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    (
        "nv_gpu_power_limit",
        "GPU power management limit in watts",
        "gauge",
        lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    ),
    (
        "nv_energy_consumption",
        "GPU energy consumption in joules since the driver was loaded",
        "counter",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,
    ),
)


class Machine:
    """Reads what is asked for and there; used by one thread at a time."""

    def __init__(self, *, gpu: bool, cpu: bool) -> None:
        self._cpu = cpu
        self._nvml = _nvml() if gpu else None
        self._busy_total = _cpu_ticks() if cpu else (0, 0)

    def read(self) -> list[Reading]:
        """All readings; what cannot be read is left out."""
        return [*(self._read_cpu() if self._cpu else ()), *self._read_gpus()]

    def _read_cpu(self) -> Iterator[Reading]:
        busy, total = _cpu_ticks()
        busy_then, total_then = self._busy_total
        self._busy_total = busy, total
        share = (busy - busy_then) / (total - total_then) if total > total_then else 0.0
        yield Reading("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", min(max(share, 0.0), 1.0))
        memory = _memory_bytes()
        total_bytes = memory.get("MemTotal", 0)
        used_bytes = total_bytes - memory.get("MemAvailable", 0)
        yield Reading("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", total_bytes)
        yield Reading("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", used_bytes)

    def _read_gpus(self) -> Iterator[Reading]:
        nvml = self._nvml
        if nvml is None:
            return
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            labels = {"gpu_uuid": _text(nvml.nvmlDeviceGetUUID(gpu))}
            for family, words, kind, tell in _GPU:
                try:
                    yield Reading(family, words, tell(nvml, gpu), labels, kind)
                except nvml.NVMLError:
                    # Not every device tells everything; a partition of one tells little.
                    log.debug("metrics.gpu_silent", family=family, gpu=index)


def _nvml() -> Any:
    """NVML, ready to be asked; None without the package or a driver."""
    try:
        import pynvml  # noqa: PLC0415 - there only where GPUs are
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("metrics.no_gpu", reason=str(error))
        return None
    return pynvml


def _cpu_ticks() -> tuple[int, int]:
    """Busy and all ticks of all CPUs since boot; zeros where the kernel does not tell."""
    try:
        ticks = [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(tick for index, tick in enumerate(ticks) if index not in _IDLE), sum(ticks)


def _memory_bytes() -> dict[str, int]:
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
