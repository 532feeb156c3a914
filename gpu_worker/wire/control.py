"""Who may see and change what this server holds: with a token, only who shows it.

Clients of one model must not be able to replace or unload another's. The refusal is Triton's for a restricted API.
"""

from __future__ import annotations

import hmac

from gpu_worker.engine import border

HEADER = "tms-control-token"


class Control:
    """Guards the model repository calls of both fronts; an empty token lets everybody through."""

    def __init__(self, token: str = "") -> None:
        self._token = token.encode()

    def check(self, given: bytes) -> None:
        """Raises InferenceError UNAVAILABLE unless `given` is the token."""
        if not hmac.compare_digest(given if self._token else b"", self._token):
            message = f"This API is restricted, expecting header '{HEADER}'"
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, message)


OPEN = Control()
