"""The border between fronts and engine: all that the two sides say to each other.

Fronts parse and answer only. They hand lists of requests to `Engine.submit`, which never blocks and never raises: every
request gets its answer through its `reply`, on the event loop that submitted it. Tensors travel as their little-endian,
row-major wire bytes in buffers that own their memory, so that no side copies; or they lie in shared memory that the
engine has registered, and only their place is told. Late replies to cancelled calls are dropped by the front.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from protos.inference.v2 import model_config_pb2

Parameter = bool | int | float | str
LogSetting = bool | int | str
Buffer = bytes | bytearray | memoryview


class ErrorKind(enum.Enum):
    """Class of a failure; the fronts map it to HTTP and gRPC status by one table each."""

    UNKNOWN = "unknown"
    INTERNAL = "internal"
    NOT_FOUND = "not found"
    INVALID_ARGUMENT = "invalid argument"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    ALREADY_EXISTS = "already exists"
    CANCELLED = "cancelled"


class InferenceError(Exception):
    """A failure that a client is told about, in words it can match on."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def bare(self) -> InferenceError:
        """The same without the frames that raised it: kept as an answer, they would hold the request and themselves."""
        return InferenceError(self.kind, self.message)


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A place in registered shared memory: the region's name, and bytes `offset` to `offset + byte_size` of it."""

    name: str
    offset: int
    byte_size: int


NO_PARAMETERS: Mapping[str, Parameter] = types.MappingProxyType({})


@dataclasses.dataclass(slots=True)
class Tensor:
    """A named tensor. `data` is its wire form; BYTES elements are each preceded by a 4-byte little-endian length.

    With `region` the wire form lies there, and `data` is empty.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    region: Region | None = None


@dataclasses.dataclass(slots=True)
class RequestedOutput:
    """An output asked for; `classification` 0 means the tensor itself, k the best k classes.

    With `region` the engine writes it there before it answers, and the answer's tensor has that region and no data.
    """

    name: str
    classification: int = 0
    region: Region | None = None


@dataclasses.dataclass(slots=True)
class InferResponse:
    """One answer to a request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]
    parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=lambda: NO_PARAMETERS)


class Reply(Protocol):
    """How one request is answered: called once with `final`, before that any number of times without."""

    def __call__(self, answer: InferResponse | InferenceError, *, final: bool = True) -> None: ...


# Not frozen: that would double the cost of making one, for every request.
@dataclasses.dataclass(slots=True)
class Received:
    """When a front, `HTTP` or `GRPC`, began to receive a request and had it whole; monotonic nanoseconds.

    `parent` is what the client's `traceparent` said (W3C Trace Context), where traces are spans.
    """

    front: str
    start_ns: int
    end_ns: int
    parent: str = ""


@dataclasses.dataclass(slots=True)
class InferRequest:
    """One inference as a front understood it.

    `version` is empty for "highest served". `outputs` empty means all. `deadline_s` is on the monotonic clock of the
    event loop, None for never. A front calls `cancel` when its client has gone; the engine drops such a request before
    it runs. Once submitted the request is the engine's, which may take its inputs away and hear of the cancellation
    through `on_cancel`. Requests that share a `form` differ in the bytes of their tensors only, not in how many these are,
    and have nothing in shared memory; None says nothing.
    """

    model: str
    version: str
    id: str
    inputs: list[Tensor]
    outputs: list[RequestedOutput]
    parameters: Mapping[str, Parameter]
    reply: Reply
    deadline_s: float | None = None
    cancelled: bool = False
    on_cancel: Callable[[], None] | None = None
    received: Received | None = None
    form: object | None = None

    def cancel(self) -> None:
        """Nobody waits for the answer any more. Harmless once it is there, and when called again."""
        if not self.cancelled:
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()


@dataclasses.dataclass(frozen=True, slots=True)
class TensorMetadata:
    """Name, datatype and shape (-1: variable) of a model's input or output, the batch dimension included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a client needs to know to call a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name, version and the extensions this server speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class IndexEntry:
    """A model in a repository; version, state and reason are empty for one never touched."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SystemRegion:
    """Registered bytes of a POSIX shared memory object: `byte_size` of them, from `offset` of the object `key` on."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class CudaRegion:
    """Registered bytes of a GPU's memory, exported by another process."""

    name: str
    device_id: int
    byte_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Compute durations of the executions of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """Requests by how long they took: `counts` between the `bounds` in milliseconds, the last above all; their sum."""

    bounds_ms: tuple[float, ...]
    counts: tuple[int, ...]
    total_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """Microseconds of all requests: how many, their sum, and quantiles (share, value) of the last minute."""

    count: int
    total_us: int
    quantiles: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """Counters of one model version since its load.

    `inference_count` counts items, `execution_count` model runs, `success.count` requests. `failures` counts requests by
    reason: REJECTED, CANCELED, BACKEND, OTHER. `in_flight` requests have no answer yet, `pending` of them wait for an
    instance. Where answers are `cached`, hits are successes without an inference. `latency` counts successful requests by how long they took, in the buckets between
    `statistics.LATENCY_BOUNDS_US`, the last for what is above all. `tags` are the model's own labels,
    `gpu_uuid` names the one GPU that all its instances are on, if so.
    `first_response` and `summaries` (by what is summarised: request, queue, compute_input, compute_infer, compute_output)
    are there where they are asked for.
    """

    name: str
    version: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: tuple[BatchStatistics, ...]
    pending: int
    failures: Mapping[str, int]
    cached: bool = False
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    in_flight: int = 0
    latency: tuple[int, ...] = ()
    memory_bytes: Mapping[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    load_duration_s: float = 0.0
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gpu_uuid: str = ""
    first_response: Histogram | None = None
    summaries: Mapping[str, Summary] = dataclasses.field(default_factory=dict)


class Engine(Protocol):
    """All that a front may ask. Lookups raise InferenceError; nothing here blocks the event loop.

    The engine may be another process: arguments and results are plain values, and all that needs its answer is awaited.
    """

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Takes the requests in; each is answered on this event loop, maybe before this returns."""
        ...

    async def live(self) -> bool: ...

    async def ready(self) -> bool: ...

    async def server_metadata(self) -> ServerMetadata: ...

    async def model_ready(self, name: str, version: str) -> bool: ...

    async def model_metadata(self, name: str, version: str) -> ModelMetadata: ...

    async def model_config(self, name: str, version: str) -> model_config_pb2.ModelConfig: ...

    async def statistics(self, name: str, version: str) -> Sequence[ModelStatistics]:
        """Of one model (all versions, or one), or of all models when `name` is empty."""
        ...

    async def index(self, *, ready: bool) -> Sequence[IndexEntry]: ...

    async def load(self, name: str, parameters: Mapping[str, Parameter | bytes]) -> None:
        """Returns once the model is ready. `config` (JSON) and `file:<path>` (bytes) are the known parameters."""
        ...

    async def leave(self, model: str) -> None:
        """Clients of the model (empty: all clients) are to go elsewhere from now on; it serves as before.

        Holds until the model is loaded again; an unload begins with it.
        """
        ...

    def leaving(self, model: str) -> bool:
        """Whether the model's clients are to go elsewhere; asked with every answer, so known without waiting."""
        ...

    async def unload(self, name: str, *, unload_dependents: bool) -> None:
        """Returns once the unload has begun; requests in flight finish first."""
        ...

    async def system_regions(self, name: str) -> Sequence[SystemRegion]:
        """All, or the one of that name: NOT_FOUND where there is none of this kind."""
        ...

    async def register_system_region(self, region: SystemRegion) -> None:
        """INVALID_ARGUMENT for what cannot be opened or is too small, ALREADY_EXISTS for a name in use, of any kind."""
        ...

    async def unregister_system_region(self, name: str) -> None:
        """All where `name` is empty; an unknown one is no error. Requests in flight keep what they use."""
        ...

    async def cuda_regions(self, name: str) -> Sequence[CudaRegion]:
        """As `system_regions`."""
        ...

    async def register_cuda_region(self, region: CudaRegion, handle: bytes) -> None:
        """`handle` is the 64-byte cudaIpcMemHandle_t. As `register_system_region`; UNSUPPORTED without GPUs."""
        ...

    async def unregister_cuda_region(self, name: str) -> None:
        """As `unregister_system_region`."""
        ...

    async def log_settings(self, changes: Mapping[str, LogSetting]) -> Mapping[str, LogSetting]:
        """Changes the given settings of the log, if any, and returns all, by their names in the logging extension."""
        ...

    async def trace_settings(
        self, model: str, changes: Mapping[str, Sequence[str] | None]
    ) -> Mapping[str, Sequence[str]]:
        """Changes the given settings of the traces of one model, or of all where `model` is empty, and returns all.

        By their names in the trace extension, each a list of texts; None clears one.
        """
        ...
