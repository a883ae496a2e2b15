"""The addresses of jobs over HTTP. Include it under a prefix: ``path("jobs/", include("jobs.urls"))``."""

from __future__ import annotations

from django.urls import path

from jobs import views

app_name = "jobs"

urlpatterns = [
    path("<uuid:job_id>/", views.job, name="job"),
    path("<uuid:job_id>/progress/", views.progress, name="progress"),
]
