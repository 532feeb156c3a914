from __future__ import annotations

import pathlib

import pytest

from sidecar import settings, values


@pytest.fixture
def flags(tmp_path: pathlib.Path) -> dict[str, str]:
    (tmp_path / "token").write_text("secret")
    return {
        "--server": "127.0.0.1:9000",
        "--worker-id": "g-1",
        "--token-file": str(tmp_path / "token"),
        "--worker-endpoint": "127.0.0.1:8000:8001:8002",
        "--model-repository": str(tmp_path / "models"),
        "--data-dir": str(tmp_path / "data"),
        "--cache-dir": str(tmp_path / "cache"),
    }


def parse(flags: dict[str, str]) -> settings.Settings:
    return settings.parse([word for pair in flags.items() for word in pair])


def test_flags_are_enough(flags: dict[str, str]) -> None:
    parsed = parse(flags)

    assert parsed.worker == values.Endpoint("127.0.0.1", 8000, 8001, 8002)
    assert parsed.log_level == "info"


def test_the_environment_stands_in_for_flags(flags: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, value in flags.items():
        monkeypatch.setenv("TMS_SIDECAR_" + flag[2:].replace("-", "_").upper(), value)
    monkeypatch.setenv("TMS_SIDECAR_LOG_LEVEL", "debug")

    assert settings.parse([]).log_level == "debug"
    assert settings.parse(["--log-level", "error"]).log_level == "error"


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("--server", "nowhere", "HOST:PORT"),
        ("--worker-endpoint", "127.0.0.1:8000", "HOST:HTTP:GRPC:METRICS"),
        ("--worker-endpoint", "127.0.0.1:0:1:2", "1 to 65535"),
        ("--token-file", "/nonexistent", "is not a file"),
        ("--server-key", "/nonexistent", "is not a file"),
        ("--log-level", "loud", "'info'"),
        ("--drain-timeout", "0", "greater than 0"),
    ],
)
def test_a_bad_flag_is_named_with_its_remedy(
    flags: dict[str, str], flag: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        parse(flags | {flag: value})

    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert f"{flag} (or TMS_SIDECAR_" in said
    assert remedy in said


def test_what_is_missing_is_named(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    del flags["--cache-dir"]

    with pytest.raises(SystemExit):
        parse(flags)

    assert "--cache-dir (or TMS_SIDECAR_CACHE_DIR): is required" in capsys.readouterr().err


def test_a_certificate_needs_its_key(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags | {"--server-cert": flags["--token-file"]})

    assert "give both or neither" in capsys.readouterr().err


def test_an_ipv6_worker_stands_in_brackets() -> None:
    assert settings.parse_endpoint("[::1]:1:2:3") == values.Endpoint("::1", 1, 2, 3)


def test_headers_come_from_a_file_or_the_environment(
    flags: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headers").write_text("key=secret\n")

    assert parse(flags).shown_headers == {}
    assert parse(flags | {"--worker-headers-file": str(tmp_path / "headers")}).shown_headers == {"key": "secret"}
    monkeypatch.setenv("TMS_SIDECAR_WORKER_HEADERS", "one=1\ntwo=2")
    parsed = parse(flags)
    assert parsed.shown_headers == {"one": "1", "two": "2"}
    assert "two=2" not in repr(parsed)


@pytest.mark.parametrize("text", [b"hunter2", b"\xff=hunter2", b"key=hunter2\nkey=hunter2", None])
def test_a_bad_file_of_headers_is_told_without_what_it_holds(
    flags: dict[str, str], tmp_path: pathlib.Path, text: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "headers"
    if text is not None:
        path.write_bytes(text)

    with pytest.raises(SystemExit) as exited:
        parse(flags | {"--worker-headers-file": str(path)})

    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert f"--worker-headers-file (or TMS_SIDECAR_WORKER_HEADERS_FILE): {path}" in said
    assert "hunter2" not in said


def test_bad_headers_of_the_environment_are_told_without_their_values(
    flags: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMS_SIDECAR_WORKER_HEADERS", "key: hunter2")

    with pytest.raises(SystemExit):
        parse(flags)

    said = capsys.readouterr().err
    assert "TMS_SIDECAR_WORKER_HEADERS): line 1 is not NAME=VALUE" in said
    assert "hunter2" not in said


def test_headers_are_given_once(
    flags: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "headers").write_text("key=secret")
    monkeypatch.setenv("TMS_SIDECAR_WORKER_HEADERS", "key=secret")

    with pytest.raises(SystemExit):
        parse(flags | {"--worker-headers-file": str(tmp_path / "headers")})

    assert "give one of them" in capsys.readouterr().err
