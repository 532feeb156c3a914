"""Makes a pod's volumes on this machine and keeps what comes from the API server fresh.

A volume that cannot be made yet is an error with a kubelet's message; the caller tries again.
"""

from __future__ import annotations

import asyncio
import collections.abc
import dataclasses
import pathlib
import typing

from tests.kubernetes.cluster.kubelet import environment, kube, payload, processes

_FILE_MODE = 0o644
_TOKEN_S = 3600
_READ_ONLY = ("secret", "configMap", "projected", "downwardAPI")


class MountError(Exception):
    """A volume cannot be had, yet."""


class Place(typing.Protocol):
    """What of its pod a volume is made from."""

    pod: kube.Json
    address: str
    host_address: str


@dataclasses.dataclass
class _Token:
    """A service account's token and until when (monotonic seconds) it is good enough."""

    content: bytes
    fresh_until: float


class Volumes:
    """The volumes of one pod, below `folder`."""

    def __init__(self, client: kube.Client, place: Place, folder: pathlib.Path) -> None:
        self._client = client
        self._place = place
        self._folder = folder
        self._sources: dict[str, pathlib.Path] = {}
        self._tokens: dict[tuple[str, str], _Token] = {}

    async def prepare(self) -> None:
        """Makes all volumes.

        Raises:
            MountError: one cannot be had; those before it are made.
        """
        for volume in self._place.pod["spec"].get("volumes") or []:
            self._sources[volume["name"]] = await self._make(volume)

    async def refresh(self) -> None:
        """Brings what came from the API server up to date; what cannot be had now stays as it was."""
        for volume in self._place.pod["spec"].get("volumes") or []:
            if any(kind in volume for kind in _READ_ONLY):
                try:
                    await self._make(volume)
                except (MountError, kube.ApiError, *kube.AWAY):
                    continue

    def mounts(self, container: kube.Json, variables: collections.abc.Mapping[str, str]) -> list[processes.Mount]:
        """Where the volumes go in a container.

        Raises:
            environment.ConfigurationError: a sub-path leads out of its volume.
        """
        kinds = {volume["name"]: volume for volume in self._place.pod["spec"].get("volumes") or []}
        result = [self._shared_memory()]
        for mount in container.get("volumeMounts") or []:
            source = self._source(mount, variables)
            read_only = mount.get("readOnly", False) or any(kind in kinds[mount["name"]] for kind in _READ_ONLY)
            result.append(processes.Mount(str(source), mount["mountPath"], read_only))
        return result

    def _shared_memory(self) -> processes.Mount:
        """Containers of a pod share it, pods do not."""
        folder = self._folder / "..shm"
        folder.mkdir(parents=True, exist_ok=True)
        return processes.Mount(str(folder), "/dev/shm")

    def _source(self, mount: kube.Json, variables: collections.abc.Mapping[str, str]) -> pathlib.Path:
        source = self._sources[mount["name"]]
        below: str = mount.get("subPath") or environment.expand(mount.get("subPathExpr") or "", variables)
        if not below:
            return source
        if pathlib.PurePosixPath(below).is_absolute() or ".." in pathlib.PurePosixPath(below).parts:
            raise environment.ConfigurationError(f"subPath {below!r} must be relative and must not lead upwards")
        if not (source / below).exists():
            (source / below).mkdir(parents=True)
        return source / below

    async def _make(self, volume: kube.Json) -> pathlib.Path:
        name: str = volume["name"]
        if "emptyDir" in volume:
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            return folder
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            return await self._claimed(volume["persistentVolumeClaim"]["claimName"])
        if not any(kind in volume for kind in _READ_ONLY):
            raise MountError(f'volume "{name}" is of a kind that this kubelet has no driver for')
        try:
            payload.write(self._folder / name, await self._files(volume))
        except (payload.UnsafePathError, environment.ConfigurationError) as error:
            raise MountError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
        return self._folder / name

    async def _files(self, volume: kube.Json) -> dict[str, payload.File]:
        if "projected" not in volume:
            kind = next(kind for kind in _READ_ONLY if kind in volume)
            mode = volume[kind].get("defaultMode", _FILE_MODE)
            return await self._projection({kind: volume[kind]}, mode, volume["name"])
        mode = volume["projected"].get("defaultMode", _FILE_MODE)
        files: dict[str, payload.File] = {}
        for source in volume["projected"].get("sources") or []:
            files |= await self._projection(source, mode, volume["name"])
        return files

    async def _projection(self, source: kube.Json, mode: int, volume: str) -> dict[str, payload.File]:
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: payload.File(await self._token(wanted), mode)}
        if "downwardAPI" in source:
            return {item["path"]: self._downward(item, mode) for item in source["downwardAPI"].get("items") or []}
        if "secret" in source:
            reference = source["secret"]
            return await self._object("secrets", reference.get("secretName") or reference["name"], reference, mode)
        if "configMap" in source:
            return await self._object("configmaps", source["configMap"]["name"], source["configMap"], mode)
        raise MountError(f'volume "{volume}" has a source that this kubelet does not know: {", ".join(source)}')

    async def _object(self, plural: str, name: str, reference: kube.Json, mode: int) -> dict[str, payload.File]:
        namespace = self._place.pod["metadata"]["namespace"]
        try:
            data = environment.data_of(await self._client.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}"))
        except kube.ApiError as error:
            if error.status == 404 and reference.get("optional"):
                return {}
            raise MountError(
                f'MountVolume.SetUp failed : {plural.removesuffix("s")} "{name}" : {error.message}'
            ) from None
        if not reference.get("items"):
            return {key: payload.File(content, mode) for key, content in data.items()}
        return dict(_items(reference, data, mode))

    def _downward(self, item: kube.Json, mode: int) -> payload.File:
        pod = self._place.pod
        if "fieldRef" in item:
            text = environment.field(item["fieldRef"]["fieldPath"], pod, self._place.address, self._place.host_address)
        else:
            text = environment.resource(item["resourceFieldRef"], pod["spec"]["containers"], {})
        return payload.File(text.encode(), item.get("mode", mode))

    async def _token(self, wanted: kube.Json) -> bytes:
        """Asked for anew when four fifths of its time are over."""
        key = (wanted["path"], wanted.get("audience", ""))
        now = asyncio.get_running_loop().time()
        known = self._tokens.get(key)
        if known is None or known.fresh_until < now:
            lifetime_s = int(wanted.get("expirationSeconds") or _TOKEN_S)
            self._tokens[key] = known = _Token(await self._request_token(wanted, lifetime_s), now + 0.8 * lifetime_s)
        return known.content

    async def _request_token(self, wanted: kube.Json, lifetime_s: int) -> bytes:
        metadata, spec = self._place.pod["metadata"], self._place.pod["spec"]
        account = spec.get("serviceAccountName") or "default"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        audiences = {"audiences": [wanted["audience"]]} if wanted.get("audience") else {}
        body = {"spec": {"expirationSeconds": lifetime_s, "boundObjectRef": bound, **audiences}}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        try:
            return str((await self._client.post(path, body))["status"]["token"]).encode()
        except kube.ApiError as error:
            raise MountError(f"failed to fetch token: {error.message}") from None

    async def _claimed(self, claim: str) -> pathlib.Path:
        namespace = self._place.pod["metadata"]["namespace"]
        try:
            found = await self._client.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
            if found.get("status", {}).get("phase") != "Bound":
                raise MountError(f"PVC {namespace}/{claim} is not bound")
            volume = await self._client.get(f"/api/v1/persistentvolumes/{found['spec']['volumeName']}")
        except kube.ApiError as error:
            raise MountError(error.message) from None
        if "local" in volume["spec"]:
            return _host_path({"path": volume["spec"]["local"]["path"], "type": "Directory"})
        if "hostPath" not in volume["spec"]:
            raise MountError(f"volume {volume['metadata']['name']} is neither hostPath nor local")
        return _host_path(volume["spec"]["hostPath"])


def _host_path(wanted: kube.Json) -> pathlib.Path:
    path, kind = pathlib.Path(wanted["path"]), wanted.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch()
    fits = path.is_file() if kind.startswith("File") else path.is_dir() if kind.startswith("Dir") else path.exists()
    if not fits:
        raise MountError(f"hostPath type check failed: {path} is not a {kind or 'path of this node'}")
    return path


def _items(
    reference: kube.Json, data: collections.abc.Mapping[str, bytes], mode: int
) -> collections.abc.Iterator[tuple[str, payload.File]]:
    for item in reference["items"]:
        if item["key"] in data:
            yield item["path"], payload.File(data[item["key"]], item.get("mode", mode))
        elif not reference.get("optional"):
            raise MountError(f"references non-existent config key: {item['key']}")
