"""What time does to a connection: timeouts, signs of life, age (RFC 9113 section 5.4, gRPC's proposals A8 and A9). Pure.

Looked at now and then with the time as an argument. Must never cut a client off that makes progress.
"""

from __future__ import annotations

import math

from gpu_worker.http2 import codes
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2 import session as http2_session


class Watch:
    """Of one connection, from `now_s` on."""

    def __init__(self, session: http2_session.Session, limits: http2_limits.Limits, now_s: float) -> None:
        self._session = session
        self._limits = limits
        self._since_s = now_s
        self._old_at_s = now_s + limits.one_age_s()
        self._busy_at_s = now_s
        self._heard_at_s = now_s
        self._pinged_at_s = -math.inf
        self._pings = 0
        self._left_at_s = math.inf
        self._seen_received = -1
        self._seen_sent = 0
        self._seen_last = 0

    def look(self, now_s: float) -> None:
        """Does what is due."""
        session = self._session
        if session.ended:
            return
        self._note(now_s)
        if session.sender.held:
            self._hold(now_s)
        else:
            self._check_start(now_s)
            self._check_frame(now_s)
            self._check_streams(now_s)
            self._check_life(now_s)
        self._check_age(now_s)

    def _hold(self, now_s: float) -> None:
        """The socket is stuck, and so nothing is read: what the client says meanwhile is not late."""
        session = self._session
        self._since_s = self._heard_at_s = now_s
        if session.incomplete_since_s is not None:
            session.incomplete_since_s = now_s
        if session.pinged:
            self._pinged_at_s = now_s

    def _note(self, now_s: float) -> None:
        """What happened since the last look."""
        session = self._session
        if session.received != self._seen_received:
            self._seen_received = session.received
            self._heard_at_s = now_s
        if session.budget.sent != self._seen_sent:
            self._seen_sent = session.budget.sent
            self._pings = 0
        if session.streams or session.last_id != self._seen_last:
            self._seen_last = session.last_id
            self._busy_at_s = now_s

    def _check_start(self, now_s: float) -> None:
        session = self._session
        if not session.acknowledged and now_s >= self._since_s + self._limits.preface_timeout_s:
            session.fail(codes.ConnectionFault(codes.Code.SETTINGS_TIMEOUT, "settings were not answered in time"))

    def _check_frame(self, now_s: float) -> None:
        since_s = self._session.incomplete_since_s
        if since_s is not None and now_s >= since_s + self._limits.header_timeout_s:
            self._session.fail(codes.calm("a frame or a request's headers took too long to arrive"))

    def _check_streams(self, now_s: float) -> None:
        sender = self._session.sender
        before_s = now_s - self._limits.write_timeout_s
        for stream in tuple(sender.waiting.values()):
            # Behind others on a slow connection a stream is not to blame, as long as anything moves.
            if stream.progress_s <= before_s and (stream.window <= 0 or sender.progress_s <= before_s):
                fault = codes.StreamFault(codes.Code.CANCEL, "an answer was not taken in time")
                self._session.give_up(stream, fault)

    def _check_age(self, now_s: float) -> None:
        session, limits = self._session, self._limits
        if now_s >= self._old_at_s or now_s >= self._busy_at_s + limits.idle_timeout_s:
            session.go_away()
        if session.leaving is http2_session.Leaving.NO:
            return
        if self._left_at_s == math.inf:
            self._left_at_s = now_s
        if now_s >= self._left_at_s + limits.linger_s:
            session.take_leave()
        if now_s >= self._left_at_s + limits.age_grace_s:
            session.fail(codes.ConnectionFault(codes.Code.NO_ERROR, "the time for calls to end is over"))

    def _check_life(self, now_s: float) -> None:
        session, limits = self._session, self._limits
        if session.pinged:
            if now_s >= self._pinged_at_s + limits.keepalive_timeout_s:
                session.lose()
        elif self._may_ping() and now_s >= max(self._heard_at_s, self._pinged_at_s) + limits.keepalive_time_s:
            self._pings += 1
            self._pinged_at_s = now_s
            session.ask_for_life()

    def _may_ping(self) -> bool:
        limits = self._limits
        if limits.keepalive_pings and self._pings >= limits.keepalive_pings:
            return False
        return bool(self._session.streams) or limits.keepalive_without_calls
