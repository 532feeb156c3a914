"""Writes all that is generated below deploy/: ``python -m deploy.generate``."""

from __future__ import annotations

from deploy.helm import dashboard, schema
from deploy.images import locks


def generate() -> None:
    """The schema of the chart's values, its dashboard, and the locks of the images."""
    schema.FILE.write_text(schema.text(), encoding="utf-8")
    dashboard.FILE.write_text(dashboard.text(), encoding="utf-8")
    for image in locks.EXTRAS:
        (locks.HERE / f"{image}.lock").write_text(locks.text(image), encoding="utf-8")


if __name__ == "__main__":
    generate()
