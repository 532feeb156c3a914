"""The command line: Triton's flags are acted on, ignored with a notice, or refused by name."""

from __future__ import annotations

import pathlib

import grpc
import pytest

from gpu_worker import core, flags, logs, settings
from gpu_worker.engine import border, limiting, statistics
from gpu_worker.tracing import settings as trace_settings
from gpu_worker.wire import rules

REPOSITORY = "--model-repository=/models"


def refusal(*arguments: str) -> border.InferenceError:
    with pytest.raises(border.InferenceError) as caught:
        settings.load([REPOSITORY, *arguments])
    return caught.value


def test_flags_take_a_value_in_both_forms_and_booleans_in_several() -> None:
    found = settings.load(
        [
            "--model-store",
            "/a",
            REPOSITORY,
            "--http-port=0",
            "--grpc-port",
            "7",
            "--allow-metrics=0",
            "--exit-on-error=False",
            "--model-control-mode=explicit",
            "--load-model=x",
            "--load-model",
            "y",
            "--exit-timeout-secs=3",
            "--log-verbose=1",
        ]
    )
    assert found.core.repositories == (pathlib.Path("/a"), pathlib.Path("/models"))
    assert found.core.control is core.ControlMode.EXPLICIT
    assert found.core.load_at_start == ("x", "y")
    assert not found.core.exit_on_error
    assert found.http is not None
    assert found.http.port == 0
    assert found.grpc is not None
    assert found.grpc.port == 7
    assert found.metrics is None
    assert found.exit_timeout_s == 3.0
    assert found.log == logs.Settings(verbose_level=1)


def test_defaults_are_those_of_triton() -> None:
    found = settings.load([REPOSITORY])
    assert found.http is not None
    assert found.grpc is not None
    assert found.metrics is not None
    assert (found.http.port, found.grpc.port, found.metrics.port) == (8000, 8001, 8002)
    assert found.http.address == found.metrics.address == "0.0.0.0"
    assert found.http.limits.body_bytes == 64 * 2**20
    assert found.core.control is core.ControlMode.NONE


def test_what_changes_nothing_is_ignored_with_a_notice() -> None:
    found = settings.load([REPOSITORY, "--http-thread-count=8", "--pinned-memory-pool-byte-size", "0"])
    assert set(found.ignored) == {"http-thread-count", "pinned-memory-pool-byte-size"}


def test_the_rate_limiter_is_off_unless_asked_for() -> None:
    assert (
        settings.load([REPOSITORY]).core.limits is settings.load([REPOSITORY, "--rate-limit=off"]).core.limits is None
    )
    flag = "--rate-limit=execution_count"
    assert settings.load([REPOSITORY, flag]).core.limits == ()
    found = settings.load([REPOSITORY, flag, "--rate-limit-resource=R:4", "--rate-limit-resource", "R:2:1"]).core.limits
    assert found == (limiting.Limit("R", 4), limiting.Limit("R", 2, "1"))
    for wrong in ("R", "R:x", ":1", "R:1:2:3", "R:-1"):
        with pytest.raises(SystemExit):
            settings.load([REPOSITORY, flag, f"--rate-limit-resource={wrong}"])


def test_the_cache_has_a_size_by_both_flags() -> None:
    assert settings.load([REPOSITORY]).core.cache_bytes == 0
    assert settings.load([REPOSITORY, "--cache-config", "local,size=1048576"]).core.cache_bytes == 2**20
    assert settings.load([REPOSITORY, "--response-cache-byte-size=7"]).core.cache_bytes == 7


def test_traces_are_set_by_both_kinds_of_flags(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "t"
    expected = trace_settings.Settings(
        file=str(file), levels=("TIMESTAMPS", "TENSORS"), rate=5, count=9, log_frequency=2
    )
    new = [f"triton,file={file}", "triton,log-frequency=2", "level=TENSORS", "level=TIMESTAMPS", "rate=5", "count=9"]
    assert (
        settings.load(
            [REPOSITORY, "--trace-config=mode=triton", *(f"--trace-config={each}" for each in new)]
        ).core.trace
        == expected
    )
    old = [f"--trace-file={file}", "--trace-level=TIMESTAMPS", "--trace-level=TENSORS", "--trace-rate=5"]
    assert settings.load([REPOSITORY, *old, "--trace-count=9", "--trace-log-frequency=2"]).core.trace == expected


def test_spans_have_a_collector_and_a_resource() -> None:
    flags_ = ["mode=opentelemetry", "opentelemetry,url=http://c/x", "opentelemetry,resource=a=b=c", "level=TIMESTAMPS"]
    found = settings.load([REPOSITORY, *(f"--trace-config={each}" for each in flags_)])
    assert (found.core.trace.url, found.core.trace.resource) == ("http://c/x", (("a", "b=c"),))
    assert found.core.trace.on
    assert found.http_rules.trace_context
    assert found.grpc_rules.trace_context
    assert not settings.load([REPOSITORY]).http_rules.trace_context


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trace-config=mode=loud"], "mode=loud is not known: the mode must be triton or opentelemetry"),
        (["--trace-config=opentelemetry,file=x"], "opentelemetry,file=x is not known"),
        (["--trace-config=opentelemetry,resource=x"], "is not of the form resource=KEY=VALUE"),
        (["--trace-config=mode=opentelemetry", "--trace-level=TENSORS"], "needs the mode triton"),
        (["--trace-config=speed=1"], "speed=1 is not known: settings are level, rate, count, mode, triton,file"),
        (["--trace-config=rate=x"], "rate', got: x"),
        (["--trace-config=level=LOUD"], "got: LOUD"),
        (["--trace-config=triton,file=/nowhere/t"], "cannot be written"),
        (["--trace-level=TIMESTAMPS"], "needs --trace-config triton,file=FILE"),
    ],
)
def test_trace_settings_that_make_no_sense_are_refused(arguments: list[str], words: str) -> None:
    assert words in refusal(*arguments).message


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], [False, False]),
        (["--http-address=127.0.0.1"], [True, False]),
        (["--http-address=::1", "--grpc-address=127.7.0.1"], [True, True]),
        (["--http-address=localhost", "--grpc-address=::"], [True, False]),
        (["--allow-client-shm=true"], [True, True]),
        (["--allow-client-shm=false", "--http-address=127.0.0.1"], [False, False]),
    ],
)
def test_shared_memory_is_for_clients_of_this_machine_unless_asked_for(
    arguments: list[str], allowed: list[bool]
) -> None:
    found = settings.load([REPOSITORY, *arguments])
    assert [may_share(found.http_rules), may_share(found.grpc_rules)] == allowed


def may_share(front: rules.Rules) -> bool:
    try:
        front.sharing.check()
    except border.InferenceError:
        return False
    return True


@pytest.mark.parametrize("name", flags.REFUSED)
def test_what_is_not_done_is_refused_by_name(name: str) -> None:
    error = refusal(f"--{name}=some")
    assert error.kind is border.ErrorKind.UNSUPPORTED
    assert f"--{name}" in error.message
    assert flags.REFUSED[name] in error.message


@pytest.mark.parametrize("argument", ["--allow-vertex-ai=false", "--model-namespacing=0"])
def test_turning_off_what_is_not_there_is_fine(argument: str) -> None:
    assert settings.load([REPOSITORY, argument]).http is not None


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--model-control-mode=explicit", "--load-model=*", "--load-model=x"], "--load-model=*"),
        (["--load-model=x"], "--load-model needs"),
        (["--rate-limit-resource=R:1"], "--rate-limit-resource=R needs --rate-limit=execution_count"),
        (["--cache-config=redis,host=h"], "--cache-config=redis,host=h is not known"),
        (["--cache-config=local,size=many"], "is not a whole number of bytes"),
        (["--cache-config=local,size=1", "--response-cache-byte-size=1"], "say the same"),
        (["--http-tls-cert=c"], "--http-tls-key"),
        (["--http-tls-client-ca=c"], "--http-tls-client-ca"),
        (["--grpc-use-ssl=true"], "--grpc-server-cert"),
        (["--grpc-server-cert=c"], "--grpc-use-ssl"),
        (["--grpc-use-ssl-mutual=true", "--grpc-server-cert=c", "--grpc-server-key=k"], "--grpc-root-cert"),
        (["--backend-config=python,shm-size=1"], "--backend-config=python"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(arguments: list[str], fragment: str) -> None:
    assert fragment in refusal(*arguments).message


def test_a_repository_is_required() -> None:
    with pytest.raises(border.InferenceError, match="--model-repository is required"):
        settings.load([])


@pytest.mark.parametrize(
    "argument",
    [
        "--http-port=70000",
        "--http-port=x",
        "--allow-http=maybe",
        "--no-such-flag",
        "--http-por=1",
        "--exit-timeout-secs=nan",
        "--http-idle-timeout-secs=0",
        "--metrics-config=nonsense=1",
        "--metrics-config=summary_quantiles=0.5,1.5",
        "--metrics-config=summary_quantiles=",
    ],
)
def test_bad_values_and_unknown_flags_are_usage_errors(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings.load([REPOSITORY, argument])
    assert caught.value.code == 2
    assert argument.partition("=")[0].lstrip("-") in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings.load(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out.replace("-\n", "-").replace("\n", " ")
    acted = [flag.name for _, group in flags.GROUPS for flag in group]
    assert [name for name in (*acted, *flags.IGNORED, *flags.REFUSED) if name not in shown] == []


def test_grpc_channel_flags_become_channel_arguments() -> None:
    found = settings.load(
        [
            REPOSITORY,
            "--grpc-keepalive-time=1000",
            "--grpc-keepalive-permit-without-calls=true",
            "--grpc-infer-response-compression-level=high",
        ]
    )
    assert found.grpc is not None
    assert found.grpc.arguments == (("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1))
    assert found.grpc.compression is grpc.Compression.Gzip


def test_backend_config_is_for_onnxruntime() -> None:
    found = settings.load([REPOSITORY, "--backend-config=onnxruntime,default-max-batch-size=8"])
    assert found.core.backend_config == {"default-max-batch-size": "8"}


def test_metrics_are_chosen_by_name() -> None:
    assert settings.load([REPOSITORY]).core.observed == statistics.Observed()
    found = settings.load(
        [
            REPOSITORY,
            "--metrics-config=histogram_latencies=true",
            "--metrics-config=summary_latencies=1",
            "--metrics-config=summary_quantiles=0.9:0.01,0.5",
            "--metrics-config",
            "counter_latencies=false",
        ]
    )
    assert found.core.observed == statistics.Observed((100.0, 500.0, 2000.0, 5000.0), (0.5, 0.9))
    assert found.metrics is not None
    assert not found.metrics.switches.counter_latencies
    summaries = settings.load([REPOSITORY, "--metrics-config=summary_latencies=true"]).core.observed
    assert summaries == statistics.Observed((), (0.5, 0.9, 0.95, 0.99, 0.999))
