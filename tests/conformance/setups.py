"""How the two servers are started: the flags of each setup that cases ask for. Pure."""

from __future__ import annotations

import dataclasses
import pathlib

from tests.conformance import models


@dataclasses.dataclass(frozen=True)
class Setup:
    """The flags that both servers get; `{folder}` stands for a folder of the server's own.

    `models` are those in the repository, all where none is named.
    """

    flags: tuple[str, ...]
    models: tuple[str, ...] = ()

    def filled(self, folder: pathlib.Path) -> list[str]:
        """The flags for a server whose folder is `folder`."""
        return [flag.replace("{folder}", str(folder)) for flag in self.flags]


def _explicit(*names: str) -> tuple[str, ...]:
    loaded = (f"--load-model={name}" for name in names)
    return ("--model-control-mode=explicit", "--disable-auto-complete-config", *loaded)


_TWO = ("id_fp32", "add_sub")

SETUPS = {
    "plain": Setup(_explicit(*models.at_start())),
    # For what ends Triton: it starts again for each such case.
    "fatal": Setup(_explicit("id_bytes"), ("id_bytes",)),
    "none": Setup(("--model-control-mode=none", "--disable-auto-complete-config"), _TWO),
    "poll": Setup(("--model-control-mode=poll", "--repository-poll-secs=3600", "--disable-auto-complete-config"), _TWO),
    "restricted": Setup(
        (
            *_explicit(*_TWO),
            "--http-restricted-api=model-repository,statistics:admin-key=secret",
            "--grpc-restricted-protocol=model-repository,statistics:admin-key=secret",
        ),
        _TWO,
    ),
    "restricted-all": Setup(
        (
            *_explicit(*_TWO),
            *(
                f"--{flag}=health,metadata,inference,shared-memory,model-config,trace,logging:key=open"
                for flag in ("http-restricted-api", "grpc-restricted-protocol")
            ),
        ),
        _TWO,
    ),
    "forwarding": Setup(
        (*_explicit(*_TWO), "--http-header-forward-pattern=mine-.*", "--grpc-header-forward-pattern=mine-.*"), _TWO
    ),
    "caching": Setup((*_explicit(*_TWO), "--cache-config=local,size=1048576"), (*_TWO, "cached")),
    "limiting": Setup(
        (*_explicit(*_TWO), "--rate-limit=execution_count", "--rate-limit-resource=R:2"), (*_TWO, "limited", "greedy")
    ),
    "compressing": Setup((*_explicit(*_TWO), "--grpc-infer-response-compression-level=high"), _TWO),
}
