"""Why something waits, as HTML: the sentences of ``explain``, with links to what they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from django.utils.html import escape, format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString, mark_safe

from jobs.admin.wording import address, job_address, short_id
from jobs.explain import Part
from jobs.limits import Kind

# What a person has to end, what a number allows, what passes by itself: each has its colour.
TONES = {
    "paused": "failed", "no worker": "failed", "no conductor": "failed", "broker": "failed", "lost": "failed",
    "limit": "retrying", "rate": "retrying", "limits": "retrying", "held": "retrying", "circuit": "retrying",
    "cancelling": "retrying", "sent": "reserved", "received": "reserved", "running": "running", "next": "completed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """One reason on a page."""

    word: str
    tone: str
    sentence: SafeString
    until: datetime | None


def shown(parts: Iterable[Part]) -> list[Shown]:
    """The reasons of an explanation, for a page."""
    return [Shown(part.word, TONES.get(part.word, "pending"), linked(part), part.until) for part in parts]


def linked(part: Part) -> SafeString:
    """The sentence, in which the jobs, the key and the pause lead to their pages."""
    links = {str(escape(text)): link for text, link in _links(part)}
    if not links:
        return escape(part.sentence)
    # In one pass: what has become a link is looked through no more.
    names = re.compile("|".join(re.escape(text) for text in links))
    html = names.sub(lambda found: links[found[0]], str(escape(part.sentence)))
    return mark_safe(html)  # noqa: S308  (every piece was escaped)


def _links(part: Part) -> Iterator[tuple[str, SafeString]]:
    """Texts of a sentence, each with what stands in its place."""
    for job_id in part.details.get("jobs", ()):
        yield job_id, format_html('<a href="{}"><code>{}</code></a>', job_address(job_id), short_id(job_id))
    key = part.details.get("key")
    kind = {"limit": Kind.SLOTS, "rate": Kind.TOKENS}.get(part.word)
    if kind and key:
        html = '{} <a href="{}">{}</a>'
        yield f"{part.word} {key}", format_html(html, part.word, limit_address(kind, key), key)
    if part.word == "paused":
        name = f"{part.details['kind']} {part.details['name']}"
        yield name, format_html('<a href="{}">{}</a>', address("admin:jobs_pause_changelist"), name)


def limit_address(kind: str, name: str) -> str:
    """The page of a limit: of a key, or of the template of keys."""
    return address("admin:jobs_allotment_limit", query=urlencode({"kind": str(kind), "name": name}))


def queue_address(queue: str) -> str:
    """The page of what waits in a queue."""
    return address("admin:jobs_share_changelist", query=urlencode({"queue": queue}))
