"""Whether what a caller asks for can be meant at all: limits, alphabets and contradictions, without looking anything up.

Raises InvalidField with the dotted path of the field (as in the wire format) and the remedy; Unimplemented for what a
later version may do. Existence of pools, parents and models is for the services to check.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Mapping

from tms_server.model import errors, lease, pool, resources

MODELS_MAX = 64
OVERRIDE_MAX_BYTES = 64 * 1024
URI_MAX = 2048
LABELS_MAX = 64
LABEL_MAX = 128
SELECTORS_MAX = 32
PRIORITY_MAX = 1000
WORKERS_MAX = 10_000
BYTES_MAX = 1 << 60
REPLICAS_MAX = 1000
METRICS_MAX = 16
IMAGE_MAX = 512
QUANTILES_PERMILLE = (500, 900, 950, 990)
WINDOW_MAX = dt.timedelta(hours=1)
PERIOD_MAX = dt.timedelta(minutes=30)
SPAN_MIN = dt.timedelta(seconds=1)
SPAN_MAX = dt.timedelta(days=3650)

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_IMAGE_PATTERN = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._/:@-]*\*?")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_READ = ("model", "file", "s3", "gs", "http", "https")
_LATER = ("azure", "hf", "oci")


def lease_spec(spec: lease.LeaseSpec) -> None:
    """Checks all of a lease's spec."""
    if not 1 <= len(spec.models) <= MODELS_MAX:
        raise errors.InvalidField("models", f"give 1 to {MODELS_MAX} models")
    for index, reference in enumerate(spec.models):
        _model(f"models[{index}]", reference)
    _unique(spec.models)
    _placement(spec.placement)
    if spec.autoscaling is not None:
        _autoscaling(spec.autoscaling, spec.placement)
    times("times", spec.times)
    if abs(spec.priority) > PRIORITY_MAX:
        raise errors.InvalidField("priority", f"give a number from {-PRIORITY_MAX} to {PRIORITY_MAX}")
    labels("labels", spec.labels)
    sharing("sharing", spec.sharing)
    if spec.sharing.share_with and isinstance(spec.placement, lease.Dedicated):
        raise errors.InvalidField("sharing.share_with", "drop it; a dedicated worker is shared with nobody")


def pool_spec(spec: pool.PoolSpec) -> None:
    """Checks all of a pool's spec."""
    worker("spec.worker", spec.worker)
    if not 1 <= spec.max_workers <= WORKERS_MAX:
        raise errors.InvalidField("spec.max_workers", f"give a number from 1 to {WORKERS_MAX}")
    if not 0 <= spec.min_workers <= spec.max_workers:
        raise errors.InvalidField("spec.min_workers", f"give a number from 0 to max_workers, {spec.max_workers}")
    if not dt.timedelta(0) <= spec.idle_worker_linger <= SPAN_MAX:
        raise errors.InvalidField("spec.idle_worker_linger", f"give a span from 0 to {SPAN_MAX.days} days")


def name(path: str, value: str) -> None:
    """Checks a lease name, pool name or namespace: 1 to 63 of [a-z0-9-], first a letter."""
    if not _NAME.fullmatch(value):
        raise errors.InvalidField(path, "give 1 to 63 of a-z, 0-9 and -, first a letter")


def request_id(path: str, value: str) -> None:
    """Checks a request id: 1 to 128 printable characters."""
    _printable(path, value)


def labels(path: str, values: Mapping[str, str]) -> None:
    """Checks labels (also those of a filter): at most 64, keys and values of at most 128 printable characters."""
    if len(values) > LABELS_MAX:
        raise errors.InvalidField(path, f"give at most {LABELS_MAX} labels")
    for key, value in values.items():
        _printable(f"{path} key", key)
        if "=" in key:
            raise errors.InvalidField(f"{path}[{key}]", "leave = out of keys; selectors are written key=value")
        if len(value) > LABEL_MAX or not value.isprintable():
            raise errors.InvalidField(f"{path}[{key}]", f"give a value of at most {LABEL_MAX} printable characters")


def times(path: str, values: lease.Times) -> None:
    """Checks the clocks of a lease, each by itself and together."""
    span(f"{path}.hold", values.hold)
    span(f"{path}.activity_window", values.activity_window)
    span(f"{path}.pending_timeout", values.pending_timeout)
    if values.max_lifetime is None:
        return
    span(f"{path}.max_lifetime", values.max_lifetime)
    if values.max_lifetime < values.hold:
        raise errors.InvalidField(f"{path}.max_lifetime", f"give at least the hold, {values.hold}, or leave it out")


def span(path: str, value: dt.timedelta) -> None:
    """Checks a span of time of a lease: one second to ten years."""
    if not SPAN_MIN <= value <= SPAN_MAX:
        raise errors.InvalidField(path, f"give a span from 1 second to {SPAN_MAX.days} days")


def sharing(path: str, values: lease.Sharing) -> None:
    """Checks who may share: selectors well formed, and not at odds with each other."""
    selectors(f"{path}.share_with", values.share_with)
    selectors(f"{path}.not_with", values.not_with)
    if values.exclusive and values.share_with:
        raise errors.InvalidField(f"{path}.exclusive", "drop either exclusive or share_with; they exclude each other")
    if both := sorted(set(values.share_with) & set(values.not_with)):
        raise errors.InvalidField(f"{path}.not_with", f"drop {both[0]!r} here or in share_with")


def selectors(path: str, values: Collection[str]) -> None:
    """Checks selectors: at most 32, each a lease id, a lease name or key=value."""
    if len(values) > SELECTORS_MAX:
        raise errors.InvalidField(path, f"give at most {SELECTORS_MAX} selectors")
    for index, value in enumerate(values):
        if not value or len(value) > 2 * LABEL_MAX + 1 or not value.isprintable() or value.startswith("="):
            raise errors.InvalidField(f"{path}[{index}]", "give a lease id, a lease name, or a label as key=value")


def worker(path: str, spec: resources.WorkerSpec) -> None:
    """Checks what a worker is: an image or a command's name, and reservations that are not negative."""
    if spec.image and spec.command:
        raise errors.InvalidField(f"{path}.image", "give either an image or a command")
    if "/" in spec.command or " " in spec.command:
        raise errors.InvalidField(f"{path}.command", "give the name of an allowed command, never a command line")
    if spec.profile and not _NAME.fullmatch(spec.profile):
        raise errors.InvalidField(f"{path}.profile", "give the name of a pod shape, or leave it out")
    if len(spec.image) > IMAGE_MAX or not spec.image.isprintable() or " " in spec.image:
        raise errors.InvalidField(f"{path}.image", f"give an image's name of at most {IMAGE_MAX} characters")
    for field in ("gpus", "cpu_milli", "memory_bytes"):
        if not 0 <= getattr(spec.resources, field) <= BYTES_MAX:
            raise errors.InvalidField(f"{path}.resources.{field}", "give 0 (the default) or a positive number")


def image_pattern(path: str, value: str) -> None:
    """Checks a rule for images: an image's name that may end in ``*``."""
    if len(value) > IMAGE_MAX or not _IMAGE_PATTERN.fullmatch(value):
        remedy = f"give an image's name of at most {IMAGE_MAX} characters; a * may stand at its end"
        raise errors.InvalidField(path, remedy)


def uri(path: str, value: str) -> None:
    """Checks a model URI; Unimplemented for a scheme of a later version."""
    if len(value) > URI_MAX or not value.isprintable():
        raise errors.InvalidField(path, f"give at most {URI_MAX} printable characters")
    match = _SCHEME.fullmatch(value)
    remedy = (
        "give model://<repository>/<path>, file:///<path>, s3:// or gs://<bucket>/<prefix>, or https://<host>/<path>"
    )
    if match is None:
        raise errors.InvalidField(path, remedy)
    scheme, rest = match.groups()
    if scheme in _LATER:
        raise errors.Unimplemented(f"{path}: this server does not read {scheme}:// yet; {remedy}")
    if scheme not in _READ or not _has_place(scheme, rest):
        raise errors.InvalidField(path, remedy)
    if ".." in rest.split("/") or "\\" in rest:
        raise errors.InvalidField(path, "leave .. and backslashes out of the path")


def _has_place(scheme: str, rest: str) -> bool:
    host, _, path = rest.partition("/")
    if scheme == "file":
        return not host and bool(path.strip("/"))
    return bool(host) and (scheme in {"s3", "gs"} or bool(path.strip("/")))


def _model(path: str, reference: lease.ModelReference) -> None:
    if not _MODEL_NAME.fullmatch(reference.name):
        raise errors.InvalidField(f"{path}.name", "give 1 to 128 of A-Z, a-z, 0-9, _, . and -, first a letter or digit")
    uri(f"{path}.uri", reference.uri)
    if not 0 <= reference.declared_bytes <= BYTES_MAX:
        raise errors.InvalidField(f"{path}.declared_bytes", "give the bytes it needs once loaded, or 0 if not known")
    if reference.config_override:
        _override(f"{path}.config_override", reference.config_override)


def _override(path: str, text: str) -> None:
    if len(text.encode(errors="replace")) > OVERRIDE_MAX_BYTES:
        raise errors.InvalidField(path, f"give at most {OVERRIDE_MAX_BYTES} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise errors.InvalidField(path, "give a JSON object of a model configuration") from None
    if not isinstance(value, dict):
        raise errors.InvalidField(path, "give a JSON object of a model configuration")


def _unique(models: Collection[lease.ModelReference]) -> None:
    seen: set[str] = set()
    for index, reference in enumerate(models):
        if reference.name in seen:
            raise errors.InvalidField(f"models[{index}].name", f"{reference.name!r} is there twice; name each once")
        seen.add(reference.name)


def _placement(placement: lease.Placement) -> None:
    if isinstance(placement, lease.InPool):
        name("pool.pool", placement.pool)
        return
    worker("dedicated.worker", placement.worker)
    if not 1 <= placement.replicas <= REPLICAS_MAX:
        raise errors.InvalidField("dedicated.replicas", f"give a number from 1 to {REPLICAS_MAX}, or leave it out")


def _autoscaling(asked: lease.Autoscaling, placement: lease.Placement) -> None:
    path = "autoscaling"
    if not 1 <= asked.min_replicas <= REPLICAS_MAX:
        raise errors.InvalidField(f"{path}.min_replicas", f"give a number from 1 to {REPLICAS_MAX}")
    if not asked.min_replicas <= asked.max_replicas <= REPLICAS_MAX:
        remedy = f"give a number from min_replicas, {asked.min_replicas}, to {REPLICAS_MAX}"
        raise errors.InvalidField(f"{path}.max_replicas", remedy)
    if isinstance(placement, lease.Dedicated) and not (asked.min_replicas <= placement.replicas <= asked.max_replicas):
        raise errors.InvalidField("dedicated.replicas", "give a number that autoscaling allows, or leave it out")
    if not 1 <= len(asked.metrics) <= METRICS_MAX:
        raise errors.InvalidField(f"{path}.metrics", f"give at most {METRICS_MAX}")
    for index, each in enumerate(asked.metrics):
        _metric(f"{path}.metrics[{index}]", each)
    _behavior(f"{path}.behavior", asked.behavior)


def _metric(path: str, asked: lease.ScalingMetric) -> None:
    if not 0 < asked.target_milli <= BYTES_MAX:
        raise errors.InvalidField(f"{path}.target_milli", "give thousandths of the unit, more than 0")
    if asked.kind is lease.MetricKind.LATENCY:
        if asked.quantile_permille not in QUANTILES_PERMILLE:
            raise errors.InvalidField(f"{path}.quantile_permille", "give 500, 900, 950 or 990")
    elif asked.quantile_permille:
        raise errors.InvalidField(f"{path}.quantile_permille", "leave it out; only LATENCY has quantiles")


def _behavior(path: str, asked: lease.ScalingBehavior) -> None:
    for field in ("scale_up_window", "scale_down_window"):
        window = getattr(asked, field)
        if window is not None and not dt.timedelta(0) <= window <= WINDOW_MAX:
            raise errors.InvalidField(f"{path}.{field}", f"give a span from 0 to {WINDOW_MAX.total_seconds():g} s")
    for field in ("max_step_up", "max_step_down"):
        if not 0 <= getattr(asked, field) <= REPLICAS_MAX:
            raise errors.InvalidField(f"{path}.{field}", f"give a number from 1 to {REPLICAS_MAX}, or 0 for no bound")
    if not SPAN_MIN <= asked.period <= PERIOD_MAX:
        raise errors.InvalidField(f"{path}.period", f"give a span from 1 to {PERIOD_MAX.total_seconds():g} s")


def _printable(path: str, value: str) -> None:
    if not 1 <= len(value) <= LABEL_MAX or not value.isprintable():
        raise errors.InvalidField(path, f"give 1 to {LABEL_MAX} printable characters")
