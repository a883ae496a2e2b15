"""Rows for the tests of the admin, written as they would stand after the fact."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.utils import timezone

from dlq.models import DeadLetter, Status
from jobs.models import Attempt, Job
from jobs.states import FINAL, WAITING, State

CHARGE = "project.demo.tasks.ChargeOrder"
TRACEBACK = """Traceback (most recent call last):
  File "/srv/venv/lib/python3.11/site-packages/celery/app/trace.py", line 479, in trace_task
    R = retval = fun(*args, **kwargs)
  File "/srv/shop/orders/charging.py", line 41, in run
    answer = gateway.charge(order.total, token=order.card_token)
  File "/srv/shop/orders/gateway.py", line 18, in charge
    raise GatewayBusy(response.status_code)
orders.gateway.GatewayBusy: 503
"""


def job(state: str = "pending", **given: Any) -> Job:
    """A job in this state, with what the constraints ask of it."""
    now = timezone.now()
    fields: dict[str, Any] = {
        "task": CHARGE, "payload": '{"args":[],"kwargs":{"order_id":7}}', "queue": "payments", "state": state,
        "created_at": now - timedelta(minutes=2), "max_attempts": 4,
    }  # fmt: skip
    if state in WAITING:
        fields["due_at"] = now + timedelta(minutes=3)
    if state == State.RUNNING:
        fields |= {"lease_until": now + timedelta(seconds=15), "token": uuid4()}
    if state == State.RUNNING or state in FINAL:
        fields |= {
            "attempt": 1,
            "started_at": now - timedelta(minutes=1),
            "worker": "payments@web-1",
            "pid": 4711,
        }
    if state in FINAL:
        fields["finished_at"] = now - timedelta(seconds=48)
    return Job.objects.create(**(fields | given))


def attempt(of: Job, number: int = 1, **given: Any) -> Attempt:
    """An attempt that did not complete its job."""
    ended = timezone.now() - timedelta(seconds=60 - number)
    fields: dict[str, Any] = {
        "worker": "payments@web-1", "pid": 4711, "started_at": ended - timedelta(seconds=1.5), "finished_at": ended,
        "outcome": "transient", "error_type": "orders.gateway.GatewayBusy", "error_message": "503 from the gateway",
        "traceback": TRACEBACK, "decision": "retrying", "reason": "GatewayBusy is transient", "delay": 2.0,
    }  # fmt: skip
    return Attempt.objects.create(job=of, number=number, **(fields | given))


def letter(status: str = "open", of: Job | None = None, **given: Any) -> DeadLetter:
    """A dead letter with its failed job."""
    failed = of or job(
        "failed", error_type="orders.gateway.GatewayBusy", error_message="503", reason="4 attempts used up"
    )
    now = timezone.now()
    fields: dict[str, Any] = {
        "task": failed.task, "queue": failed.queue, "tenant": failed.tenant, "payload": failed.payload,
        "reason": failed.reason, "error_type": failed.error_type, "error_message": failed.error_message,
        "traceback": TRACEBACK, "fingerprint": "f" * 64, "status": status, "created_at": now,
        "attempts": [{"number": 1, "worker": "payments@web-1", "outcome": "transient", "decision": "retrying"}],
    }  # fmt: skip
    if status != Status.OPEN:
        fields |= {"closed_at": now, "closed_by": "ann"}
    return DeadLetter.objects.create(job=failed, **(fields | given))


def operator(*permissions: str, **given: Any) -> Any:
    """A member of staff who may do exactly this ("jobs.view_job")."""
    user = get_user_model().objects.create_user("ann", password="secret", is_staff=True, **given)
    for name in permissions:
        app, codename = name.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user
