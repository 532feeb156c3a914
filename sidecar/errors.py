"""What goes wrong on purpose in the sidecar.

::

    SidecarError
    ├── ModelFailed    one model cannot be served now; carries the failure that is reported
    ├── Stopped        the work was called off; nobody is told
    ├── ServerGone     the worker's server does not answer
    └── Unwanted       the control plane does not want this worker any more
"""

from __future__ import annotations

from sidecar import desired


class SidecarError(Exception):
    """The root; never raised itself."""


class ModelFailed(SidecarError):
    """One model cannot be served now. Its message names no path of this machine and no credential."""

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.failure = desired.Failure(reason, message, retryable)


class Stopped(SidecarError):
    """The work was called off."""


class ServerGone(SidecarError):
    """The worker's server does not answer; `refused` when nothing listens where it should."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Unwanted(SidecarError):
    """The control plane does not want this worker any more."""
