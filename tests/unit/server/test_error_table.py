from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tms_server.api import errors as table
from tms_server.model import errors


def leaves(kind: type[errors.TmsError]) -> Iterator[type[errors.TmsError]]:
    # What an adapter makes for itself has the code of what it is made from.
    below = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


@pytest.mark.parametrize("leaf", list(leaves(errors.TmsError)))
def test_every_leaf_of_the_tree_has_a_code_of_its_own(leaf: type[errors.TmsError]) -> None:
    assert leaf in table.CODES


def test_no_two_errors_that_callers_cause_share_a_code() -> None:
    codes = [code for kind, code in table.CODES.items() if kind is not errors.IllegalTransition]
    assert len(set(codes)) == len(codes)


def test_what_nobody_foresaw_tells_nothing_but_the_request_id() -> None:
    told = table.status(ZeroDivisionError("/etc/secret"), "r-1")
    assert told.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(told)
    assert "r-1" in told.message


def test_an_illegal_transition_is_a_defect_of_the_server_and_stays_inside() -> None:
    told = table.status(errors.IllegalTransition("lease l-1 is PENDING"), "r-1")
    assert told.code == grpc.StatusCode.INTERNAL.value[0]
    assert "PENDING" not in told.message
