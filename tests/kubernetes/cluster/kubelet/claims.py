"""Storage class `standard`: makes a folder of this machine a volume for every claim of it that has none."""

from __future__ import annotations

import asyncio
import collections.abc
import functools
import pathlib
import shutil

import structlog

from tests.kubernetes.cluster.kubelet import kube, times

_PROVISIONER = "tms.dev/test-folders"
_CLASS = "standard"
_VOLUMES = "/api/v1/persistentvolumes"
_RETRY_S = 0.5
_MAX_WORK = 10_000
_Work = collections.abc.Callable[[], collections.abc.Awaitable[None]]

log = structlog.get_logger(__name__)


class Provisioner:
    """Answers claims with folders below `folder`, and removes volumes that were given back."""

    def __init__(self, client: kube.Client, folder: pathlib.Path) -> None:
        self._client = client
        self._folder = folder
        self._work: asyncio.Queue[tuple[str, kube.Json]] = asyncio.Queue(_MAX_WORK)

    async def run(self) -> None:
        await self._until_done(self._offer_class)
        claims = kube.Mirror(self._client, "/api/v1/persistentvolumeclaims", self._see_claim, _ignore)
        volumes = kube.Mirror(self._client, _VOLUMES, self._see_volume, _ignore)
        async with asyncio.TaskGroup() as group:
            for task in (claims.run(), volumes.run(), self._serve()):
                group.create_task(task)

    def _see_claim(self, claim: kube.Json) -> None:
        spec = claim["spec"]
        if spec.get("storageClassName") == _CLASS and not spec.get("volumeName"):
            self._work.put_nowait(("provide", claim))

    def _see_volume(self, volume: kube.Json) -> None:
        ours = (volume["metadata"].get("annotations") or {}).get("pv.kubernetes.io/provisioned-by") == _PROVISIONER
        if ours and volume.get("status", {}).get("phase") == "Released":
            self._work.put_nowait(("remove", volume))

    async def _serve(self) -> None:
        while True:
            action, item = await self._work.get()
            work = self._provide if action == "provide" else self._remove
            await self._until_done(functools.partial(work, item))

    async def _provide(self, claim: kube.Json) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        name = f"pvc-{metadata['uid']}"
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
        reference |= {key: metadata[key] for key in ("namespace", "name", "uid")}
        volume = {
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": _PROVISIONER}},
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": _CLASS,
                "claimRef": reference,
                "hostPath": {"path": str(self._folder / name), "type": "DirectoryOrCreate"},
            },
        }
        await self._client.post(_VOLUMES, volume)

    async def _remove(self, volume: kube.Json) -> None:
        shutil.rmtree(self._folder / volume["metadata"]["name"], ignore_errors=True)
        await self._client.delete(f"{_VOLUMES}/{volume['metadata']['name']}")

    async def _offer_class(self) -> None:
        annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
        body = {
            "metadata": {"name": _CLASS, "annotations": annotations},
            "provisioner": _PROVISIONER,
            "volumeBindingMode": "Immediate",
        }
        await self._client.post("/apis/storage.k8s.io/v1/storageclasses", body)

    async def _until_done(self, work: _Work) -> None:
        """Tries while the server is away; an answer that says no ends it (there already, or gone)."""
        while True:
            try:
                return await work()
            except kube.ApiError as error:
                if not error.passing:
                    log.info("kubelet.storage_refused", error=repr(error))
                    return None
            except kube.AWAY as error:
                log.info("kubelet.storage_delayed", error=repr(error))
            await times.pause(_RETRY_S)


def _ignore(_item: kube.Json) -> None:
    pass
