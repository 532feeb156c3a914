"""What goes wrong on purpose in the sidecar.

::

    SidecarError
    ├── ModelFailed    one model cannot be served now; carries the failure that is reported
    ├── Stopped        the work was called off; nobody is told
    ├── ServerGone     the worker's server does not answer
    │   └── Restricted it answers that it asks for something which this sidecar has not shown
    └── Unwanted       the control plane does not want this worker any more
"""

from __future__ import annotations

from sidecar import desired


class SidecarError(Exception):
    """The root; never raised itself."""


class ModelFailed(SidecarError):
    """One model cannot be served now. Its message names no path of this machine and no credential.

    `retry_after_s` is the pause that a store asked for, 0 where it asked for none.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {message}")
        self.failure = desired.Failure(reason, message, retryable)
        self.retry_after_s = retry_after_s


class Stopped(SidecarError):
    """The work was called off."""


class ServerGone(SidecarError):
    """The worker's server does not answer; `refused` when nothing listens where it should."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Restricted(ServerGone):
    """The server makes such calls for those alone who show a header; asking again does not help."""

    failure: desired.Failure

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)
        self.failure = desired.Failure("WorkerRestricted", message)


class Unwanted(SidecarError):
    """The control plane does not want this worker any more."""
