"""Rows of a project that refer to jobs, each in its own way."""

from typing import ClassVar

from django.db import models

from jobs.models import Job


class Purchase(models.Model):
    """What outlives its job."""

    job = models.ForeignKey(Job, null=True, on_delete=models.SET_NULL)

    class Meta:
        default_permissions: ClassVar = ()

    def __str__(self) -> str:
        return f"purchase {self.pk}"


class Remark(models.Model):
    """What leaves with its job."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE)

    class Meta:
        default_permissions: ClassVar = ()

    def __str__(self) -> str:
        return f"remark {self.pk}"


class Audit(models.Model):
    """What keeps its job, if it has one; the job knows nothing of it."""

    job = models.ForeignKey(Job, null=True, on_delete=models.PROTECT, related_name="+")

    class Meta:
        default_permissions: ClassVar = ()

    def __str__(self) -> str:
        return f"audit {self.pk}"


class Receipt(models.Model):
    """What refers to a job, and leaves it to the database what becomes of that."""

    job = models.ForeignKey(Job, on_delete=models.DO_NOTHING)

    class Meta:
        default_permissions: ClassVar = ()

    def __str__(self) -> str:
        return f"receipt {self.pk}"


class Campaign(models.Model):
    """What has many jobs, and outlives each."""

    jobs: "models.ManyToManyField[Job, Job]" = models.ManyToManyField(Job)

    class Meta:
        default_permissions: ClassVar = ()

    def __str__(self) -> str:
        return f"campaign {self.pk}"
