"""What one gRPC call may hold, beside the limits of its HTTP/2 connection."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of each message; it may take `message_timeout_s`, and a second for each `least_bytes_per_s` received."""

    message_bytes: int = dataclasses.field(default=2**31 - 1, metadata={"words": "a message as it comes"})
    inflated_bytes: int = dataclasses.field(default=2**28, metadata={"words": "a compressed message, once inflated"})
    message_timeout_s: float = dataclasses.field(
        default=60.0, metadata={"words": "how long a message may take to arrive, beside its bytes"}
    )
    least_bytes_per_s: int = dataclasses.field(
        default=2**14, metadata={"words": "slowest client: a second more for each so many bytes"}
    )
