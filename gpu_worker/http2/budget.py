"""How much of what is legal and useless a client may do (CVE-2019-9512 to -9518, CVE-2023-44487, CVE-2025-8671). Pure.

Counts frames that carry nothing, resets of either side, and pings. Must never count what a client does in answer to the
server: a call that runs wipes the slate for frames and pings.
"""

from __future__ import annotations

import math

from gpu_worker.http2 import codes
from gpu_worker.http2 import limits as http2_limits

# Window updates for a frame's stream and connection, and as many again.
_ANSWERS = 4
_MOST_CREDIT = -100_000


class Budget:
    """Of one connection."""

    def __init__(self, limits: http2_limits.Limits) -> None:
        self._limits = limits
        self.sent = 0
        """Frames of headers and data that went to the client: counted by who sends them."""
        self._idle_frames = 0
        self._seen_sent = 0
        self._resets = float(limits.resets)
        self._resets_at_s = -math.inf
        self._pinged_at_s = -math.inf
        self._strikes = 0

    def idle(self, what: str) -> None:
        """One frame that carries nothing. ConnectionFault when there were too many in a row."""
        if self.sent != self._seen_sent:
            self._look()
        self._idle_frames += 1
        if self._idle_frames > self._limits.idle_frames:
            raise codes.calm(f"more than {self._limits.idle_frames} frames that carry nothing, the last {what}")

    def _look(self) -> None:
        """What was sent since: what the client sends now may be about it, a few frames for each of its."""
        credit = (self.sent - self._seen_sent) * _ANSWERS
        self._seen_sent = self.sent
        self._idle_frames = max(min(self._idle_frames, 0) - credit, _MOST_CREDIT)
        self._pinged_at_s = -math.inf
        self._strikes = 0

    def reset(self, now_s: float) -> None:
        """One stream reset by the client, or because of it. ConnectionFault when there were too many of late."""
        limits = self._limits
        if self._resets_at_s > -math.inf:
            gained = (now_s - self._resets_at_s) * limits.resets_per_s
            self._resets = min(float(limits.resets), self._resets + gained)
        self._resets_at_s = now_s
        self._resets -= 1
        if self._resets < 0:
            raise codes.calm("too many streams were reset")

    def ping(self, now_s: float, *, calls: bool) -> None:
        """One ping that asks for an answer, as gRPC counts them (its proposal A8). ConnectionFault for one too many."""
        self.idle("PING")
        limits = self._limits
        permitted = calls or limits.keepalive_without_calls
        least_s = limits.ping_interval_s if permitted else limits.ping_interval_idle_s
        early = now_s < self._pinged_at_s + least_s
        self._pinged_at_s = now_s
        if early and limits.ping_strikes:
            self._strikes += 1
            if self._strikes > limits.ping_strikes:
                raise codes.ConnectionFault(codes.Code.ENHANCE_YOUR_CALM, "too_many_pings")
