"""Pictures of the running platform in a real browser: each page in light and in dark.

``python -m tests.screenshots OUTDIR --url http://127.0.0.1:8000 --user admin --password admin``
needs ``pip install selenium``, Chromium and ChromeDriver (Debian: ``apt install chromium chromium-driver``).
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from selenium import webdriver

# The states that pass soonest come first.
STATES = ("reserved", "retrying", "running", "pending", "completed", "failed", "cancelled")
SCHEMES = ("light", "dark")
TRIES = 20
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def main() -> None:
    """Take the pictures that the command line asks for, and name each."""
    given = arguments()
    given.outdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = chromium(profile, given.width)
        try:
            log_in(browser, given.url, given.user, given.password)
            open_page(browser, f"{given.url}/admin/jobs/job/?queue=payments")
            photograph(browser, given.outdir / "jobs-payments")
            for state in STATES:
                photograph_state(browser, given.url, state, given.outdir)
            for name, address in [*pages(browser, given.url), *flower(given)]:
                open_page(browser, address)
                photograph(browser, given.outdir / name)
        finally:
            browser.quit()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path, help="where the pictures go")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the web process answers")
    parser.add_argument("--user", default="admin")
    parser.add_argument("--password", default="admin")
    parser.add_argument("--flower", default="", help="where Flower answers, with user:password@ if it wants them")
    parser.add_argument("--width", type=int, default=1440, help="of the window, in pixels")
    given = parser.parse_args()
    given.url = given.url.rstrip("/")
    return given


def chromium(profile: str, width: int) -> webdriver.Chrome:
    """A headless Chromium with an empty profile of its own."""
    try:
        from selenium import webdriver
    except ImportError:
        sys.exit("Selenium is missing: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900"):
        options.add_argument(flag)
    driver = shutil.which("chromedriver")
    if not driver or not options.binary_location:
        sys.exit("Chromium or ChromeDriver is missing. On Debian: apt install chromium chromium-driver")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def log_in(browser: webdriver.Chrome, url: str, user: str, password: str) -> None:
    """Open a session in the admin."""
    browser.get(f"{url}/admin/login/?next=/admin/")
    browser.find_element("name", "username").send_keys(user)
    browser.find_element("name", "password").send_keys(password)
    browser.find_element("css selector", "#login-form [type=submit]").click()
    if not until(browser, lambda b: not b.find_elements("id", "login-form")):
        sys.exit(f"{url} did not let {user} in.")


def pages(browser: webdriver.Chrome, url: str) -> Iterator[tuple[str, str]]:
    """The pages there are: names of pictures and addresses."""
    admin = f"{url}/admin"
    yield "index", f"{admin}/"
    yield "jobs", f"{admin}/jobs/job/"
    yield "workers", f"{admin}/jobs/worker/"
    yield "pauses", f"{admin}/jobs/pause/"
    yield "acts", f"{admin}/jobs/act/"
    yield "letters", f"{admin}/dlq/deadletter/"
    for found in rows(browser, f"{admin}/dlq/deadletter/")[:1]:
        yield "letter", found
        yield "replay", re.sub(r"change/$", "replay/", found)
    yield "schedules", f"{admin}/django_celery_beat/periodictask/"


def flower(given: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Flower's pages, where it runs."""
    if given.flower:
        yield "flower-workers", given.flower.rstrip("/") + "/workers"
        yield "flower-tasks", given.flower.rstrip("/") + "/tasks"


def rows(browser: webdriver.Chrome, address: str) -> list[str]:
    """The pages of the rows in a list, the first first."""
    browser.get(address)
    links = browser.find_elements("css selector", "#result_list tbody th a")
    return [str(link.get_attribute("href")) for link in links]


def photograph_state(browser: webdriver.Chrome, url: str, state: str, outdir: Path) -> None:
    """Take the page of a job in a state, trying others when one has moved on meanwhile."""
    for _ in range(TRIES):
        # The oldest of the list rests longest where it is.
        for address in rows(browser, f"{url}/admin/jobs/job/?state={state}")[-1:]:
            open_page(browser, address)
            if browser.find_element("css selector", ".jobs-title").text.endswith(state):
                return photograph(browser, outdir / f"job-{state}")
    return print(f"no job stayed {state} for long enough")  # noqa: T201


def photograph(browser: webdriver.Chrome, target: Path) -> None:
    """Take the open page, whole, once in each colour scheme."""
    for scheme in SCHEMES:
        emulate(browser, scheme)
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        file = target.with_name(f"{target.name}-{scheme}.png")
        file.write_bytes(base64.b64decode(picture["data"]))
        print(file)  # noqa: T201


def open_page(browser: webdriver.Chrome, address: str) -> None:
    """Open an address; a name and a password in it are sent as a header, which no page can show."""
    parts = urlsplit(address)
    headers = {}
    if parts.username:
        secret = base64.b64encode(f"{parts.username}:{parts.password or ''}".encode()).decode()
        headers["Authorization"] = f"Basic {secret}"
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": headers})
    browser.get(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    until(browser, lambda b: b.execute_script("return document.readyState") == "complete")


def until(browser: webdriver.Chrome, condition: Callable[[Any], bool], seconds: float = 15) -> bool:
    """Wait for a condition; False when it did not come true in time."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return bool(WebDriverWait(browser, seconds).until(condition))
    except TimeoutException:
        return False


def emulate(browser: webdriver.Chrome, scheme: str) -> None:
    """Prefer a colour scheme, as the operating system would, without transitions."""
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    # Colours that are still on their way would be neither of the one scheme nor of the other.
    until(browser, lambda b: b.execute_script("return document.getAnimations().length") == 0, seconds=3)


if __name__ == "__main__":
    main()
