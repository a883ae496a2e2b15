"""The audit trail: what operators did, and what the conductor noticed that an operator must know."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model

from jobs import lifecycle
from jobs.models import Act


def record_act(verb: str, by: str, target: str, *, job_id: UUID | None = None, reason: str = "", **details: Any) -> Act:
    """Keep in the audit trail what an operator did."""
    users = get_user_model()
    user = users._default_manager.filter(**{users.USERNAME_FIELD: by}).first() if by else None
    return Act.objects.using(lifecycle.alias()).create(
        at=lifecycle.database_now(),
        by=by,
        user=user,
        verb=verb,
        target=target,
        job_id=job_id,
        reason=reason,
        details=details,
    )
