"""The servers of the suite come and go without a trace, and say why when they do not come."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil
import pytest

from tests.conformance import servers
from tests.conformance.triton import environment

pytestmark = pytest.mark.skipif(bool(environment.unfit()), reason=environment.unfit() or "none")

_EXPLICIT = ("--model-control-mode=explicit", "--load-model=id_fp32")
_SHARED = pathlib.Path("/dev/shm")


def test_nothing_is_left_of_a_server(start: Callable[..., AbstractContextManager[servers.Server]]) -> None:
    before = set(_SHARED.iterdir())
    others = set(psutil.Process().children(recursive=True))
    with start(*_EXPLICIT):
        started = set(psutil.Process().children(recursive=True)) - others
        assert started
    assert not [process for process in started if process.is_running()]
    assert not [path for path in set(_SHARED.iterdir()) - before if path.name.startswith(servers.SHARED_PREFIX)]


def test_a_server_that_cannot_start_says_why(start: Callable[..., AbstractContextManager[servers.Server]]) -> None:
    with (
        pytest.raises(servers.StartFault, match="absent"),
        start("--model-control-mode=explicit", "--load-model=absent"),
    ):
        pass
