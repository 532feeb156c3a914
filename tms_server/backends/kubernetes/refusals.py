"""What workers the administrator's options allow. Pure."""

from __future__ import annotations

import re

from tms_server.backends.kubernetes import options as options_module
from tms_server.backends.kubernetes import pod
from tms_server.model import resources

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?=.{{1,512}}$)(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""A reference as container runtimes read it: host and port, path, tag, digest (the grammar of distribution/reference)."""


def refuse(options: options_module.Options, worker: resources.WorkerSpec) -> str | None:
    """Why no pod could ever be such a worker."""
    profile_name = worker.profile or options_module.DEFAULT_PROFILE
    if profile_name not in options.profiles:
        return f"profile: {profile_name!r} is not one of {', '.join(sorted(options.profiles))}"
    if worker.command and worker.command not in options.programs:
        return f"command: {worker.command!r} is not one of {', '.join(sorted(options.programs))}"
    if worker.image and not _IMAGE.fullmatch(worker.image):
        return f"image: {worker.image!r} is not a reference of an image, such as registry.example/worker:1.0"
    return _refuse_gpus(pod.profile_of(options, worker), profile_name, worker.resources.gpus)


def _refuse_gpus(profile: options_module.Profile, name: str, gpus: int) -> str | None:
    if gpus and not profile.gpu_resource:
        return f"resources.gpus: pods of the profile {name!r} have no devices; name another profile"
    if gpus > profile.most_gpus:
        return f"resources.gpus: {gpus} asked, pods of the profile {name!r} have {profile.most_gpus} at most"
    return None
