"""The rows: dead letters, and the replays that people made of them."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from jobs.models import Job


class Status(models.TextChoices):
    """What has become of a letter."""

    OPEN = "open", _("open")
    REPLAYED = "replayed", _("replayed")
    RESOLVED = "resolved", _("resolved")
    DISCARDED = "discarded", _("discarded")


class DeadLetter(models.Model):
    """The record of a job that will not run again by itself."""

    # Protected as long as it is open; closed, it leaves with its job.
    deleted_with_jobs = True

    job = models.OneToOneField(Job, on_delete=models.PROTECT, related_name="dead_letter")
    task = models.CharField(max_length=255)
    queue = models.CharField(max_length=100)
    tenant = models.CharField(max_length=100, blank=True, default="")
    payload = models.TextField()
    version = models.PositiveIntegerField(default=1)
    headers = models.JSONField(default=dict, help_text="options the job carried beyond its payload")
    reason = models.CharField(max_length=255, blank=True, default="", help_text="why it will not run again")
    error_type = models.CharField(max_length=255, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    traceback = models.TextField(blank=True, default="")
    attempts = models.JSONField(default=list, help_text="the attempts, oldest first")
    fingerprint = models.CharField(max_length=64, help_text="same task, error and place in the code")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_by = models.CharField(max_length=150, blank=True, default="")
    closing_reason = models.TextField(blank=True, default="")

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        verbose_name = _("dead letter")
        default_permissions = ("view",)
        permissions: ClassVar = [
            ("replay_deadletter", "Can replay dead letters"),
            ("edit_payload", "Can edit the payload of a replay"),
            ("resolve_deadletter", "Can resolve and discard dead letters"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(status=Status.OPEN) | Q(closed_at__isnull=False), name="closed_letters_say_when"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["-created_at", "-id"], name="dlq_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="dlq_newest_of_status"),
            models.Index(fields=["task", "status", "-created_at", "-id"], name="dlq_of_task"),
            models.Index(fields=["tenant", "status", "-created_at", "-id"], name="dlq_of_tenant"),
            models.Index(fields=["fingerprint", "status", "-created_at", "-id"], name="dlq_alike"),
        ]

    def __str__(self) -> str:
        return f"{self.task.rsplit('.', 1)[-1]}: {self.error_type.rsplit('.', 1)[-1] or self.reason}"

    @classmethod
    def protected_jobs(cls, letters: models.QuerySet[DeadLetter]) -> models.QuerySet[DeadLetter]:
        """Of these letters, those whose jobs must not be pruned."""
        return letters.filter(status=Status.OPEN)

    @property
    def is_open(self) -> bool:
        """Whether a person still has to decide."""
        return self.status == Status.OPEN


class Replay(models.Model):
    """One replay of a letter: who, when, why, and the job that came of it."""

    letter = models.OneToOneField(DeadLetter, on_delete=models.CASCADE, related_name="replay")
    job_id = models.UUIDField(help_text="the new job")
    at = models.DateTimeField()
    by = models.CharField(max_length=150)
    reason = models.TextField(blank=True, default="")
    payload_before = models.TextField()
    payload_after = models.TextField()

    class Meta:
        ordering: ClassVar = ["-at", "-id"]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"replay of {self.letter_id} by {self.by}"

    @property
    def edited(self) -> bool:
        """Whether the payload was changed before it was sent again."""
        return self.payload_before != self.payload_after
