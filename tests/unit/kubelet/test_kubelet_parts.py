from __future__ import annotations

import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.kubernetes.cluster.kubelet import addresses, containers, images, payload, probes


def test_pods_get_addresses_of_their_node_first_then_of_no_node() -> None:
    pool = addresses.Addresses("10.244.0.0/16", {"a": "10.244.1.1", "b": "10.244.2.1"})
    own = {pool.take("a") for _ in range(253)}
    assert all(address.startswith("10.244.1.") for address in own)
    assert "10.244.1.1" not in own
    beyond = pool.take("a")
    assert not beyond.startswith(("10.244.0.", "10.244.1.", "10.244.2.", "10.244.255."))
    assert pool.take("b").startswith("10.244.2.")


def test_an_address_comes_back_late_and_only_to_one() -> None:
    pool = addresses.Addresses("10.244.0.0/16", {"a": "10.244.1.1"})
    first = pool.take("a")
    pool.give_back(first)
    assert pool.take("a") != first
    assert pool.take("a", first) == first
    assert pool.take("a", first) != first


def test_a_full_range_is_told() -> None:
    pool = addresses.Addresses("10.244.0.0/24", {"a": "10.244.0.1"})
    for _ in range(253):
        pool.take("a")
    with pytest.raises(addresses.NoAddressError, match="node a"):
        pool.take("a")


@hypothesis.given(
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", "deep/c", "deep/d"]), st.binary(max_size=3), max_size=4), max_size=4
    )
)
def test_a_volume_holds_the_last_version_and_nothing_else(versions: list[dict[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "volume"
        for version in versions:
            payload.write(place, {path: payload.File(content, 0o600) for path, content in version.items()})
            seen = {
                str(path.relative_to(place)): path.read_bytes()
                for name in place.iterdir()
                if not name.name.startswith("..")
                for path in ([name] if name.is_file() else name.rglob("*"))
            }
            assert seen == version


def test_an_unchanged_volume_is_left_alone(tmp_path: pathlib.Path) -> None:
    files = {"a": payload.File(b"1", 0o400)}
    assert payload.write(tmp_path / "v", files)
    assert not payload.write(tmp_path / "v", files)
    assert payload.write(tmp_path / "v", {"a": payload.File(b"2", 0o400)})


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "..data", ""])
def test_a_file_outside_of_its_volume_is_refused(tmp_path: pathlib.Path, path: str) -> None:
    with pytest.raises(payload.UnsafePathError):
        payload.write(tmp_path / "v", {path: payload.File(b"", 0o600)})


def test_images_stand_for_any_registry_tag_and_digest(tmp_path: pathlib.Path) -> None:
    known = images.Images(tmp_path / "images.json")
    for image in ("tms/worker", "tms/worker:1", "host:5000/tms/worker", "ghcr.io/x/tms/worker:1@sha256:00"):
        assert known.pull(image)[0].endswith("/tms-worker")
    for image in ("worker", "othertms/worker", "tms/worker2"):
        with pytest.raises(images.PullError, match="not found"):
            known.pull(image)


def test_registered_images_outlive_the_kubelet(tmp_path: pathlib.Path) -> None:
    images.Images(tmp_path / "images.json").register("own/image:1", ["run"])
    assert images.Images(tmp_path / "images.json").pull("own/image:2") == ["run"]


def test_a_failing_pull_is_of_one_tag_or_of_all(tmp_path: pathlib.Path) -> None:
    known = images.Images(tmp_path / "images.json")
    known.fail("tms/worker:2", "unauthorized")
    known.pull("tms/worker:1")
    with pytest.raises(images.PullError, match="unauthorized"):
        known.pull("tms/worker:2")
    known.fail("tms/worker", "unauthorized")
    with pytest.raises(images.PullError, match="unauthorized"):
        known.pull("tms/worker:1")
    known.mend("tms/worker")
    known.pull("tms/worker:1")


def test_a_verdict_needs_answers_alike_in_a_row() -> None:
    judge = probes.Judge(probes.Probe.parse({"failureThreshold": 2, "successThreshold": 1}))
    assert judge.count(passed=False) is None
    assert judge.count(passed=True) is True
    assert judge.count(passed=False) is None
    assert judge.count(passed=False) is False


def test_probes_have_kubernetes_own_defaults() -> None:
    probe = probes.Probe.parse({"httpGet": {"port": 1}})
    assert (probe.initial_delay_s, probe.period_s, probe.timeout_s) == (0, 10, 1)
    assert (probe.success_threshold, probe.failure_threshold) == (1, 3)


def test_back_off_doubles_up_to_its_limit_and_forgets_after_a_long_run() -> None:
    backoff = containers.Backoff(containers.Settings(backoff_base_s=1, backoff_limit_s=5))
    assert [backoff.after(0) for _ in range(6)] == [0, 1, 2, 4, 5, 5]
    assert backoff.after(11) == 0
