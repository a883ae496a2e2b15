"""A stand-in for somebody else's package: it knows Celery and has never heard of Mainstay."""

from typing import Any

from celery import shared_task

SLEEPY_LETTERS = "aeiou"


@shared_task(bind=True, max_retries=3, default_retry_delay=1)
def subscribe(self: Any, email: str) -> str:
    """Put somebody on the newsletter's list; for some the list server has to be woken up first."""
    from project.demo.models import Subscriber

    if email[0] in SLEEPY_LETTERS and self.request.retries == 0:
        raise self.retry(countdown=1, exc=TimeoutError("the list server is asleep"))
    Subscriber.objects.get_or_create(email=email)
    return email
