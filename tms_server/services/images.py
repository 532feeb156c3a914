"""Images that leases and pools may ask for: allow, list, forbid; and the check that every worker passes.

Those of the settings hold always; the stored ones are added. What runs already is not touched when a rule goes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from tms_server.leases import validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, image, resources
from tms_server.ports import store
from tms_server.services import parts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuleView:
    """One rule; `created_at` is None for one of the settings."""

    pattern: str
    actor: str = ""
    created_at: dt.datetime | None = None

    @property
    def from_settings(self) -> bool:
        """It can be removed only there."""
        return self.created_at is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The use cases of the list of images."""

    parts: parts.Parts

    async def allow(self, caller: caller_module.Caller, pattern: str) -> RuleView:
        """Adds a rule; the same again is a success."""
        validate.image_pattern("pattern", pattern)
        if pattern in self.parts.images:
            return RuleView(pattern=pattern)
        rule = image.ImageRule(pattern=pattern, created_at=self.parts.clock.now(), actor=caller.name)

        def work(unit: store.UnitOfWork) -> image.ImageRule:
            unit.put_image_rule(rule)
            return next(each for each in unit.image_rules() if each.pattern == pattern)

        return _view(await self.parts.store.write(work))

    async def list(self, caller: caller_module.Caller) -> tuple[RuleView, ...]:
        """The settings' rules, then the stored ones."""
        del caller  # every caller may, while there are no rights
        stored = await self.parts.store.read(lambda reader: reader.image_rules())
        declared = dict.fromkeys(self.parts.images)
        added = (_view(each) for each in stored if each.pattern not in declared)
        return (*(RuleView(pattern=each) for each in declared), *added)

    async def forbid(self, caller: caller_module.Caller, pattern: str) -> None:
        """Removes a stored rule; FailedPrecondition for one of the settings, NotFound for none."""
        del caller
        validate.image_pattern("pattern", pattern)
        if pattern in self.parts.images:
            raise errors.FailedPrecondition(f"{pattern!r} is a rule of the server's settings; remove it there")
        if not await self.parts.store.write(lambda unit: unit.delete_image_rule(pattern)):
            raise errors.NotFound(f"no rule {pattern!r} in the list of images")


def check(reader: store.Reader, declared: tuple[str, ...], path: str, worker: resources.WorkerSpec) -> None:
    """PermissionDenied for a worker at that path of the request whose image no rule allows."""
    if not worker.image or image.allowed(worker.image, declared):
        return
    if not image.allowed(worker.image, (each.pattern for each in reader.image_rules())):
        raise errors.PermissionDenied(
            f"{path}.image: {worker.image!r} is not on the list of allowed images;"
            f" an administrator adds it with: tmsctl allowlist add {worker.image}"
        )


def _view(stored: image.ImageRule) -> RuleView:
    return RuleView(pattern=stored.pattern, actor=stored.actor, created_at=stored.created_at)
