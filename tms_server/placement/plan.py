"""Chooses a place for every lease that needs one.

Decides groups, bytes and generations of one pass; leaves nothing open and touches nothing. Never random: the same fleet,
in whatever order, gives the same plan.
"""

from __future__ import annotations

import datetime as dt

from tms_server.model import ids
from tms_server.placement import report, snapshot


def plan(fleet: snapshot.Fleet, now: dt.datetime, source: ids.IdSource) -> report.Plan:
    """Places what can be placed, in order of priority, creation and id; says of the rest why not.

    Every plan has passed the laws of `check`; LawBroken (a defect) otherwise.
    """
    raise NotImplementedError
