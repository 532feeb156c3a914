"""Admission of requests: every check a request must pass before it may wait in a queue.

Pure. What is refused raises InferenceError INVALID_ARGUMENT in the words clients match on, led by the request's id. Only
the elements of BYTES tensors are left for later: taking them apart costs time that the event loop does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Mapping, Sequence

from gpu_worker.engine import border, regions, spec, tensors, work

_NO_REGIONS = regions.Regions()


def admit(
    model: spec.ModelSpec,
    request: border.InferRequest,
    loop: asyncio.AbstractEventLoop,
    arrival_ns: int,
    shared: regions.Regions = _NO_REGIONS,
) -> work.Work:
    """The request, ready to wait for its turn; raises InferenceError where it does not fit the model.

    What it has in shared memory is looked up in `shared` now: a region that is unregistered later does it no harm.
    """
    try:
        inputs = _inputs(model, request.inputs)
        size = _batch_size(model, inputs) if model.max_batch_size else 1
        outputs = _outputs(model, request.outputs)
    except border.InferenceError as error:
        raise with_id(error, request.id) from None
    # Told without the id, as regions are of no request.
    shared_inputs, shared_outputs = _shared_inputs(inputs, shared), _shared_outputs(request.outputs, shared)
    key = () if model.uniform else _key(model, inputs)
    admitted = work.Work(request, loop, arrival_ns, inputs, outputs, size, key, None, shared_inputs, shared_outputs)
    return scheduled(model, admitted)


def with_id(error: border.InferenceError, request_id: str) -> border.InferenceError:
    """The error, led by the id of the request it answers."""
    return border.InferenceError(error.kind, f"[request id: {request_id or '<id_unknown>'}] {error.message}")


def _inputs(model: spec.ModelSpec, given: Sequence[border.Tensor]) -> tuple[border.Tensor | None, ...]:
    by_name = {tensor.name: tensor for tensor in given}
    if len(by_name) != len(given):
        raise _invalid(f"an inference input is given twice for model '{model.name}'")
    known = model.inputs_by_name
    if not model.required <= len(given) <= len(known):
        raise _wrong_inputs(model, by_name)
    for tensor in given:
        expected = known.get(tensor.name)
        if expected is None:
            raise _invalid(f"unexpected inference input '{tensor.name}' for model '{model.name}'")
        _check(model, expected, tensor)
    inputs = tuple(by_name.get(tensor.name) for tensor in model.inputs)
    # As many as there are, each of them known and none twice: none is missing.
    complete = len(given) == len(known)
    if not complete and any(
        found is None and not wanted.optional for found, wanted in zip(inputs, model.inputs, strict=True)
    ):
        raise _wrong_inputs(model, by_name)
    return inputs


def _wrong_inputs(model: spec.ModelSpec, given: Iterable[str]) -> border.InferenceError:
    names = list(given)
    missing = [tensor.name for tensor in model.inputs if not tensor.optional and tensor.name not in names]
    wanted = str(model.required)
    if model.required != len(model.inputs):
        wanted = f"between {model.required} and {len(model.inputs)}"
    return _invalid(
        f"expected {wanted} inputs but got {len(names)} inputs for model '{model.name}'. Got input(s) {names}, but "
        f"missing required input(s) {missing}. Please provide all required input(s)."
    )


def _check(model: spec.ModelSpec, expected: spec.TensorSpec, tensor: border.Tensor) -> None:
    if tensor.datatype != expected.datatype:
        raise _invalid(
            f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{model.name}' expects "
            f"'{expected.datatype}'"
        )
    dims = tensor.shape[1:] if model.max_batch_size else tensor.shape
    if not expected.admits(dims) or (model.max_batch_size and not tensor.shape):
        raise _unexpected_shape(model, expected, tensor)
    try:
        count = tensors.element_count(tensor.shape)
    except ValueError as error:
        raise _invalid(f"invalid shape for input '{tensor.name}' for model '{model.name}': {error}") from None
    _check_size(model, tensor, count, expected.type.item_bytes)


def _unexpected_shape(model: spec.ModelSpec, expected: spec.TensorSpec, tensor: border.Tensor) -> border.InferenceError:
    wanted = (-1, *expected.dims) if model.max_batch_size else expected.dims
    return _invalid(
        f"unexpected shape for input '{tensor.name}' for model '{model.name}'. Expected {_listed(wanted)}, got "
        f"{_listed(tensor.shape)}"
    )


def _check_size(model: spec.ModelSpec, tensor: border.Tensor, count: int, item_bytes: int) -> None:
    given_bytes = tensors.size_bytes(tensor.data) if tensor.region is None else tensor.region.byte_size
    if item_bytes:
        if given_bytes != count * item_bytes:
            raise _invalid(
                f"input byte size mismatch for input '{tensor.name}' for model '{model.name}'. Expected "
                f"{count * item_bytes}, got {given_bytes}"
            )
    elif given_bytes < 4 * count or (given_bytes and not count):
        raise _invalid(
            f"expected {count} string elements for inference input '{tensor.name}' for model '{model.name}', got "
            f"{given_bytes} bytes"
        )


def _batch_size(model: spec.ModelSpec, inputs: Iterable[border.Tensor | None]) -> int:
    sizes = {tensor.shape[0] for tensor in inputs if tensor is not None}
    if len(sizes) > 1:
        raise _invalid(f"inputs have different batch sizes {sorted(sizes)} for model '{model.name}'")
    size = sizes.pop() if sizes else 1
    if size > model.max_batch_size:
        raise _invalid(f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'")
    if size < 1:
        raise _invalid(f"inference request batch-size must be >= 1 for '{model.name}'")
    return size


def _outputs(
    model: spec.ModelSpec, wanted: Sequence[border.RequestedOutput]
) -> tuple[border.RequestedOutput, ...] | None:
    if not wanted:
        return None
    for output in wanted:
        known = model.outputs_by_name.get(output.name)
        if known is None:
            raise _invalid(f"unexpected inference output '{output.name}' for model '{model.name}'")
        if output.classification < 0:
            raise _invalid(f"classification of output '{output.name}' must not be negative")
        if output.classification and output.region:
            raise _invalid(f"classification of output '{output.name}' cannot be written to shared memory")
        if output.classification and known.datatype in {"BYTES", "BOOL", "FP16", "BF16"}:
            raise _invalid(
                f"class result not available for output '{output.name}' due to unsupported type '{known.datatype}'"
            )
    if len({output.name for output in wanted}) != len(wanted):
        raise _invalid(f"an inference output is requested twice for model '{model.name}'")
    return tuple(wanted)


def _shared_inputs(inputs: Iterable[border.Tensor | None], shared: regions.Regions) -> Mapping[int, regions.Part]:
    parts = {
        index: shared.part(tensor.region)
        for index, tensor in enumerate(inputs)
        if tensor is not None and tensor.region is not None
    }
    return parts or work.NOTHING


def _shared_outputs(outputs: Iterable[border.RequestedOutput], shared: regions.Regions) -> Mapping[str, regions.Part]:
    parts = {output.name: shared.part(output.region) for output in outputs if output.region is not None}
    return parts or work.NOTHING


def _key(model: spec.ModelSpec, inputs: Iterable[border.Tensor | None]) -> Hashable:
    start = 1 if model.max_batch_size else 0
    return tuple(
        None if tensor is None else () if wanted.ragged else tensor.shape[start:]
        for wanted, tensor in zip(model.inputs, inputs, strict=True)
    )


def scheduled(model: spec.ModelSpec, admitted: work.Work) -> work.Work:
    """The same with its level, and the moments at which it is delayed or refused."""
    priorities, request, policy = model.priorities, admitted.request, model.queue
    if priorities.levels:
        admitted.level = priorities.level(request.parameters.get("priority"))
        policy = priorities.policies.get(admitted.level, policy)
    timeout_us = _timeout_us(policy, request)
    patience_ns = admitted.arrival_ns + timeout_us * 1000 if timeout_us else None
    client_ns = None if request.deadline_s is None else int(request.deadline_s * 1e9)
    if policy.delays:
        admitted.deadline_ns, admitted.delay_ns = client_ns, patience_ns
    else:
        admitted.deadline_ns = min((end for end in (client_ns, patience_ns) if end is not None), default=None)
    return admitted


def _timeout_us(policy: spec.QueuePolicy, request: border.InferRequest) -> int:
    """How long the queue may keep it; 0 for ever."""
    if policy.allow_override:
        asked = request.parameters.get("timeout", 0)
        # A client may only ask for less patience than the model's owner grants, which for Triton is not less than for ever.
        if isinstance(asked, int) and 0 < asked < policy.timeout_us:
            return asked
    return policy.timeout_us


def _listed(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
