"""Models of the Python backend behind the port: a file `model.py` whose class `TritonPythonModel` runs in processes.

Decides what a model's code is told of itself and what its configuration's parameters mean. Never imports a model's code.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from gpu_worker.engine import border
from gpu_worker.python_backend import asking, instance, process
from gpu_worker.repository import numbers
from gpu_worker.runtime import devices, port

PARAMETERS = {
    "execute_timeout_s": "whole seconds after which an instance whose `execute` has not returned is killed and restarted; 0: none",
    "initialize_timeout_s": "whole seconds that loading the code and `initialize` may take; 0: no bound; 3600 where absent",
    "finalize_timeout_s": "whole seconds that `finalize` may take before the process is killed; 10 where absent",
}
"""What this server looks at of a Python model's `parameters`; the rest is the model's own."""

_LOAD_S, _GRACE_S = 3600, 10
_LAST_GRACE_S = 2.0
_MOST_S = 7 * 24 * 3600
_EXECUTION_ENV = "EXECUTION_ENV_PATH"

_T = TypeVar("_T")


class PythonRuntime:
    """Blocks in load threads only; processes belong to the event loop, whose engine answers what models ask of others."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submit: asking.Submit = _nobody
        self._keepers: set[instance.Keeper] = set()

    def serve(self, submit: asking.Submit) -> None:
        """Called on the event loop, before anything is loaded."""
        self._loop = asyncio.get_running_loop()
        self._submit = submit

    async def close(self) -> None:
        """Ends what has not ended with its model, within a few seconds."""
        await asyncio.gather(*(keeper.abandon(_LAST_GRACE_S) for keeper in set(self._keepers)))

    def gpus(self) -> int:
        return devices.cuda_devices()

    def uuid(self, device: port.Device) -> str:
        return devices.gpu_uuid(device.ordinal) if device.kind == "GPU" else ""

    def capability(self, device: port.Device) -> str:
        return devices.compute_capability(device.ordinal) if device.kind == "GPU" else ""

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        card = _card(options)
        config = json.loads(card.config)
        told = _told(model, device, card, config)
        bounds = _bounds(config)

        async def start() -> instance.Keeper:
            keeper = instance.Keeper(card.instance, told, bounds, self._submit, self._keepers.discard)
            self._keepers.add(keeper)
            try:
                await keeper.start()
            except BaseException:
                self._keepers.discard(keeper)
                raise
            return keeper

        keeper = self._on_loop(start())
        return instance.Program(keeper, _infos(config.get("input", ())), _infos(config.get("output", ())))

    def complete(self, model: pathlib.Path, options: port.SessionOptions) -> str | None:
        card = _card(options)
        config = json.loads(card.config)
        told = {**_told(model, port.Device(), card, config), "complete": card.config}
        found = self._on_loop(_completed(card.instance, told, _bounds(config)))
        return None if found is None else json.dumps(found)

    def _on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        loop = self._loop
        if loop is None or not loop.is_running():
            work.close()
            raise port.LoadFailed("no event loop serves Python models")
        return asyncio.run_coroutine_threadsafe(work, loop).result()


async def _completed(name: str, told: Mapping[str, Any], bounds: instance.Bounds) -> dict[str, Any] | None:
    found = process.Process(name, _unheard, _unheard)
    try:
        await found.start()
    except OSError as error:
        raise port.LoadFailed(f"the process that completes the configuration cannot be started: {error}") from None
    told = await found.set_up(told, bounds.load_s)
    await found.end(bounds.grace_s)
    if "error" in told:
        raise port.LoadFailed(str(told["error"]))
    completed: dict[str, Any] | None = told["config"]
    return completed


def _card(options: port.SessionOptions) -> port.Card:
    assert options.card is not None
    return options.card


def _told(model: pathlib.Path, device: port.Device, card: port.Card, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the process is to know."""
    if _EXECUTION_ENV in config.get("parameters", {}):
        raise port.LoadFailed(
            f"parameters.{_EXECUTION_ENV} is not supported: models run in the worker's own Python environment; install "
            "what the model imports there"
        )
    decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
    return {
        "path": str(model.absolute()),
        "complete": None,
        "about": {
            "model": card.model,
            "version": int(card.version),
            "directory": str(model.parent.absolute()),
            "instance": card.instance,
            "decoupled": decoupled,
        },
        "arguments": {
            "model_config": card.config,
            "model_instance_kind": card.kind.removeprefix("KIND_"),
            "model_instance_name": card.instance,
            "model_instance_device_id": str(device.ordinal),
            "model_repository": str(card.directory.absolute()),
            "model_version": card.version,
            "model_name": card.model,
        },
    }


def _bounds(config: Mapping[str, Any]) -> instance.Bounds:
    return instance.Bounds(
        load_s=_seconds(config, "initialize_timeout_s", _LOAD_S),
        execute_s=_seconds(config, "execute_timeout_s", 0),
        grace_s=_seconds(config, "finalize_timeout_s", _GRACE_S),
    )


def _seconds(config: Mapping[str, Any], key: str, default: int) -> float:
    """Raises InferenceError naming the parameter."""
    given = config.get("parameters", {}).get(key, {}).get("string_value")
    if given is None:
        return float(default)
    found = numbers.whole(f"parameters.{key}", given)
    if found > _MOST_S:
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"parameters.{key} must be at most {_MOST_S}, not {found}"
        )
    return float(found)


def _infos(declared: Any) -> list[port.TensorInfo]:
    """What the configuration says is what there is: the code is not asked."""
    return [
        port.TensorInfo(
            each["name"],
            each["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES"),
            None,
            optional=bool(each.get("optional", False)),
        )
        for each in declared
    ]


def _unheard(_told: object) -> None:
    """A process that only completes says nothing more."""


def _nobody(_requests: object) -> None:
    raise RuntimeError("no engine serves what models ask of others")
