"""Rules for images in the database."""

from __future__ import annotations

import sqlalchemy as sa

from tms_server.model import image
from tms_server.store import mapping, session, tables

_RULES = sa.select(tables.IMAGE_RULES).order_by(tables.IMAGE_RULES.c.pattern)


class ImageReads(session.ReadSession):
    """Reads of rules for images."""

    def image_rules(self) -> tuple[image.ImageRule, ...]:
        return self._whole(tables.IMAGE_RULES, lambda: tuple(map(mapping.image_rule_value, self._all(_RULES))))


class ImageWrites(session.WriteSession, ImageReads):
    """Changes of rules for images."""

    def put_image_rule(self, new: image.ImageRule) -> None:
        """One with that pattern stays as it is."""
        if self._one(session.select_by_key(tables.IMAGE_RULES), b_pattern=new.pattern) is None:
            self._put(tables.IMAGE_RULES, mapping.image_rule_columns(new))

    def delete_image_rule(self, pattern: str) -> bool:
        return self._delete(tables.IMAGE_RULES, pattern=pattern)
