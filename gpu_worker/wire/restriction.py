"""Groups of calls that only those may make who show a header: the administrator names the groups, the header, its value.

Must never tell, by words or by time, how near a wrong value was.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping

from gpu_worker.engine import border

APIS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
GRPC_PREFIX = "triton-grpc-protocol-"
"""What a metadata key begins with that opens a group over gRPC; the rest is the key that the flag gives."""


class Restriction:
    """The rule of one front. `kind` is what it calls a group: API or protocol."""

    def __init__(self, kind: str, keys: Mapping[str, tuple[str, str]]) -> None:
        """`keys` has, for each restricted API, the lower-case name of a header and its value."""
        self._kind = kind
        self._keys = {api: (name, value.encode()) for api, (name, value) in keys.items()}
        self.is_on = bool(keys)

    def check(self, api: str, shown: Callable[[str], bytes]) -> None:
        """`shown` gives the value of a header, empty where it was not sent. Raises InferenceError UNAVAILABLE."""
        found = self._keys.get(api)
        if found is not None and not hmac.compare_digest(shown(found[0]), found[1]):
            raise border.InferenceError(
                border.ErrorKind.UNAVAILABLE, f"This {self._kind} is restricted, expecting header '{found[0]}'"
            )


def parse(flag: str, values: Iterable[str], prefix: str = "") -> dict[str, tuple[str, str]]:
    """The keys of groups given as `api,api:header=value`. Raises InferenceError for unknown and repeated names."""
    keys: dict[str, tuple[str, str]] = {}
    for value in values:
        apis, colon, pair = value.partition(":")
        header, equals, wanted = pair.partition("=")
        # The value is a secret: what is wrong is told without it.
        told = f"--{flag}={apis}:{header}="
        if not (colon and equals and apis and header and wanted):
            raise _refused(f"{told} is not of the form API,API:HEADER=VALUE")
        for api in apis.split(","):
            if api not in APIS:
                raise _refused(f"{told} names the unknown API '{api}': known are {', '.join(APIS)}")
            if api in keys:
                raise _refused(f"{told} names the API '{api}', which is in a group already")
            keys[api] = (prefix + header.lower(), wanted)
    return keys


def _refused(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
