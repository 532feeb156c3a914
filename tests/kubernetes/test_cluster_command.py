"""The command line of the test cluster: what it gives the command, what it says when it fails, what it leaves: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.kubernetes.cluster import binaries, layout, namespace, nodes, supervisor

_LIMIT_S = 60.0
_COMMAND = [sys.executable, "-m", "tests.kubernetes.cluster", "exec", "--bare"]


def test_the_command_gets_its_cluster_and_gives_its_exit_status(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "cluster"
    script = 'echo "$TMS_CLUSTER $KUBECONFIG"; setsid sleep 600 >/dev/null 2>&1 & echo $!; exit 7'
    answer = _run(["--directory", str(place), "--", "sh", "-c", script])
    *details, left_behind = answer.stdout.split()
    assert (answer.returncode, details) == (7, [str(place), str(place / "admin.kubeconfig")])
    assert (place / "logs" / "kube-apiserver.log").stat().st_size
    with pytest.raises(ProcessLookupError):
        os.kill(int(left_behind), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_cluster_that_is_told_to_end(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    command = [*_COMMAND, "--directory", str(tmp_path / "cluster"), "--", "sh", "-c", "echo up; exec sleep 600"]
    with subprocess.Popen(command, cwd=layout.REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with contextlib.ExitStack() as stack:
            below = [_handle(stack, pid) for pid in supervisor.descendants(process.pid)]
            assert len(below) >= 6  # etcd, API server, controllers, scheduler, DNS, the command
            process.send_signal(number)
            status = process.wait(_LIMIT_S)
            _wait_for_end(below)
    assert status == (-number if number == signal.SIGKILL else 128 + number)


def test_a_program_that_does_not_start_is_named_with_its_last_words(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    answer = _run(["--", "echo", "never"])
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "etcd ended with 3" in answer.stderr
    assert "the disk is on fire" in answer.stderr


def test_a_taint_that_is_none_is_refused_before_anything_starts() -> None:
    answer = _run(["--taint", "gpu:Never", "--", "echo", "never"])
    assert answer.returncode == 2
    assert "KEY[=VALUE]:NoSchedule" in answer.stderr


def test_a_missing_tool_is_named_with_its_package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("unshare", "setpriv", "ip"):
        path = shutil.which(tool)
        assert path
        (tmp_path / tool).symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(namespace.NamespaceError, match="`nft` is missing: install the package nftables"):
        namespace.check()


def test_assets_named_by_the_environment_come_before_the_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd = tmp_path / "etcd"
    etcd.touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    found = binaries.find()
    assert found["etcd"] == etcd
    assert found["kube-apiserver"].parent.parent == binaries.cache_folder()


def test_nodes_are_written_with_addresses_of_their_own(tmp_path: pathlib.Path) -> None:
    taint = nodes.Taint.parse("nvidia.com/gpu=present:NoSchedule")
    nodes.write(tmp_path / "nodes.json", nodes.of(nodes.Shape(count=3, gpus=4, taints=(taint,))))
    written = json.loads((tmp_path / "nodes.json").read_text())
    assert len({node["address"] for node in written}) == len(written) == 4
    assert written[1]["resources"] == {"nvidia.com/gpu": 4}
    assert written[1]["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    assert [node["pods"] for node in written] == [0, 110, 110, 110]


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments],
        cwd=layout.REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )


def _handle(stack: contextlib.ExitStack, pid: int) -> int:
    descriptor = os.pidfd_open(pid)
    stack.callback(os.close, descriptor)
    return descriptor


def _wait_for_end(handles: list[int]) -> None:
    """A handle of a process can be read once the process has ended."""
    deadline = time.monotonic() + _LIMIT_S
    for handle in handles:
        ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, "a process of the cluster is still there"
