"""Chooses the store of a model by the scheme of its URI; the one place that names them all."""

from __future__ import annotations

from sidecar import errors, values
from sidecar.sources import port


def of(model: values.Model) -> port.Source:
    """Raises ModelFailed: InvalidUri, NoCredentials, InvalidAccess."""
    # Their libraries take longer to import than all the rest, and a pod with other sources would wait for them.
    match model.uri.partition("://")[0]:
        case "file":
            from sidecar.sources import volume  # noqa: PLC0415

            return volume.Volume(model.uri)
        case "s3":
            from sidecar.sources import s3  # noqa: PLC0415

            return s3.Bucket(model.uri, _known(model.access, values.S3Access))
        case "http" | "https":
            from sidecar.sources import http  # noqa: PLC0415

            return http.Site(model.uri, _known(model.access, values.HttpAccess), model.layout)
        case "gs":
            from sidecar.sources import gcs  # noqa: PLC0415

            return gcs.Bucket(model.uri, _known(model.access, values.GcsAccess))
        case scheme:
            raise errors.ModelFailed(
                "InvalidUri", f"sources of scheme {scheme!r} are not read; use file, s3, gs, http or https"
            )


def _known(access: values.Access | None, kind: type[values.AnyAccess]) -> values.AnyAccess:
    if not isinstance(access, kind):
        raise errors.ModelFailed(
            "NoCredentials", "access to the store comes from the server, which was not reached yet", retryable=True
        )
    return access
