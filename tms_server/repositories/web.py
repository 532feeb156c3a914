"""Models on web servers: a file, an archive, or a directory whose index lists links, as nginx and Apache write them.

Decides by the path which of the three is meant: one that ends with a slash is a directory, one that ends as an archive or
a model's file is that. Blocks, for a bounded time.
"""

from __future__ import annotations

import html.parser
import urllib.parse
from collections.abc import Iterator, Mapping

from tms_server.model import errors, source
from tms_server.repositories import calls, listing, options

_INDEX_BYTES = 4 * 2**20
_FILES = {".onnx": "model.onnx", ".plan": "model.plan", ".pt": "model.pt", ".graphdef": "model.graphdef"}


def look_up(
    caller: calls.Caller, repository: options.HttpRepository, path: str, limits: options.Limits
) -> listing.Listing:
    """Finds what is at `path` below the repository's URL. Errors as the port names them."""
    place = _Place(caller, repository)
    uri = f"{repository.url}/{path}"
    match source.layout_of(uri):
        case source.Layout.ARCHIVE:
            name = path.rpartition("/")[2]
            return listing.Listing(uri, listing.bounded([place.file(path, name)], limits), None)
        case source.Layout.FILE if (suffix := _suffix(path)) in _FILES:
            file = place.file(path, f"1/{_FILES[suffix]}")
            return listing.Listing(uri, listing.bounded([file], limits), None)
    directory = f"{path.rstrip('/')}/"
    files = listing.bounded(place.tree(directory, "", limits.most_depth), limits)
    if not files:
        raise errors.NotFound(f"uri: the index of {directory!r} in repository {repository.name!r} lists no file")
    return listing.Listing(f"{repository.url}/{directory}", files, place.config(directory, files))


class _Place:
    """One repository, asked for one model."""

    def __init__(self, caller: calls.Caller, repository: options.HttpRepository) -> None:
        self._caller, self._repository = caller, repository
        said = repository.authorization.read()
        self._headers = {"Accept-Encoding": "identity", **({"Authorization": said} if said else {})}

    def file(self, path: str, name: str) -> source.SourceFile:
        """Size and version of a file, which the model calls `name`."""
        headers = self._ask("HEAD", path, 0).headers
        length = headers.get("Content-Length", "")
        if not length.isdigit():
            raise errors.InvalidField(
                "uri", f"repository {self._repository.name!r} does not tell the size of {path!r} (Content-Length)"
            )
        return source.SourceFile(path=name, size_bytes=int(length), version=_version(headers))

    def tree(self, directory: str, prefix: str, depth: int) -> Iterator[source.SourceFile]:
        """All files that the indexes list."""
        if depth == 0:
            raise errors.InvalidField("uri", f"directories are nested too deep below {prefix!r}")
        for name in _links(self._ask("GET", directory, _INDEX_BYTES)):
            if name.endswith("/"):
                yield from self.tree(f"{directory}{name}", f"{prefix}{name}", depth - 1)
            else:
                yield self.file(f"{directory}{name}", f"{prefix}{name}")

    def config(self, directory: str, files: tuple[source.SourceFile, ...]) -> bytes | None:
        for file in files:
            if file.path == listing.CONFIG:
                listing.check_config_size(file.size_bytes)
                return self._ask("GET", f"{directory}{file.path}", listing.MOST_CONFIG_BYTES).body
        return None

    def _ask(self, method: str, path: str, most_bytes: int) -> calls.Answer:
        url = f"{self._repository.url}/{urllib.parse.quote(path, safe=_SAFE)}"
        return self._caller.ask(method, url, self._headers, self._repository.name, most_bytes)


_SAFE = "/~!$&'()*+,;=:@"


def _version(headers: Mapping[str, str]) -> str:
    """What the sidecar recognises the bytes by: an entity tag, else the time of the last change; maybe nothing."""
    return headers.get("ETag", "") or headers.get("Last-Modified", "")


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return name[name.rfind(".") :] if "." in name else ""


def _links(index: calls.Answer) -> list[str]:
    """Names that an index lists right below its own directory; sorted, so that the order is the server's in nothing."""
    if not index.headers.get("Content-Type", "").startswith("text/html"):
        raise errors.NotFound(
            "uri: there is no directory index, which would be HTML; name an archive or a model's file"
        )
    parser = _Links()
    try:
        parser.feed(index.body.decode(errors="replace"))
    except AssertionError as failure:
        # What the library calls markup that it knows nothing of.
        raise errors.InvalidField("uri", "the directory index is no HTML that can be read") from failure
    return sorted({name for href in parser.hrefs if (name := _name(href))})


def _name(href: str) -> str:
    """Empty for what leads elsewhere: columns to sort by, the directory above, other places."""
    try:
        parts = urllib.parse.urlsplit(href)
    except ValueError:
        return ""
    if parts.scheme or parts.netloc or parts.query or parts.fragment:
        return ""
    name = urllib.parse.unquote(parts.path).removeprefix("./")
    plain = name.removesuffix("/")
    return "" if "/" in plain or plain in {"", ".", ".."} else name


class _Links(html.parser.HTMLParser):
    """Gathers what anchors lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs.extend(value for name, value in attrs if name == "href" and value)
