"""Installing the built wheel into a project made by ``django-admin startproject``: two apps, one line, migrate."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from project import processes
from project.servers import RedisServer
from tests.children import ROOT

pytestmark = [pytest.mark.one_database, pytest.mark.timeout(300)]

CELERY_MODULE = """
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
from jobs.celery import install; install(app)
app.autodiscover_tasks(["shop"])

class Base(app.Task):
    abstract = True

@app.task(bind=True, base=Base)
def debug_task(self):
    return self.request.id
"""

TASKS = """
from celery import shared_task
from jobs.task import task

@shared_task
def old(a, b):
    return a + b

@task(key="greet:{name}")
def greet(name: str) -> str:
    return f"hello {name}"

@task
def broken() -> None:
    raise ValueError("no use")
"""

TRY = """
import django; django.setup()
import jobs, shop.tasks as tasks
from jobs.models import Job
print("jobs is", jobs.__file__)
print("old", tasks.old.delay(2, 3).get(timeout=30), "greet", tasks.greet.delay("you").get(timeout=30))
from shop.celery import debug_task
debug = debug_task.delay()
print("debug", debug.get(timeout=30) == debug.id)
failed = tasks.broken.delay()
try:
    failed.get(timeout=30)
except ValueError as error:
    print("failed with", error)
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("ada"))
pages = ["/admin/", "/admin/jobs/job/", f"/admin/jobs/job/{failed.id}/change/", "/admin/dlq/deadletter/"]
print("pages", [client.get(page, HTTP_HOST="localhost", follow=True).status_code for page in pages])
from django.contrib.staticfiles import finders
print("styles", bool(finders.find("jobs/jobs.css")))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy of what git tracks."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    copy = folder / "source"
    copy.mkdir()
    keep = ["xargs", "-0", "cp", "--parents", "--no-dereference", "-t", str(copy)]
    subprocess.run(keep, cwd=ROOT, input=tracked, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(copy)]
    subprocess.run(build, check=True)
    return next(folder.glob("mainstay-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    return target


class Shop:
    """A project of somebody else, with the wheel installed."""

    def __init__(self, folder: Path, installed: Path, broker: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name not in _OURS}
        path = f"{folder}{os.pathsep}{installed}"
        self.environ = kept | {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "shop.settings", "BROKER": broker}

    def run(self, *command: str) -> str:
        """Run a command in the project; return what it printed."""
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *command: str) -> "subprocess.Popen[bytes]":
        """Start a process of the project."""
        log = self.folder / f"{name}.log"
        return processes.start([sys.executable, *command], log=log, environ=self.environ, directory=self.folder)


_OURS = {"DJANGO_SETTINGS_MODULE", "DATABASE_URL", "BROKER_URL", "PYTHONPATH", "SECRET_KEY", "DEBUG"}


@pytest.fixture
def shop(tmp_path: Path, installed: Path, redis: RedisServer) -> Iterator[Shop]:
    """``startproject``, two apps, one line in the Celery module, migrate."""
    shop = Shop(tmp_path, installed, redis.start().url)
    shop.run("-m", "django", "startproject", "shop", str(tmp_path), "--settings=")
    settings = tmp_path / "shop" / "settings.py"
    text = settings.read_text().replace("INSTALLED_APPS = [", 'INSTALLED_APPS = ["jobs", "dlq",')
    settings.write_text(text + "\nimport os\nCELERY_BROKER_URL = os.environ['BROKER']\n")
    (tmp_path / "shop" / "celery.py").write_text(CELERY_MODULE)
    (tmp_path / "shop" / "__init__.py").write_text("from shop.celery import app as celery_app\n")
    (tmp_path / "shop" / "tasks.py").write_text(TASKS)
    shop.run("manage.py", "migrate", "-v0")
    started = [
        shop.start("worker", "-m", "celery", "-A", "shop", "worker", "-c", "2"),
        shop.start("conductor", "manage.py", "conductor"),
    ]
    yield shop
    for process in started:
        processes.end_group(process.pid)
        process.wait()


def test_the_wheel_carries_templates_styles_types_and_migrations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "jobs/py.typed", "dlq/py.typed", "jobs/migrations/0001_initial.py", "dlq/migrations/0001_initial.py",
        "jobs/static/jobs/jobs.css", "jobs/templates/jobs/job.html", "jobs/templates/dlq/letter.html",
    }  # fmt: skip
    assert wanted <= names


def test_the_wheel_carries_nothing_of_the_demo_or_the_tests(wheel: Path) -> None:
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"jobs", "dlq"}


def test_a_project_made_by_startproject_runs_its_old_and_new_tasks_as_jobs(shop: Shop) -> None:
    said = shop.run("-c", TRY)
    assert "old 5 greet hello you" in said
    assert "debug True" in said
    assert "failed with no use" in said
    assert "pages [200, 200, 200, 200]" in said
    assert "styles True" in said
    assert str(ROOT) not in said, "the checkout was imported, not the wheel"


def test_the_checks_of_a_fresh_project_find_no_error(shop: Shop) -> None:
    assert "jobs.E" not in shop.run("manage.py", "check", "--fail-level", "ERROR")
