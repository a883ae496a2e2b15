"""The addresses of the project: the admin, and what Mainstay serves beside it."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("jobs/", include("jobs.urls")),
]
