"""Looks all models of a lease up in their repositories, for a bounded time and never inside a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tms_server.model import errors, lease, source
from tms_server.ports import resolver

DEFINITE = (errors.NotFound, errors.PermissionDenied, errors.InvalidField, errors.Unimplemented)
"""Answers that do not change by asking again."""


async def resolve(
    asked: resolver.Resolver, models: Sequence[lease.ModelReference], bound_s: float
) -> tuple[source.ModelSource, ...]:
    """The files of each model, in order. One of `DEFINITE` names the model; Unavailable when there was no answer in time."""
    try:
        async with asyncio.timeout(bound_s):
            return await _together(asked, models)
    except TimeoutError:
        raise errors.Unavailable(f"the model repository did not answer within {bound_s:g} s") from None


async def _together(asked: resolver.Resolver, models: Sequence[lease.ModelReference]) -> tuple[source.ModelSource, ...]:
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_one(asked, index, model)) for index, model in enumerate(models)]
    except BaseExceptionGroup as failures:
        raise _first(failures) from None
    return tuple(each.result() for each in running)


async def _one(asked: resolver.Resolver, index: int, model: lease.ModelReference) -> source.ModelSource:
    path = f"models[{index}]"
    try:
        return await asked.resolve(model)
    except errors.InvalidField as error:
        raise errors.InvalidField(f"{path}.{error.path}", error.remedy) from error
    except (errors.NotFound, errors.PermissionDenied, errors.Unimplemented) as error:
        raise type(error)(f"{path}.uri: {str(error).removeprefix('uri: ')}") from error


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """A definite answer outweighs silence: asking again would not help."""
    flat = [each for each in failures.exceptions if not isinstance(each, BaseExceptionGroup)]
    return next((each for each in flat if isinstance(each, DEFINITE)), flat[0] if flat else failures)
