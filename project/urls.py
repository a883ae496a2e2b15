"""The addresses of the project: the admin, and what Mainstay serves beside it."""

from importlib.util import find_spec

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
]
if find_spec("jobs.urls"):  # TEMPORARY
    urlpatterns.append(path("jobs/", include("jobs.urls")))
