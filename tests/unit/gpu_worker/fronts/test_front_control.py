"""Who may list, load and unload."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from gpu_worker.engine import border
from gpu_worker.wire import control


@hypothesis.given(strategies.binary())
def test_without_a_token_everybody_may(given: bytes) -> None:
    assert control.OPEN.check(given) is None  # type: ignore[func-returns-value]  # the law is that nothing is raised


@hypothesis.given(strategies.text(min_size=1), strategies.binary())
def test_with_a_token_only_who_shows_it_may(token: str, given: bytes) -> None:
    guard = control.Control(token)
    guard.check(token.encode())
    hypothesis.assume(given != token.encode())
    with pytest.raises(border.InferenceError, match="restricted, expecting header"):
        guard.check(given)
