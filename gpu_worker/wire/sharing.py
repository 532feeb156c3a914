"""Whether the clients of a front may use shared memory.

Who may register regions can have this process read and write any shared memory object that its user can open. So by
default only clients on this machine may, and the others only where the administrator says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_worker.engine import border


class Sharing:
    """The rule of one front."""

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed

    def check(self) -> None:
        """Raises InferenceError UNAVAILABLE where clients may not register, unregister or use regions."""
        if not self._allowed:
            raise border.InferenceError(
                border.ErrorKind.UNAVAILABLE,
                "client shared memory is not allowed here: the server needs --allow-client-shm=true",
            )

    def claim(self, inputs: Sequence[border.Tensor], outputs: Sequence[border.RequestedOutput]) -> int:
        """How many bytes the engine will copy from regions for a request with these tensors. Raises as `check`."""
        if not outputs and all([tensor.region is None for tensor in inputs]):  # noqa: C419 - a list costs half
            return 0
        shared = [tensor.region for tensor in inputs if tensor.region is not None]
        if shared or any(output.region is not None for output in outputs):
            self.check()
        return sum(region.byte_size for region in shared)
