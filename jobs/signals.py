"""What Mainstay announces. Receivers of ``recording`` are part of the transaction; the others are not."""

from __future__ import annotations

from django.dispatch import Signal

# Sent inside the transaction that records a job's final failure; an exception undoes it.
# Argument: job (jobs.models.Job).
job_failed = Signal()

# Sent inside the transaction that replays a job. Arguments: original (UUID), job (UUID).
job_replayed = Signal()

# Sent after the commit, isolated: enqueued, started, completed, failed, retried, cancelled.
# Arguments: event (str), job_id (UUID), task (str), and what the event knows.
lifecycle = Signal()
