"""The sidecar as it runs: its own process, a real worker, and the stream's other end in this process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import pathlib
import signal

import grpc
import pytest
import trustme

from protos.tms.v1 import agent_pb2
from sidecar import values
from sidecar.fetching import reading
from tests.support import onnx_models, v2_servers

from .conftest import ACCESS, Cutter, Store, ask, scaled
from .control_plane import PATIENCE_S, READY, TOKEN, ControlPlane, Sidecar, desired, message, serving, states
from .sources import model_of


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "source"


def is_serving(report: agent_pb2.Report, wanted: values.Serving) -> bool:
    return message(wanted.endpoint) in report.endpoints


def is_ready(worker: v2_servers.WorkerProcess) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", worker.endpoint.http_port)) as connection:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200


async def test_a_model_comes_serves_and_goes(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, source: pathlib.Path
) -> None:
    model, at = scaled(source, "digits"), serving("digits")
    await sidecar.start()
    hello = await control.met()
    assert control.metadata["tms-worker-id"] == "group-1"
    assert control.metadata["authorization"] == f"Bearer {TOKEN}"
    assert (hello.epoch, hello.generation, bool(hello.incarnation)) == (0, 0, True)

    await control.want([desired(model)], [at])
    ready = await control.heard(lambda report: is_serving(report, at))
    [told] = ready.models
    assert (told.state, ready.generation, ready.server_ready, ready.activity_known) == (READY, 1, True, True)
    assert (told.source_digest, told.inference_count, told.total_bytes) == (model.source_digest, 0, model.size_bytes)
    assert [bool(file.sha256) for file in told.files] == [True]
    assert not told.HasField("last_inference")
    assert ready.worker_endpoint == message(worker.endpoint)

    assert await asyncio.to_thread(ask, at.endpoint.http_port, "digits") == [2, 4, 6, 8]
    used = await control.heard(lambda report: report.models[0].inference_count == 1)
    assert used.models[0].HasField("last_inference")
    assert used.at.ToNanoseconds() >= used.models[0].last_inference.ToNanoseconds()
    await control.heard(lambda report: report.models[0].in_flight == 0)

    await control.want([], [])
    await control.until(
        lambda: next((each for each in control.reports if each.generation == 2 and not each.models), None)
    )
    said = [states(each) for each in control.reports if each.generation == 2]
    assert said[0] == {"digits": "DRAINING"}
    assert {"digits": "UNLOADED"} in said
    assert not (worker.repository / "digits").exists()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(ask, at.endpoint.http_port, "digits")

    assert sidecar.process
    sidecar.process.send_signal(signal.SIGTERM)
    assert await sidecar.ended() == 0


async def test_models_load_in_order_and_serve_only_together(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    names = ["c", "a", "b"]
    at = serving(*names)
    await control.want([desired(scaled(source, name)) for name in names], [at])
    await sidecar.start()

    await control.heard(lambda report: is_serving(report, at))

    for report in control.reports:
        ready = [each.state == READY for each in report.models]
        assert ready == sorted(ready, reverse=True)
        assert all(ready) or not report.endpoints


async def test_a_crashed_worker_is_filled_again(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, source: pathlib.Path
) -> None:
    names, at = ["a", "b"], serving("a", "b")
    await control.want([desired(scaled(source, name)) for name in names], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))

    await asyncio.to_thread(worker.kill)
    down = await control.heard(lambda report: not report.server_ready)
    assert (list(down.endpoints), down.activity_known) == ([], False)
    assert READY not in {each.state for each in down.models}
    await asyncio.to_thread(worker.start)
    healed = await control.heard(lambda report: is_serving(report, at))

    assert healed.server_restarts == 1
    assert await asyncio.to_thread(ask, at.endpoint.http_port, "b") == [2, 4, 6, 8]
    # Use in the moments before the crash cannot be excluded.
    assert all(each.HasField("last_inference") for each in healed.models)


async def test_without_a_control_plane_both_come_back_from_disk(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, source: pathlib.Path
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a"))], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))
    await control.stop()
    await sidecar.kill()
    await asyncio.to_thread(worker.kill)
    await asyncio.to_thread(source.rename, source.with_name("gone"))

    await asyncio.to_thread(worker.start)
    await sidecar.start()

    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await asyncio.to_thread(ask, at.endpoint.http_port, "a") == [2, 4, 6, 8]
            except OSError:
                continue
            break
    await control.start()
    hello = await control.met(2)
    assert (hello.epoch, hello.generation) == (1, 1)
    assert hello.incarnation != control.hellos[0].incarnation


async def test_a_sidecar_that_lost_its_disk_leaves_the_worker_alone_until_it_hears_what_is_wanted(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path, worker: v2_servers.WorkerProcess
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a"))], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))
    await control.stop()
    await sidecar.kill()
    for each in ("desired.json", "loaded.json"):
        (sidecar.folder / "data" / each).unlink()
    said = sidecar.log().count("model.adopted")

    await sidecar.start()
    async with asyncio.timeout(PATIENCE_S):
        while sidecar.log().count("model.adopted") == said:
            await asyncio.to_thread(ask, worker.endpoint.http_port, "a")
    assert sidecar.process
    sidecar.process.send_signal(signal.SIGTERM)
    assert await sidecar.ended() == 0

    assert "draining" not in sidecar.log()
    assert await asyncio.to_thread(ask, worker.endpoint.http_port, "a") == [2, 4, 6, 8]


async def test_a_sidecar_that_comes_back_leaves_a_serving_worker_alone(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a"))], [at])
    await sidecar.start()
    ready = await control.heard(lambda report: is_serving(report, at))
    await asyncio.to_thread(ask, at.endpoint.http_port, "a")
    await sidecar.kill()

    await sidecar.start()
    again = await control.heard(lambda report: is_serving(report, at))

    assert ready.models[0].inference_count == 0
    assert (again.models[0].inference_count, again.server_restarts) == (1, 0)
    assert again.models[0].HasField("last_inference")


async def test_it_comes_back_to_a_server_that_was_away(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a"))], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))

    await control.stop()
    assert await asyncio.to_thread(ask, at.endpoint.http_port, "a") == [2, 4, 6, 8]
    await control.start()
    hello = await control.met(2)

    assert (hello.epoch, hello.generation, hello.incarnation) == (1, 1, control.hellos[0].incarnation)
    assert is_serving(await control.heard(lambda _: True), at)


async def test_an_older_wish_is_ignored_and_a_new_epoch_is_not(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a"))], [at])
    await control.want([desired(scaled(source, "a"))], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))

    await control.say(agent_pb2.Desired(epoch=1, generation=1))
    later = [await control.heard(lambda _: True) for _ in range(3)]
    assert [(each.generation, states(each)) for each in later] == [(2, {"a": "READY"})] * 3

    await control.say(agent_pb2.Desired(epoch=2, generation=0))
    restored = await control.heard(lambda report: not report.models)
    assert (restored.epoch, restored.generation) == (2, 0)


async def test_a_definite_failure_is_told_and_harms_nobody_else(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    garbage = model_of(onnx_models.put(source, "garbage", b"this is no model"), "garbage")
    changed = scaled(source, "changed")
    (source / "changed" / "1" / "model.onnx").write_bytes(onnx_models.scale(3.0))
    at, bad, worse = serving("a"), serving("garbage"), serving("changed")
    models = [desired(garbage), desired(changed), desired(scaled(source, "a"))]
    await control.want(models, [bad, worse, at])
    await sidecar.start()

    report = await control.heard(
        lambda report: (
            states(report) == {"garbage": "FAILED", "changed": "FAILED", "a": "READY"} and is_serving(report, at)
        )
    )

    failed = {each.name: each for each in report.models}
    assert (failed["garbage"].reason, failed["garbage"].retryable) == ("LoadFailed", False)
    assert "garbage" in failed["garbage"].message
    assert (failed["changed"].reason, failed["changed"].retryable) == ("SourceChanged", False)
    assert len(report.endpoints) == 1


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_worker_is_ready_again_once_what_failed_is_not_wanted(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, source: pathlib.Path, *, restarted: bool
) -> None:
    """A server with strict readiness is not ready for as long as it remembers a model that it could not load."""
    garbage, good = model_of(onnx_models.put(source, "garbage", b"this is no model"), "garbage"), scaled(source, "a")
    await control.want([desired(garbage), desired(good)], [serving("garbage"), serving("a")])
    await sidecar.start()
    await control.heard(lambda report: states(report) == {"garbage": "FAILED", "a": "READY"})
    assert not await asyncio.to_thread(is_ready, worker)

    if restarted:
        await sidecar.kill()
    await control.want([desired(good)], [serving("a")])
    if restarted:
        await sidecar.start()
    await control.heard(lambda report: report.generation == 2 and states(report) == {"a": "READY"})

    assert await asyncio.to_thread(is_ready, worker)
    assert not (worker.repository / "garbage").exists()


async def test_other_bytes_under_a_name_replace_the_old_ones(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    at = serving("a")
    await control.want([desired(scaled(source, "a", 2.0))], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))

    await control.want([desired(scaled(source, "a", 3.0))], [at])
    await control.heard(lambda report: report.generation == 2 and is_serving(report, at))

    assert await asyncio.to_thread(ask, at.endpoint.http_port, "a") == [3, 6, 9, 12]


async def test_a_call_under_way_is_use_and_is_finished_before_the_model_goes(
    control: ControlPlane, sidecar: Sidecar, source: pathlib.Path
) -> None:
    slow = model_of(onnx_models.put(source, "slow", onnx_models.slow(3_000_000)), "slow")
    at = serving("slow")
    await control.want([desired(slow)], [at])
    await sidecar.start()
    await control.heard(lambda report: is_serving(report, at))

    asking = asyncio.ensure_future(asyncio.to_thread(ask, at.endpoint.http_port, "slow"))
    busy = await control.heard(lambda report: report.models[0].in_flight == 1)
    assert (busy.models[0].inference_count, busy.activity_known) == (0, True)
    await control.want([], [])
    draining = await control.heard(lambda report: report.generation == 2)

    assert states(draining) == {"slow": "DRAINING"}
    assert await asking == [1, 2, 3, 4]
    await control.heard(lambda report: not report.models)


async def test_who_is_not_wanted_goes_with_3(control: ControlPlane, sidecar: Sidecar, source: pathlib.Path) -> None:
    control.refusal = grpc.StatusCode.NOT_FOUND
    await sidecar.start()

    assert await sidecar.ended() == 3


async def test_a_wrong_token_is_tried_again_until_it_is_right(control: ControlPlane, sidecar: Sidecar) -> None:
    control.refusal = grpc.StatusCode.UNAUTHENTICATED
    await sidecar.start()
    await control.knocked()
    control.refusal = None
    (sidecar.folder / "token").write_text("renewed")

    await control.met()

    assert control.metadata["authorization"] == "Bearer renewed"
    assert TOKEN not in sidecar.log()


async def test_the_stream_speaks_mutual_tls(tmp_path: pathlib.Path, sidecar: Sidecar, control: ControlPlane) -> None:
    authority = trustme.CA()
    mine, yours = authority.issue_cert("localhost"), authority.issue_cert("group-1")
    credentials = grpc.ssl_server_credentials(
        [(mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())],
        authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    await control.stop()
    await control.start(credentials)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    yours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    yours.private_key_pem.write_to_path(tmp_path / "key.pem")

    files = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    await sidecar.start(*(f"--server-{name}={tmp_path / file}" for name, file in files.items()))

    assert (await control.met()).incarnation


async def test_a_model_of_an_object_store_serves_and_no_secret_is_kept(
    control: ControlPlane, sidecar: Sidecar, store: Store, tmp_path: pathlib.Path
) -> None:
    file = store.put("digits", "1/model.onnx", onnx_models.scale(5.0))
    model = desired(values.Model(name="digits", uri="s3://models/digits", files=(file,), source_digest="d"))
    model.s3.CopyFrom(agent_pb2.S3Access(endpoint_url=store.url, path_style=True, **ACCESS))
    at = serving("digits")
    await control.want([model], [at])
    await sidecar.start()

    await control.heard(lambda report: is_serving(report, at))

    assert await asyncio.to_thread(ask, at.endpoint.http_port, "digits") == [5, 10, 15, 20]
    kept = await asyncio.to_thread(files_below, tmp_path)
    assert b"s3://models/digits" in kept["data/desired.json"]
    assert [path for path, data in kept.items() if ACCESS["secret_access_key"].encode() in data] == []


async def test_killed_in_the_middle_of_a_fetch_it_goes_on_where_it_was(
    control: ControlPlane, sidecar: Sidecar, store: Store, s3_server: tuple[str, int], tmp_path: pathlib.Path
) -> None:
    cutter = Cutter(s3_server, 5 * reading.SPAN_BYTES)
    data = bytes(8 * reading.SPAN_BYTES)
    files = (store.put("digits", "1/data.bin", data), store.put("digits", "1/model.onnx", onnx_models.scale(5.0)))
    model = desired(values.Model(name="digits", uri="s3://models/digits", files=files, source_digest="d"))
    model.s3.CopyFrom(agent_pb2.S3Access(endpoint_url=cutter.url, path_style=True, **ACCESS))
    at = serving("digits")
    await control.want([model], [at])
    await sidecar.start()
    try:
        # The first stretch is fetched alone: what comes after it tells that it is here, and not only the small file.
        enough = reading.SPAN_BYTES + (1 << 16)
        await control.heard(lambda report: bool(report.models and report.models[0].fetched_bytes > enough))
        await sidecar.kill()
        before = cutter.answered_bytes
        cutter.mend()
        await sidecar.start()

        await control.heard(lambda report: is_serving(report, at))
    finally:
        await asyncio.to_thread(cutter.close)

    assert cutter.answered_bytes - before < len(data)
    assert await asyncio.to_thread(ask, at.endpoint.http_port, "digits") == [5, 10, 15, 20]
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def files_below(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
