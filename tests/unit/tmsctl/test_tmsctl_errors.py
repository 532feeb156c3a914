"""Each status has an exit code; details of an error become lines that name the field and the remedy."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, message
from google.rpc import (
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from tmsctl import errors


class Refusal(grpc.RpcError, grpc.Call):
    """What grpc raises, with a status of our choice."""

    def __init__(self, code: grpc.StatusCode, text: str, *details: message.Message) -> None:
        self._code, self._text = code, text
        status = status_pb2.Status(code=code.value[0], message=text)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        packed_status: tuple[str, str | bytes] = ("grpc-status-details-bin", status.SerializeToString())
        self._trailer = (packed_status,) if details else ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._trailer

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


def told(*given: object) -> list[str]:
    return list(errors.from_rpc(Refusal(*given), "h:1").lines())  # type: ignore[arg-type] # passed on as they are


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_an_exit_code_of_the_table(code: grpc.StatusCode) -> None:
    problem = errors.from_rpc(Refusal(code, "text"), "h:1")
    assert problem.code in errors.MEANINGS
    assert problem.code != errors.Exit.OK


def test_every_exit_code_has_a_meaning() -> None:
    assert set(errors.MEANINGS) == set(errors.Exit)


def test_codes_of_grpc_are_all_in_the_table() -> None:
    assert set(errors._BY_CODE) == set(code_pb2.Code.keys()) - {"OK"}


def test_wrong_fields_are_named_each_on_a_line() -> None:
    wrong = error_details_pb2.BadRequest()
    wrong.field_violations.add(field="models[0].uri", description="write model://…")
    wrong.field_violations.add(field="priority", description="write -1000 to 1000")
    lines = told(grpc.StatusCode.INVALID_ARGUMENT, "invalid", wrong)
    assert lines == ["error: models[0].uri: write model://…", "error: priority: write -1000 to 1000"]


def test_help_is_the_remedy() -> None:
    link = error_details_pb2.Help(links=[error_details_pb2.Help.Link(description="release a lease first")])
    lines = told(grpc.StatusCode.FAILED_PRECONDITION, "pool in use", link)
    assert lines == ["error: pool in use", "  release a lease first"]


def test_details_of_unknown_kind_are_passed_over() -> None:
    assert told(grpc.StatusCode.NOT_FOUND, "no lease", status_pb2.Status()) == ["error: no lease"]


def test_details_that_contradict_the_status_are_passed_over() -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "no lease", error_details_pb2.BadRequest())
    refusal._text = "another text"
    assert list(errors.from_rpc(refusal, "h:1").lines()) == ["error: another text"]


def test_a_silent_server_is_named_with_a_way_on() -> None:
    problem = errors.from_rpc(Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "h:1")
    assert problem.code == errors.Exit.UNAVAILABLE
    assert "h:1" in problem.message
    assert "--target" in problem.remedy


def test_words_of_the_server_cannot_steer_the_terminal() -> None:
    assert told(grpc.StatusCode.NOT_FOUND, "no \x1b[31mlease") == ["error: no \\x1b[31mlease"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("CannotFit", errors.Exit.NO_CAPACITY),
        ("PendingTimeout", errors.Exit.NO_CAPACITY),
        ("ModelFailed", errors.Exit.FAILED),
        ("Released", errors.Exit.PRECONDITION),
        ("", errors.Exit.PRECONDITION),
    ],
)
def test_the_reason_of_an_end_has_an_exit_code(reason: str, code: errors.Exit) -> None:
    assert errors.exit_for_end(reason) == code


def test_a_call_that_a_stopping_server_cuts_off_is_no_ctrl_c() -> None:
    assert errors.exit_for_code(grpc.StatusCode.CANCELLED) is errors.Exit.UNAVAILABLE
