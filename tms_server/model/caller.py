"""Who asks. Every service call receives one; nothing reads it from elsewhere."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Identity behind a call: a certificate's subject under mutual TLS, else ``anonymous``."""

    name: str


ANONYMOUS = Caller("anonymous")
SYSTEM = Caller("system")
