"""The network and mount namespace that a test cluster lives in: enters it, and lays its routes. Needs no root.

It never changes the namespace that it was called in: `set_up` runs inside the new one only.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NoReturn

from tests.kubernetes.cluster import layout

_ENTER = ["unshare", "--net", "--mount", "--map-root-user"]
_PACKAGES = {"unshare": "util-linux", "setpriv": "util-linux", "ip": "iproute2", "nft": "nftables", "mount": "mount"}
# What `ip` does there: pods' addresses are all this host's, and the default route lets a Service's address leave the
# socket layer and meet the rules of kube-proxy. Nothing goes out: there is no other device.
_ROUTES = f"""\
link set lo up
addr add {layout.HOST_ADDRESS}/32 dev lo
route add local {layout.POD_RANGE} dev lo
route add default dev lo src {layout.HOST_ADDRESS}
"""
_RESOLV_CONF = f"""\
nameserver {layout.DNS_ADDRESS}
search default.svc.{layout.DOMAIN} svc.{layout.DOMAIN} {layout.DOMAIN}
options ndots:5
"""


class NamespaceError(Exception):
    """This machine cannot have such a namespace; the message says why and what helps."""


def extend_path() -> None:
    """Lets `ip` and `nft` be found by users whose PATH has no folders of the administrator."""
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [folder for folder in ("/usr/sbin", "/sbin") if folder not in known]
    os.environ["PATH"] = os.pathsep.join([*known, *missing])


def check() -> None:
    """Looks whether this machine has what a namespace needs.

    Raises:
        NamespaceError: a tool is missing, or the kernel lets this user have no namespace.
    """
    for tool, package in _PACKAGES.items():
        if shutil.which(tool) is None:
            raise NamespaceError(f"`{tool}` is missing: install the package {package} of your distribution")
    answer = subprocess.run([*_ENTER, "ip", "link"], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NamespaceError(
            f"the kernel refuses a network namespace to this user ({answer.stderr.strip()}). Allow unprivileged user"
            " namespaces: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 and"
            " kernel.apparmor_restrict_unprivileged_userns=0 where they exist; in a container, a seccomp profile"
            " that allows unshare"
        )


def enter(arguments: list[str]) -> NoReturn:
    """Replaces this process by `python -m tests.kubernetes.cluster ARGUMENTS` in a new namespace.

    The process keeps its id, so that signals and the exit status go the straight way.
    """
    command = [*_ENTER, sys.executable, "-m", "tests.kubernetes.cluster", *arguments]
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(layout.REPOSITORY), *([inherited] if inherited else [])])
    os.execvpe(command[0], command, os.environ | {"PYTHONPATH": path})


def set_up(directory: pathlib.Path) -> None:
    """Lays addresses, routes and the resolver of the namespace that this process is in.

    Raises:
        NamespaceError: a step failed.
    """
    _run(["ip", "-batch", "-"], _ROUTES)
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text(_RESOLV_CONF)
    _cover(resolv_conf, pathlib.Path("/etc/resolv.conf"))
    if (switch := pathlib.Path("/etc/nsswitch.conf")).exists():
        own = directory / "nsswitch.conf"
        own.write_text(_only_dns(switch.read_text()))
        _cover(own, switch)


def _only_dns(switch: str) -> str:
    """Takes out resolvers that are reached by a socket file and so would answer from outside of the namespace."""
    return re.sub(r"(?m)^hosts:.*$", "hosts: files dns", switch)


def _cover(source: pathlib.Path, target: pathlib.Path) -> None:
    real = target.resolve()
    if not real.exists():
        raise NamespaceError(f"{target} does not exist, so no file can be mounted over it: create it, empty")
    _run(["mount", "--bind", str(source), str(real)])


def _run(command: list[str], stdin: str = "") -> None:
    answer = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NamespaceError(f"`{' '.join(command)}` failed in the namespace: {answer.stderr.strip()}")
