"""What the instances of a model need of the rate limiter's resources, as its configuration says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpu_worker.engine import border, limiting
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_Config = model_config_pb2.ModelConfig
_GPU = model_config_pb2.ModelInstanceGroup.KIND_GPU


def turns(
    config: _Config, instances: Iterable[tuple[port.Device, port.Program]], limiter: limiting.Limiter | None
) -> limiting.Turns | None:
    """What the instances need, which are in the order of the groups; None where nothing limits them.

    Raises InferenceError INVALID_ARGUMENT for what can never be met.
    """
    if limiter is None:
        return None
    programs = [program for _, program in instances]
    demands = list(_demands(config))
    try:
        limiter.check(demands)
    except ValueError as error:
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"instance_group.rate_limiter of model '{config.name}': {error}"
        ) from None
    return limiting.Turns(limiter, {id(program): each for program, each in zip(programs, demands, strict=True)})


def _demands(config: _Config) -> Iterator[limiting.Demand]:
    """One for each instance."""
    for group in config.instance_group:
        devices: Sequence[int] = group.gpus if group.kind == _GPU else [0]
        for device in devices:
            demand = _demand(group.rate_limiter, str(device))
            yield from [demand] * group.count


def _demand(given: model_config_pb2.ModelRateLimiter, device: str) -> limiting.Demand:
    needs: dict[limiting.Resource, int] = {}
    for resource in given.resources:
        key = (resource.name, "" if getattr(resource, "global") else device)
        needs[key] = max(resource.count, needs.get(key, 0))
    return limiting.Demand(needs, max(1, given.priority))
