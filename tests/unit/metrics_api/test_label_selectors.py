"""Label selectors mean what they mean to Kubernetes."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from tms_server.metrics_api import selectors
from tms_server.model import errors

LABELS = {"lease": "l-1", "tier": "web", "quantile": "950", "example.com/kind": "a"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "lease=l-1",
        "lease==l-1",
        "lease = l-1 , tier=web",
        "tier!=batch",
        "missing!=x",
        "lease in (l-1,l-2)",
        "lease in ( l-2 , l-1 )",
        "tier notin (batch,  night)",
        "missing notin (a)",
        "lease",
        "!missing",
        "! missing",
        "quantile>900",
        "quantile < 951",
        "example.com/kind in (a)",
        "lease,tier,!in",
    ],
)
def test_what_matches(text: str) -> None:
    assert selectors.parse(text).matches(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "lease=l-2",
        "lease!=l-1",
        "lease in (l-2)",
        "lease notin (l-1)",
        "missing",
        "!lease",
        "missing=x",
        "missing in (x)",
        "lease=",
        "quantile>950",
        "tier>5",
        "missing<5",
        "lease=l-1,tier=batch",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not selectors.parse(text).matches(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "=x", "lease=l-1,", ",", "lease in l-1", "lease in (l-1", "lease in", "lease l-1", "lease=a b", "lease=(a)",
        "!lease=x", "lease=-a", "UPPER.COM/x=1", "a/b/c=1", "x>y", "x>1.5", "x" * 5000, "k" * 64, "()", "lease=a=b", "!",
    ],
)  # fmt: skip
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(errors.InvalidField, match="labelSelector"):
        selectors.parse(text)


def test_which_values_a_label_can_have() -> None:
    assert selectors.parse("lease in (a,b),lease in (b,c),tier!=x").only("lease") == frozenset({"b"})
    assert selectors.parse("tier=web").only("lease") is None
    assert selectors.parse("lease!=a").only("lease") is None


@hypothesis.given(st.text(alphabet="ab=!(),<> in\tnot1-./\u00fc", max_size=40))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    try:
        found = selectors.parse(text)
    except errors.InvalidField:
        return
    assert found.matches({}) in (True, False)
