"""What a model URI says, and which declared repository it falls into. Pure.

In file:// URIs percent signs escape, as everywhere; in the others characters are taken literally, and those that some
reader of a URI could take otherwise are refused.
"""

from __future__ import annotations

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Iterable, Sequence

from tms_server.model import errors
from tms_server.repositories import options

_LATER = frozenset({"azure", "hf", "oci"})
_KNOWN = "model://, s3://, gs://, https://, http:// or file://"
_FORBIDDEN = frozenset("?#%\\")
_LONGEST_PATH = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A directory inside a repository; `path` is relative to its root or bucket, without the prefix left off.

    On a web server it may be a file, or a directory that says so with a slash at its end.
    """

    repository: options.Repository
    path: str


def locate(uri: str, repositories: Sequence[options.Repository]) -> Target:
    """Finds the repository and the path.

    InvalidField (``uri``): unreadable, or outside of every repository. NotFound: no such repository. Unimplemented: a
    scheme of a later version.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        raise _invalid(
            "must be model://<repository>/<path>, file:///<path>, s3:// or gs://<bucket>/<prefix>, or https://<host>/<path>"
        )
    if scheme in _LATER:
        raise errors.Unimplemented(f"uri: this server does not read {scheme}:// yet; use {_KNOWN}")
    place, _, path = rest.partition("/")
    if scheme == "file":
        return _in_tree(place, _segments(_unquoted(path)), repositories)
    if _FORBIDDEN & set(path):
        raise _invalid("the path must not hold '?', '#', '%' or a backslash")
    segments = _segments(path)
    match scheme:
        case "model":
            return _named(place, segments, repositories, slash="/" if path.endswith("/") else "")
        case "s3":
            return _in_bucket(place, segments, repositories, options.S3Repository)
        case "gs":
            return _in_bucket(place, segments, repositories, options.GcsRepository)
        case "http" | "https":
            return _on_site(uri, repositories)
    raise _invalid(f"the scheme {scheme!r} is unknown; use {_KNOWN}")


def check_file(path: str) -> str:
    """The relative path of a model's file if it is safe on any disk, else InvalidField."""
    parts = path.split("/")
    unsafe = any(part in {"", ".", ".."} for part in parts) or not path.isprintable() or "\\" in path
    if unsafe or len(path) > _LONGEST_PATH:
        raise _invalid(f"the file {path!r} has a name that is not safe to fetch; rename it")
    return path


def _segments(path: str) -> list[str]:
    segments = path.removesuffix("/").split("/")
    if any(segment in {"", ".", ".."} for segment in segments):
        raise _invalid("the path must name a model directory, without empty parts, '.' or '..'")
    if not path.isprintable():
        raise _invalid("the path must not hold control characters")
    return segments


def _unquoted(path: str) -> str:
    if _FORBIDDEN - {"%"} & set(path):
        raise _invalid("a '?', '#' or backslash of the path must be written as %3F, %23 or %5C")
    try:
        return urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError as failure:
        raise _invalid("the path must be UTF-8") from failure


def _named(name: str, segments: list[str], repositories: Iterable[options.Repository], slash: str) -> Target:
    known = {each.name: each for each in repositories}
    if name not in known:
        declared = f"declared are {', '.join(sorted(known))}" if known else "none is declared"
        raise errors.NotFound(f"uri: no repository is called {name!r}; {declared}")
    repository = known[name]
    if isinstance(repository, options.HttpRepository):
        return Target(repository, f"{'/'.join(segments)}{slash}")
    buckets = (options.S3Repository, options.GcsRepository)
    prefix = _parts(repository.prefix) if isinstance(repository, buckets) else []
    return Target(repository, "/".join([*prefix, *segments]))


def _on_site(uri: str, repositories: Iterable[options.Repository]) -> Target:
    """Hosts are the same in any case; the rest of a URL is taken as it stands."""
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    whole = f"{scheme}://{host.lower()}/{path}"
    fitting = [
        each for each in repositories if isinstance(each, options.HttpRepository) and whole.startswith(f"{each.url}/")
    ]
    if not fitting:
        raise _outside()
    nearest = max(fitting, key=lambda each: len(each.url))
    return Target(nearest, whole.removeprefix(f"{nearest.url}/"))


def _in_bucket(
    bucket: str,
    segments: list[str],
    repositories: Iterable[options.Repository],
    kind: type[options.S3Repository | options.GcsRepository],
) -> Target:
    fitting = [
        each
        for each in repositories
        if isinstance(each, kind)
        and each.bucket == bucket
        and segments[: len(_parts(each.prefix))] == _parts(each.prefix)
    ]
    if not fitting:
        raise _outside()
    return Target(max(fitting, key=lambda each: len(_parts(each.prefix))), "/".join(segments))


def _in_tree(host: str, segments: list[str], repositories: Iterable[options.Repository]) -> Target:
    if host not in {"", "localhost"}:
        raise _invalid("a file URI has three slashes and an absolute path: file:///<path>")
    path = pathlib.PurePosixPath("/", *segments)
    fitting = [
        each for each in repositories if isinstance(each, options.FileRepository) and path.is_relative_to(each.root)
    ]
    if not fitting:
        raise _outside()
    nearest = max(fitting, key=lambda each: len(each.root.parts))
    return Target(nearest, str(path.relative_to(nearest.root)))


def _parts(prefix: str) -> list[str]:
    return [part for part in prefix.split("/") if part]


def _outside() -> errors.InvalidField:
    return _invalid(
        "is outside of the declared repositories; ask the administrator for one, or use model://<repository>/<path>"
    )


def _invalid(remedy: str) -> errors.InvalidField:
    return errors.InvalidField("uri", remedy)
