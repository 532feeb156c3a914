"""Whether the worker's server is up, and how often it was restarted: pure, from the outcome of successive probes."""

from __future__ import annotations

from sidecar import errors

_STRIKES = 3


class Health:
    """One refusal or slow answer is no proof: two refusals or three silences are."""

    def __init__(self) -> None:
        self.up = False
        self.restarts = 0
        self.strikes = 0
        self.ever_up = False

    def missed(self, error: errors.ServerGone) -> bool:
        """A probe failed; True when that means the server went down just now."""
        self.strikes = min(self.strikes + (2 if error.refused else 1), _STRIKES)
        went_down = self.up and self.strikes >= _STRIKES
        self.up = self.up and not went_down
        return went_down

    def answered(self, *, empty: bool, lost: bool) -> bool:
        """A probe was answered by a server that holds nothing (`empty`), or lost what was ready; True for a restart."""
        restarted = empty and (lost or (self.ever_up and not self.up))
        self.restarts += restarted
        self.up = self.ever_up = True
        self.strikes = 0
        return restarted
