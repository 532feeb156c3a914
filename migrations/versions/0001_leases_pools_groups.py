"""Leases with their events, labels and names; pools; worker groups with assignments and reports; measurements; endpoints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Ordered by its bytes everywhere, whatever the language of the database.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("owner", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("http_port", sa.BigInteger(), nullable=False),
        sa.Column("grpc_port", sa.BigInteger(), nullable=False),
        sa.Column("metrics_port", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_endpoints")),
    )
    op.create_table(
        "installation",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("alive_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("forgotten_revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_installation_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_installation")),
    )
    op.create_table(
        "leases",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("body_digest", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("pool", TEXT, nullable=True),
        sa.Column("parent_id", TEXT, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("active_at", sa.BigInteger(), nullable=True),
        sa.Column("renewed_until", sa.BigInteger(), nullable=True),
        sa.Column("last_activity_at", sa.BigInteger(), nullable=True),
        sa.Column("credit_us", sa.BigInteger(), nullable=False),
        sa.Column("end_state", TEXT, nullable=True),
        sa.Column("end_reason", TEXT, nullable=True),
        sa.Column("end_message", TEXT, nullable=True),
        sa.Column("end_actor", TEXT, nullable=True),
        sa.Column("end_at", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("sources", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("conditions", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.UniqueConstraint("namespace", "actor", "request_id", name=op.f("uq_leases_namespace_actor_request_id")),
    )
    op.create_index(op.f("ix_leases_created_at_id"), "leases", ["created_at", "id"], unique=False)
    op.create_index(
        op.f("ix_leases_namespace_created_at_id"), "leases", ["namespace", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_leases_namespace_pool"), "leases", ["namespace", "pool"], unique=False)
    op.create_index(op.f("ix_leases_parent_id"), "leases", ["parent_id"], unique=False)
    op.create_index(op.f("ix_leases_state_end_at"), "leases", ["state", "end_at"], unique=False)
    op.create_table(
        "measurements",
        sa.Column("source_digest", TEXT, nullable=False),
        sa.Column("config_digest", TEXT, nullable=False),
        sa.Column("worker", TEXT, nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("measured_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source_digest", "config_digest", "worker", name=op.f("pk_measurements")),
    )
    op.create_table(
        "pools",
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_pools")),
    )
    op.create_table(
        "worker_groups",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("pool", TEXT, nullable=True),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("framework_class", TEXT, nullable=True),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("token", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("emptied_at", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_groups")),
    )
    op.create_index(op.f("ix_worker_groups_namespace_pool"), "worker_groups", ["namespace", "pool"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("lease_id", TEXT, nullable=False),
        sa.Column("copy", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("group_id", TEXT, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("booked_bytes", sa.BigInteger(), nullable=False),
        sa.Column("assigned_at", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["worker_groups.id"], name=op.f("fk_assignments_group_id")),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name=op.f("fk_assignments_lease_id")),
        sa.PrimaryKeyConstraint("lease_id", "copy", "group_id", name=op.f("pk_assignments")),
    )
    op.create_index(op.f("ix_assignments_group_id"), "assignments", ["group_id"], unique=False)
    op.create_table(
        "group_reports",
        sa.Column("group_id", TEXT, nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["worker_groups.id"], name=op.f("fk_group_reports_group_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", name=op.f("pk_group_reports")),
    )
    op.create_table(
        "lease_events",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lease_id", TEXT, nullable=False),
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("message", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name=op.f("fk_lease_events_lease_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_lease_events")),
    )
    op.create_index(op.f("ix_lease_events_lease_id_revision"), "lease_events", ["lease_id", "revision"], unique=False)
    op.create_table(
        "lease_labels",
        sa.Column("lease_id", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name=op.f("fk_lease_labels_lease_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("lease_id", "key", name=op.f("pk_lease_labels")),
    )
    op.create_index(
        op.f("ix_lease_labels_key_value_lease_id"), "lease_labels", ["key", "value", "lease_id"], unique=False
    )
    op.create_table(
        "names",
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("lease_id", TEXT, nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name=op.f("fk_names_lease_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_names")),
    )
    op.create_index(op.f("ix_names_lease_id"), "names", ["lease_id"], unique=False)


def downgrade() -> None:
    op.drop_table("names")
    op.drop_table("lease_labels")
    op.drop_table("lease_events")
    op.drop_table("group_reports")
    op.drop_table("assignments")
    op.drop_table("worker_groups")
    op.drop_table("pools")
    op.drop_table("measurements")
    op.drop_table("leases")
    op.drop_table("installation")
    op.drop_table("endpoints")
