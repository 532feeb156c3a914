"""Answers kept for requests that are asked again: the least recently used go first, the bytes kept are bounded.

Two requests are the same where model version, inputs and wanted outputs are, byte for byte: a digest that nobody can forge
collisions of stands for them. A version that is loaded anew shares nothing with what it was before. What lies in shared
memory is neither looked up nor kept, as only its owner knows when it changes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Sequence

from gpu_worker.engine import border, spec, tensors, work

# What an entry takes beside the data: so that empty tensors are bounded too.
_ENTRY_BYTES = 512
_TENSOR_BYTES = 256

_tokens = itertools.count()


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    outputs: tuple[border.Tensor, ...]
    size_bytes: int


class Store:
    """The entries by key. Pure: not safe for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: collections.OrderedDict[bytes, _Entry] = collections.OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[border.Tensor, ...] | None:
        """What is kept under the key, now the last to go."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.outputs

    def put(self, key: bytes, outputs: Sequence[border.Tensor]) -> bool:
        """Keeps a copy of the outputs, false where they are larger than all there is room for. What is there stays."""
        size_bytes = _size_bytes(outputs)
        if size_bytes > self._most_bytes:
            return False
        if key not in self._entries:
            self._entries[key] = _Entry(tuple(map(_copied, outputs)), size_bytes)
            self.used_bytes += size_bytes
            self._shrink()
        return True

    def _shrink(self) -> None:
        while self.used_bytes > self._most_bytes:
            _, gone = self._entries.popitem(last=False)
            self.used_bytes -= gone.size_bytes


class Cache:
    """One for all models of a process; safe for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._lock = threading.Lock()
        self._store = Store(most_bytes)

    def get(self, key: bytes) -> tuple[border.Tensor, ...] | None:
        with self._lock:
            return self._store.get(key)

    def put(self, key: bytes, outputs: Sequence[border.Tensor]) -> None:
        with self._lock:
            self._store.put(key, outputs)


class Share:
    """The cache as one load of a model version sees it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._token = next(_tokens)

    def find(self, model: spec.ModelSpec, each: work.Work) -> border.InferResponse | None:
        """The answer to this request, if it is there; remembers the request's key."""
        each.cache_key = key(self._token, each)
        outputs = self._cache.get(each.cache_key)
        if outputs is None:
            return None
        # Tensors of its own: whoever answers may do with them what it likes.
        given = [dataclasses.replace(one) for one in outputs]
        return border.InferResponse(model.name, model.version, each.request.id, given)

    def keep(self, each: work.Work, answer: border.InferResponse) -> None:
        """For a request that was looked for before. What says more than its outputs is not kept, lest it lose that."""
        if each.cache_key is not None and not answer.parameters:
            self._cache.put(each.cache_key, answer.outputs)


def cacheable(each: work.Work) -> bool:
    return not (each.shared_inputs or each.shared_outputs)


def input_bytes(each: work.Work) -> int:
    """How much there is to look at."""
    return sum(tensors.size_bytes(tensor.data) for tensor in each.inputs if tensor is not None)


def key(token: int, each: work.Work) -> bytes:
    """BLAKE2b (RFC 7693) over all that the answer depends on, 32 bytes; `token` tells the load of the model version."""
    given = [tensor for tensor in each.inputs if tensor is not None]
    told = [(tensor.name, tensor.datatype, tensor.shape, tensors.size_bytes(tensor.data)) for tensor in given]
    wanted = None if each.outputs is None else [(output.name, output.classification) for output in each.outputs]
    head = repr((token, told, wanted)).encode()
    digest = hashlib.blake2b(len(head).to_bytes(8, "little") + head, digest_size=32)
    for tensor in given:
        digest.update(tensor.data)
    return digest.digest()


def _copied(tensor: border.Tensor) -> border.Tensor:
    """With data of its own: the answer's may be a slice of a whole batch's."""
    return border.Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data))


def _size_bytes(outputs: Sequence[border.Tensor]) -> int:
    return _ENTRY_BYTES + sum(_TENSOR_BYTES + tensors.size_bytes(tensor.data) for tensor in outputs)
