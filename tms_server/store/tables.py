"""The schema: which columns and indexes there are, every constraint by name.

Times are UTC microseconds since 1970, spans microseconds, nested values versioned JSON documents (`documents`). Portable
types only. It must never know a value's class: that is `mapping`'s. A change here needs a migration.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Ordered by its bytes everywhere, whatever the language of the database.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _document(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=False)


def _list(name: str) -> sa.Column[list[str]]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _count(name: str, otherwise: int) -> sa.Column[int]:
    """With a default, so that it could be added to rows that were there."""
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text(str(otherwise)))


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, TEXT, nullable=nullable)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, TEXT, primary_key=True)


# One row. `revision` is that of the last change, `forgotten_revision` the greatest of an event that was deleted, `commits`
# the number of the last row of the table of that name.
INSTALLATION = sa.Table(
    "installation",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    _text("id"),
    _big("epoch"),
    _time("alive_at"),
    _big("revision"),
    _big("forgotten_revision"),
    _count("commits", 0),
    sa.CheckConstraint('"only" = 1', name="one_row"),
)

LEASES = sa.Table(
    "leases",
    METADATA,
    _key("id"),
    _text("namespace"),
    _text("actor"),
    _text("request_id"),
    _text("body_digest"),
    _text("state"),
    _text("pool", nullable=True),
    _text("parent_id", nullable=True),
    _time("created_at"),
    _big("generation"),
    _big("revision"),
    _time("active_at", nullable=True),
    _time("renewed_until", nullable=True),
    _time("last_activity_at", nullable=True),
    _big("credit_us"),
    _count("wanted_copies", 1),
    _text("end_state", nullable=True),
    _text("end_reason", nullable=True),
    _text("end_message", nullable=True),
    _text("end_actor", nullable=True),
    _time("end_at", nullable=True),
    _document("spec"),
    _document("sources"),
    _document("conditions"),
    sa.UniqueConstraint("namespace", "actor", "request_id"),
    sa.Index(None, "state", "end_at"),
    sa.Index(None, "namespace", "created_at", "id"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "namespace", "pool"),
    sa.Index(None, "parent_id"),
)

# The labels of leases once more, for lists that filter by them; the lease's own document is what is read back.
LEASE_LABELS = sa.Table(
    "lease_labels",
    METADATA,
    sa.Column("lease_id", TEXT, sa.ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True),
    _key("key"),
    _text("value"),
    sa.Index(None, "key", "value", "lease_id"),
)

LEASE_EVENTS = sa.Table(
    "lease_events",
    METADATA,
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lease_id", TEXT, sa.ForeignKey("leases.id", ondelete="CASCADE"), nullable=False),
    _text("namespace"),
    _time("at"),
    _text("type"),
    _text("message"),
    _text("actor"),
    _text("state"),
    sa.Index(None, "lease_id", "revision"),
)

NAMES = sa.Table(
    "names",
    METADATA,
    _key("namespace"),
    _key("name"),
    sa.Column("lease_id", TEXT, sa.ForeignKey("leases.id", ondelete="CASCADE"), nullable=False),
    _time("changed_at"),
    sa.Index(None, "lease_id"),
)

POOLS = sa.Table(
    "pools",
    METADATA,
    _key("namespace"),
    _key("name"),
    _time("created_at"),
    _time("deleted_at", nullable=True),
    _document("spec"),
)

WORKER_GROUPS = sa.Table(
    "worker_groups",
    METADATA,
    _key("id"),
    _text("namespace"),
    _text("pool", nullable=True),
    _big("capacity_bytes"),
    _text("framework_class", nullable=True),
    _text("phase"),
    _big("generation"),
    _text("token"),
    _time("created_at"),
    _time("emptied_at", nullable=True),
    _count("replicas", 1),
    _document("spec"),
    sa.Index(None, "namespace", "pool"),
)

# A lease's or a group's row cannot go while bytes are booked: no cascade here.
ASSIGNMENTS = sa.Table(
    "assignments",
    METADATA,
    sa.Column("lease_id", TEXT, sa.ForeignKey("leases.id"), primary_key=True),
    sa.Column("copy", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("group_id", TEXT, sa.ForeignKey("worker_groups.id"), primary_key=True),
    _big("generation"),
    _big("booked_bytes"),
    _time("assigned_at"),
    sa.Column("draining", sa.Boolean(create_constraint=False), nullable=False),
    sa.Index(None, "group_id"),
)

GROUP_REPORTS = sa.Table(
    "group_reports",
    METADATA,
    sa.Column("group_id", TEXT, sa.ForeignKey("worker_groups.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("replica", TEXT, primary_key=True, server_default=""),
    _time("received_at"),
    _document("report"),
)

MEASUREMENTS = sa.Table(
    "measurements",
    METADATA,
    _key("source_digest"),
    _key("config_digest"),
    _key("worker"),
    _big("bytes"),
    _time("measured_at"),
)

ENDPOINTS = sa.Table(
    "endpoints",
    METADATA,
    _key("owner"),
    _text("host"),
    _big("http_port"),
    _big("grpc_port"),
    _big("metrics_port"),
)

# Images that may be asked for beside those of the settings.
IMAGE_RULES = sa.Table(
    "image_rules",
    METADATA,
    _key("pattern"),
    _time("created_at"),
    _text("actor"),
)

# One row at most: the server that leads, and how often it has said so.
LEADER = sa.Table(
    "leader",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    _big("term"),
    _text("holder"),
    _big("beat"),
    sa.CheckConstraint('"only" = 1', name="one_row"),
)

# What the last commits touched, for the other servers; empty where there can be only one.
COMMITS = sa.Table(
    "commits",
    METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    _list("leases"),
    _list("tables"),
)
