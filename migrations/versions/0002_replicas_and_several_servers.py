"""Replicas of groups, wanted copies of leases, rules for images; what several servers on one database tell one another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("installation", _count("commits", "0"))
    op.add_column("leases", _count("wanted_copies", "1"))
    op.add_column("worker_groups", _count("replicas", "1"))
    with op.batch_alter_table("group_reports") as reports:
        reports.add_column(sa.Column("replica", TEXT, nullable=False, server_default=""))
        reports.drop_constraint(op.f("pk_group_reports"), type_="primary")
        reports.create_primary_key(op.f("pk_group_reports"), ["group_id", "replica"])
    op.create_table(
        "commits",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("leases", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("tables", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_commits")),
    )
    op.create_table(
        "image_rules",
        sa.Column("pattern", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("pattern", name=op.f("pk_image_rules")),
    )
    op.create_table(
        "leader",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_leader_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_leader")),
    )


def downgrade() -> None:
    op.drop_table("leader")
    op.drop_table("image_rules")
    op.drop_table("commits")
    # The older schema has room for one report of a group.
    op.execute("DELETE FROM group_reports WHERE replica <> ''")
    with op.batch_alter_table("group_reports") as reports:
        reports.drop_constraint(op.f("pk_group_reports"), type_="primary")
        reports.create_primary_key(op.f("pk_group_reports"), ["group_id"])
        reports.drop_column("replica")
    with op.batch_alter_table("worker_groups") as groups:
        groups.drop_column("replicas")
    with op.batch_alter_table("leases") as leases:
        leases.drop_column("wanted_copies")
    with op.batch_alter_table("installation") as installation:
        installation.drop_column("commits")


def _count(name: str, otherwise: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text(otherwise))
