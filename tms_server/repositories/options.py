"""The repositories that an administrator declared, and where their credentials come from."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Protocol

from tms_server.model import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """Credentials of an S3 repository as they are now; an empty id means anonymous access."""

    access_key_id: str = ""
    secret_access_key: str = dataclasses.field(default="", repr=False)
    session_token: str = dataclasses.field(default="", repr=False)


class Credentials(Protocol):
    """Where keys come from. Read at each use, so that a rotated key is taken at once."""

    def read(self) -> Keys:
        """Unavailable when they cannot be read now."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Written in the settings; the default is anonymous access."""

    keys: Keys = Keys()

    def read(self) -> Keys:
        return self.keys


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCredentials:
    """From variables of the server's environment."""

    access_key_id: str = "AWS_ACCESS_KEY_ID"
    secret_access_key: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a variable
    session_token: str = "AWS_SESSION_TOKEN"  # noqa: S105 - the name of a variable

    def read(self) -> Keys:
        for name in (self.access_key_id, self.secret_access_key):
            if not os.environ.get(name):
                raise errors.Unavailable(f"the variable {name} is not set")
        names = (self.access_key_id, self.secret_access_key, self.session_token)
        return Keys(*(os.environ.get(name, "") for name in names))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileCredentials:
    """From files, one value in each, such as a mounted secret."""

    access_key_id: pathlib.Path
    secret_access_key: pathlib.Path
    session_token: pathlib.Path | None = None

    def read(self) -> Keys:
        paths = (self.access_key_id, self.secret_access_key, self.session_token)
        try:
            return Keys(*("" if path is None else path.read_text().strip() for path in paths))
        except (OSError, UnicodeDecodeError) as failure:
            raise errors.Unavailable(f"the credentials cannot be read: {failure}") from failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One text in a file, such as a mounted secret; without a file it is empty. Read at each use."""

    file: pathlib.Path | None = None

    def read(self) -> str:
        """Unavailable when it cannot be read now, or is no text that a header may carry."""
        if self.file is None:
            return ""
        try:
            text = self.file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as failure:
            raise errors.Unavailable(f"the credentials cannot be read: {type(failure).__name__}") from failure
        if not text.isprintable():
            raise errors.Unavailable("the credentials are not one line of text")
        return text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileRepository:
    """A directory tree of models on a file system that the workers' machines share."""

    name: str
    root: pathlib.Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class S3Repository:
    """A bucket, or what is below a prefix of it. An empty endpoint means the region's own at AWS."""

    name: str
    bucket: str
    prefix: str = ""
    endpoint_url: str = ""
    region: str = "us-east-1"
    path_style: bool = False
    credentials: Credentials = StaticCredentials()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpRepository:
    """What is below a URL, which ends without a slash. `authorization` is sent as the header of that name."""

    name: str
    url: str
    authorization: Secret = Secret()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GcsRepository:
    """A bucket of Google Cloud Storage, or what is below a prefix of it. An empty endpoint means Google's own."""

    name: str
    bucket: str
    prefix: str = ""
    endpoint_url: str = ""
    token: Secret = Secret()


Repository = FileRepository | S3Repository | HttpRepository | GcsRepository


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one lookup; beyond them the model is refused, or its repository called silent."""

    most_files: int = 10_000
    most_bytes: int = 2**40
    most_depth: int = 32
    timeout_s: float = 10.0
    connect_timeout_s: float = 2.0
    read_timeout_s: float = 3.0
    lookups_at_once: int = 8
