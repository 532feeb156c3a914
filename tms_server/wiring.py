"""From the settings to what each part is made with. Translates; builds nothing and opens nothing."""

from __future__ import annotations

import datetime as dt
import math
import pathlib
from collections.abc import Mapping

import structlog

from tms_server import pods, sections
from tms_server import settings as settings_module
from tms_server.api import server as server_module
from tms_server.backends.kubernetes import connect
from tms_server.backends.kubernetes import options as pod_options_module
from tms_server.backends.processes import options as process_options_module
from tms_server.model import ids, lease, pool, resources
from tms_server.repositories import options as repository_options

log = structlog.get_logger(__name__)


def pools(settings: settings_module.Settings) -> Mapping[pool.Key, pool.PoolSpec]:
    """The pools that the administrator declared, the default one included where it is kept."""
    declared = {_pool_key(key): each for key, each in settings.pools.items()}
    if settings.default_pool.enabled:
        declared[ids.DEFAULT_NAMESPACE, ids.DEFAULT_POOL] = settings.default_pool
    return {key: _pool(each, settings) for key, each in declared.items()}


def times(settings: settings_module.Settings) -> lease.Times:
    """The times of a lease that does not say its own."""
    chosen = settings.lease_times
    return lease.Times(
        hold=dt.timedelta(seconds=chosen.hold_s),
        activity_window=dt.timedelta(seconds=chosen.activity_window_s),
        max_lifetime=dt.timedelta(seconds=chosen.max_lifetime_s) if chosen.max_lifetime_s else None,
        pending_timeout=dt.timedelta(seconds=chosen.pending_timeout_s),
    )


def tls(settings: settings_module.Settings) -> server_module.Tls | None:
    """Files of the API's certificate; None without."""
    chosen = settings.tls
    if chosen.certificate is None or chosen.key is None:
        return None
    return server_module.Tls(certificate=chosen.certificate, key=chosen.key, client_ca=chosen.client_ca)


def process_options(
    settings: settings_module.Settings, installation: ids.InstallationId, dial: str
) -> process_options_module.Options:
    """What the backend of local processes is made with; sidecars dial the given HOST:PORT."""
    chosen, files = settings.workers, settings.tls
    sidecar_tls = None
    if files.ca is not None and files.certificate is not None:
        sidecar_tls = process_options_module.SidecarTls(
            ca=files.ca.absolute(), certificate=files.sidecar_certificate, key=files.sidecar_key
        )
    return process_options_module.Options(
        data_dir=settings.data_dir,
        installation_id=installation,
        server=dial,
        commands={process_options_module.DEFAULT_COMMAND: process_options_module.WORKER_COMMAND, **chosen.commands},
        sidecar_tls=sidecar_tls,
        default_memory_bytes=chosen.memory_bytes,
        margin_bytes=chosen.margin_bytes,
        cache_bytes=chosen.cache_bytes,
        gpus=chosen.gpus,
        environment=chosen.environment,
        stop_grace=dt.timedelta(seconds=chosen.stop_grace_s),
        stop_at_exit=settings.stop_workers_at_exit,
    )


def pod_options(
    settings: settings_module.Settings, installation: ids.InstallationId, dial: str, own_namespace: str
) -> pod_options_module.Options:
    """What the Kubernetes backend is made with; sidecars dial what the settings say, else the given HOST:PORT."""
    chosen = settings.kubernetes
    profiles = {pods.DEFAULT_PROFILE: pods.Profile(), **chosen.profiles}
    return pod_options_module.Options(
        namespace=chosen.namespace or own_namespace,
        installation_id=installation,
        dial=chosen.dial or dial,
        sidecar_image=chosen.sidecar_image,
        programs=_programs(chosen),
        ca_config_map=f"{settings.metrics_api.service}-ca" if settings.tls.managed else chosen.ca_config_map,
        profiles={name: _profile(each, chosen) for name, each in profiles.items()},
        default_memory_bytes=settings.workers.memory_bytes,
        folders=tuple(
            pod_options_module.Folder(path=str(each.path), claim=each.claim, host_path=each.host_path)
            for each in settings.repositories.values()
            if each.volume
        ),
        margin_bytes=settings.workers.margin_bytes,
        connection_age_s=chosen.connection_age_s,
        watch_nodes=chosen.watch_nodes,
        strict=chosen.strict,
        drain_timeout_s=chosen.drain_timeout_s,
        settle_s=chosen.settle_s,
        writes_per_s=chosen.writes_per_s,
    )


def connection(settings: settings_module.Settings) -> connect.Connection:
    """Which API server, and by which credentials."""
    chosen = settings.kubernetes
    return connect.Connection(
        kubeconfig=pathlib.Path(chosen.kubeconfig) if chosen.kubeconfig else None, context=chosen.context
    )


def _programs(chosen: pods.Kubernetes) -> Mapping[str, pod_options_module.Program]:
    # A worker that stops waits until every client has had its turn to connect elsewhere.
    ages = (
        f"--grpc-max-connection-age={round(chosen.connection_age_s * 1000)}",
        f"--http-max-connection-age-secs={chosen.connection_age_s:g}",
        f"--exit-timeout-secs={math.ceil(1.2 * chosen.connection_age_s) + 5}",
    )
    own = pod_options_module.Program(image=chosen.worker_image, args=(*pod_options_module.WORKER_ARGS, *ages))
    others = {
        name: pod_options_module.Program(image=each.image, command=each.command, args=each.args or own.args)
        for name, each in chosen.programs.items()
    }
    return {process_options_module.DEFAULT_COMMAND: own, **others}


def _profile(shape: pods.Profile, chosen: pods.Kubernetes) -> pod_options_module.Profile:
    cache = pod_options_module.Cache(
        size_bytes=shape.cache.size_bytes,
        host_path=shape.cache.path if shape.cache.kind == "host_path" else "",
        claim=shape.cache.claim if shape.cache.kind == "claim" else "",
    )
    given = {name: getattr(shape, name) for name in type(shape).model_fields if name != "cache"}
    return pod_options_module.Profile(**given, cache=cache, image_pull_policy=chosen.image_pull_policy)


def repository(name: str, chosen: sections.Repository) -> repository_options.Repository:
    """One model repository."""
    if chosen.path is not None:
        if not chosen.path.expanduser().is_dir():
            # Not refused: what a mount brings may come later, and leases that run must not wait for it.
            log.warning("repository.missing", setting=f"repositories.{name}.path", path=str(chosen.path))
        return repository_options.FileRepository(name=name, root=chosen.path.expanduser().absolute())
    secret = repository_options.Secret(file=chosen.secret_file)
    if chosen.url:
        scheme, _, rest = chosen.url.rstrip("/").partition("://")
        host, slash, path = rest.partition("/")
        url = f"{scheme}://{host.lower()}{slash}{path}"
        return repository_options.HttpRepository(name=name, url=url, authorization=secret)
    if chosen.gcs_bucket:
        return repository_options.GcsRepository(
            name=name,
            bucket=chosen.gcs_bucket,
            prefix=chosen.prefix,
            endpoint_url=chosen.endpoint_url,
            token=secret,
        )
    return repository_options.S3Repository(
        name=name,
        bucket=chosen.bucket,
        prefix=chosen.prefix,
        endpoint_url=chosen.endpoint_url,
        region=chosen.region,
        path_style=chosen.path_style,
        credentials=_credentials(chosen.keys),
    )


def _credentials(keys: sections.Keys) -> repository_options.Credentials:
    if keys.source == "environment":
        return repository_options.EnvironmentCredentials()
    if keys.source == "files" and keys.directory is not None:
        token = keys.directory / "session_token"
        return repository_options.FileCredentials(
            access_key_id=keys.directory / "access_key_id",
            secret_access_key=keys.directory / "secret_access_key",
            session_token=token if token.exists() else None,
        )
    secrets_ = (keys.access_key_id, keys.secret_access_key, keys.session_token)
    return repository_options.StaticCredentials(
        repository_options.Keys(*(each.get_secret_value() for each in secrets_))
    )


def _pool_key(text: str) -> pool.Key:
    namespace, slash, name = text.rpartition("/")
    return ids.Namespace(namespace if slash else ids.DEFAULT_NAMESPACE), ids.PoolName(name)


def _pool(chosen: sections.Pool, settings: settings_module.Settings) -> pool.PoolSpec:
    # Of pods the image decides, where nothing is named.
    default = "" if settings.backend == "kubernetes" else process_options_module.DEFAULT_COMMAND
    return pool.PoolSpec(
        worker=resources.WorkerSpec(
            command=chosen.command or default,
            image=chosen.image,
            resources=resources.Resources(
                gpus=chosen.gpus, cpu_milli=chosen.cpu_milli, memory_bytes=chosen.memory_bytes
            ),
            profile=chosen.profile,
        ),
        min_workers=chosen.min_workers,
        max_workers=chosen.max_workers,
        idle_worker_linger=dt.timedelta(seconds=chosen.idle_worker_linger_s),
    )
