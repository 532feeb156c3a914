"""All errors that the control plane raises on purpose.

::

    TmsError
    ├── InvalidField         a request's field is wrong; names it and the remedy
    ├── NotFound             the object named does not exist
    ├── AlreadyExists        the name or id is taken by something else
    ├── FailedPrecondition   the object is in a state that forbids the call
    ├── RevisionGone         a watch asks for history that is no longer kept
    ├── Unimplemented        understood, and not done by this server or backend
    ├── Unauthenticated      no valid credential
    ├── PermissionDenied     the caller may not
    ├── ResourceExhausted    a limit of this server is reached
    ├── IllegalTransition    a lease cannot go that way (a defect, or a stale writer)
    └── Retryable            the same call may succeed later
        ├── Unavailable      something needed does not answer
        └── Conflict         somebody else wrote first
"""

from __future__ import annotations


class TmsError(Exception):
    """The root; never raised itself."""


class InvalidField(TmsError):
    """A field of a request is wrong. `path` is dotted (``models[0].uri``), `remedy` a sentence that says what to send."""

    def __init__(self, path: str, remedy: str) -> None:
        super().__init__(f"{path}: {remedy}")
        self.path = path
        self.remedy = remedy


class NotFound(TmsError):
    """The named object does not exist."""


class AlreadyExists(TmsError):
    """The name or id is taken by something else."""


class FailedPrecondition(TmsError):
    """The object is in a state that forbids the call."""


class RevisionGone(TmsError):
    """The history asked for is no longer kept; list again."""


class Unimplemented(TmsError):
    """Understood, and not done by this server or backend."""


class Unauthenticated(TmsError):
    """No valid credential."""


class PermissionDenied(TmsError):
    """The caller may not."""


class ResourceExhausted(TmsError):
    """A limit of this server is reached."""


class IllegalTransition(TmsError):
    """A lease cannot go that way."""


class Retryable(TmsError):
    """The same call may succeed later."""


class Unavailable(Retryable):
    """Something needed does not answer."""


class Conflict(Retryable):
    """Somebody else wrote first."""
