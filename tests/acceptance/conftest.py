"""What acceptance tests say often: wait until jobs have settled, and account for them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from jobs.models import Job

Settled = Callable[..., Counter[str]]


@pytest.fixture
def settled(wait_until: Callable[..., Any]) -> Settled:
    """Wait until every job has settled; return how many ended in which state."""

    def wait(timeout: float = 30) -> Counter[str]:
        wait_until(lambda: not Job.objects.filter(finished_at__isnull=True).exists(), timeout)
        return Counter(Job.objects.values_list("state", flat=True))

    return wait
