"""``manage.py jobs``: the verbs that only look."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.utils import timezone

from jobs import circuits, control, explain, lifecycle, shown, stats
from jobs.backlog import Number
from jobs.horizon import HORIZON
from jobs.management import arguments, documents
from jobs.management.ages import ago, said
from jobs.management.refusals import mistaken
from jobs.management.rendering import Column, Paper
from jobs.management.verbs import Verb, numbered
from jobs.masking import mask
from jobs.models import Circuit, Job
from jobs.payload import shorten
from jobs.states import MEANING, Priority, State

AN_ID = "0192f0c1-7a55-7c3e-9a55-0d4c6b1f2e3a"
FILTERS = ("state", "queue", "priority", "tag", "task", "tenant", "key", "since", "until")

LIST = (
    Column("id", whole=True),
    Column("task"),
    Column("state", whole=True),
    Column("queue"),
    Column("priority", whole=True),
    Column("attempts", right=True),
    Column("created", whole=True),
    Column("reason"),
)
TIMELINE = (
    Column("#", right=True),
    Column("started", whole=True),
    Column("ran", right=True),
    Column("worker"),
    Column("outcome"),
    Column("decision"),
    Column("wait", right=True),
    Column("reason"),
    Column("error"),
)
CHECKPOINTS = (
    Column("name"), Column("kind"), Column("value"), Column("attempt", right=True), Column("kept", whole=True),
)  # fmt: skip


class List(Verb):
    """Jobs by filters, newest first."""

    name = "list"
    help = "list jobs, newest first"
    examples = (
        "jobs list --state failed --since 2h",
        "jobs list --task ChargeOrder --queue payments --priority high",
        "jobs list --tag import-17 --limit 200 --offset 200",
        "jobs list --state pending --json | jq -r '.jobs[].id'",
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Filters and a page."""
        arguments.add_job_filters(parser)
        arguments.add_page(parser)

    def run(self) -> None:
        """Show the page."""
        found = stats.find(**self.chosen(*FILTERS, "limit", "offset"))
        if self.given["json"]:
            page = self.chosen("limit", "offset")
            self.paper.json({"jobs": [documents.short(job) for job in found], **page})
        elif not found:
            self.paper.line("No jobs fit.")
            self._say_more(0)
        else:
            self.paper.table(LIST, [_row(job) for job in found])
            self._say_more(len(found))

    def _say_more(self, shown_now: int) -> None:
        back = stats.horizon(**self.chosen(*FILTERS)) if shown_now < self.given["limit"] else None
        if back is not None:
            self.note(
                f"Only the newest {HORIZON:,} jobs that one of the filters leaves were looked at, back to "
                f"{back:%Y-%m-%d %H:%M:%S %Z}. Further back: --until '{back:%Y-%m-%d %H:%M:%S}'."
            )
        if shown_now == self.given["limit"]:
            self.note(f"{numbered(shown_now, 'job')} shown; for the next: --offset {self.given['offset'] + shown_now}")


class Show(Verb):
    """One job, whole."""

    name = "show"
    help = "show one job: its state, payload, attempts, error"
    about = "Show all of one job. Secrets in its payload are hidden."
    examples = (f"jobs show {AN_ID}", f"jobs show {AN_ID} --json | jq .attempts")

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which job."""
        parser.add_argument("id", type=arguments.job_id, help="the id of the job")

    def run(self) -> None:
        """Show it."""
        job = stats.get(self.given["id"])
        if self.given["json"]:
            self.paper.json(documents.whole(job))
            return
        self.paper.facts(facts(job))
        for heading, text in texts(job):
            if text:
                self.paper.heading(heading)
                self.paper.line(text)
        show_timeline(self.paper, documents.attempts(job))
        if kept := documents.checkpoints(job):
            self.paper.heading("checkpoints")
            self.paper.table(CHECKPOINTS, (_checkpoint(each) for each in kept))
        if job.traceback:
            self.paper.heading("traceback")
            self.paper.line(job.traceback.rstrip())


class Explain(Verb):
    """Why a job does not run, or for what the jobs of a queue wait."""

    name = "explain"
    help = "say why a job does not run, and when it may; or for what the jobs of a queue wait"
    about = (
        "Say what holds a job up: a pause, a limit and the jobs that fill it, more urgent jobs, no worker.\n"
        "Of a queue, how many jobs wait for each of these, and when the next can go. 'about' is an estimate, and\n"
        "'more than' was not counted to its end: it takes as long with a long backlog as with a short one."
    )
    examples = (
        f"jobs explain {AN_ID}", f"jobs explain {AN_ID} --json | jq .parts[0].word", "jobs explain --queue payments",
    )  # fmt: skip

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which job, or which queue."""
        parser.add_argument("id", nargs="?", type=arguments.job_id, help="the id of the job")
        parser.add_argument("--queue", help="the name of a queue, in place of a job")

    def run(self) -> None:
        """Say it."""
        if bool(self.given["id"]) == bool(self.given["queue"]):
            raise mistaken("Name either the id of a job, or a queue (--queue payments).")
        self._tell_queue() if self.given["queue"] else self._tell_job()

    def _tell_job(self) -> None:
        told = explain.explain(self.given["id"])
        if self.given["json"]:
            about = {"id": told.job_id, "state": told.state.value}
            self.paper.json({**about, "until": told.until, "sentence": told.sentence, "parts": _parts(told.parts)})
            return
        for part in told.parts:
            self.paper.line(part.sentence)

    def _tell_queue(self) -> None:
        told = explain.explain_queue(self.given["queue"])
        if self.given["json"]:
            waiting = {"queue": told.queue, "waiting": _number(told.waiting), "oldest": told.oldest}
            parts = _parts(told.parts)
            self.paper.json({**waiting, "next_at": told.next_at, "sentence": told.sentence, "parts": parts})
            return
        for sentence in (told.head, *(part.sentence for part in told.parts)):
            self.paper.line(sentence)


def _parts(parts: Iterable[explain.Part]) -> list[dict[str, Any]]:
    return [
        {"word": part.word, "sentence": part.sentence, "until": part.until, "details": part.details}
        | ({"jobs": _number(part.jobs)} if part.jobs is not None else {})
        for part in parts
    ]


def _number(number: Number) -> dict[str, Any]:
    return {"of": number.of, "about": number.about, "more": number.more}


BREAKERS = (
    Column("key", whole=True), Column("circuit", whole=True), Column("until", whole=True),
    Column("failures", right=True), Column("opened", whole=True), Column("times", right=True), Column("task"),
    Column("last error"),
)  # fmt: skip


class Breakers(Verb):
    """The circuits of breakers."""

    name = "breakers"
    help = "list the circuit breakers under whose keys something failed"
    about = (
        "List the circuit breakers under whose keys jobs failed of late, those that are open first. While one is\n"
        "open, no job with its key starts; when it is half-open, a few are let through as probes."
    )
    examples = ("jobs breakers", "jobs breakers --json | jq '.breakers[] | select(.circuit == \"open\").key'")

    def run(self) -> None:
        """Show them."""
        now, rows = lifecycle.database_now(), control.breakers()
        told = [
            (row.key, circuits.phase(row, now).value, row.open_until, f"{len(row.failed_at)} of {row.threshold}",
             row.opened_at, row.openings, row.task.rsplit(".", 1)[-1], row.error)
            for row in rows
        ]  # fmt: skip
        if self.given["json"]:
            self.paper.json({"breakers": [_breaker(row, now) for row in rows]})
        elif told:
            self.paper.table(BREAKERS, told)
        else:
            self.paper.line("No breaker knows of a failure.")


def _breaker(row: Circuit, now: datetime) -> dict[str, Any]:
    plain = ("key", "rule", "task", "job_id", "error", "threshold", "in_a_row", "opened_at", "open_until", "openings",
             "probes", "succeeded")  # fmt: skip
    return {
        "circuit": circuits.phase(row, now).value, "failures": len(row.failed_at),
        **{name: getattr(row, name) for name in plain},
    }  # fmt: skip


class Stats(Verb):
    """Numbers."""

    name = "stats"
    help = "count jobs: in all, per state, priority and queue, or by tenant"
    about = (
        "Count the jobs. Per priority and per queue only those count that have not finished.\n"
        "It takes as long with a long history as with a short one: the finished are counted once, as they pass.\n"
        "'ended ever' includes what was pruned since; a backlog of more than 10,000 was counted by the conductor,\n"
        "and 'counted' says when.\n"
        "With --by, the newest 100,000 jobs are counted by what you name, finished or not."
    )
    examples = ("jobs stats", "jobs stats --json | jq .per_state", "jobs stats --by tenant --since 2h")

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """By what, and from when on."""
        parser.add_argument("--by", choices=stats.BREAKDOWNS, help="count the newest jobs by this")
        parser.add_argument(
            "--since", type=arguments.moment, metavar="TIME", help="with --by: jobs created since then (2h, 2030-01-31)"
        )

    def run(self) -> None:
        """Show them."""
        if self.given["by"]:
            self._break_down()
            return
        if self.given["since"]:
            raise mistaken("--since says what is counted by something: add --by, such as --by tenant.")
        numbers = stats.statistics()
        if self.given["json"]:
            self.paper.json(numbers)
            return
        self.paper.facts(_summary(numbers))
        for name in ("state", "priority", "queue"):
            show_counts(self.paper, name, numbers[f"per_{name}"])

    def _break_down(self) -> None:
        told = stats.breakdown(self.given["by"], since=self.given["since"])
        if self.given["json"]:
            self.paper.json(told)
            return
        names = ["total", *(state.value for state in State)]
        columns = [Column(told["by"]), *(Column(name, right=True) for name in names)]
        found = sorted(told["counts"].items(), key=lambda named: -named[1]["total"])
        self.paper.table(columns, [(name or "(none)", *(counts[n] for n in names)) for name, counts in found])
        self.paper.line(f"\n{_counted(told)}")


def _counted(told: Mapping[str, Any]) -> str:
    """Which jobs a breakdown is about: not all, where there are too many."""
    many = numbered(sum(counts["total"] for counts in told["counts"].values()), "job")
    if told["back_to"] is None:
        return f"All {many} counted." if told["since"] is None else f"All {many} since then counted."
    back = timezone.localtime(told["back_to"]) if timezone.is_aware(told["back_to"]) else told["back_to"]
    return f"Only the newest {many} are counted, back to {back:%Y-%m-%d %H:%M:%S}; older ones are not."


def show_counts(paper: Paper, name: str, counts: Mapping[str, int], what: str = "jobs") -> None:
    """A table of numbers per something, unless there are none."""
    if counts:
        paper.heading(f"per {name}")
        paper.table((Column(name), Column(what, right=True)), counts.items())


def _summary(numbers: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    oldest: datetime | None = numbers["oldest_due"]
    more = "+" if numbers["at_least"] else ""
    yield "in all", f"{numbers['total']:,}{more}"
    yield "unfinished", f"{numbers['unfinished']:,}{more}"
    yield "counted", ago(numbers["as_of"], timezone.now()) if numbers["as_of"] else None
    yield "ended ever", ", ".join(f"{count:,} {state}" for state, count in numbers["ended"].items())
    yield "workers", str(numbers["workers"])
    yield "oldest due", ago(oldest, timezone.now()) if oldest else None
    yield "paused", numbers["paused"]


def _row(job: Job) -> tuple[object, ...]:
    return (
        job.pk, job.task.rsplit(".", 1)[-1], job.state, job.queue, Priority(job.priority).name.lower(),
        f"{job.attempt} of {job.max_attempts}", job.created_at, job.reason,
    )  # fmt: skip


def facts(job: Job) -> Iterable[tuple[str, object]]:
    """What there is to say of a job in a line each."""
    letter = documents.letter(job)
    yield "id", job.pk
    yield "task", job.task
    yield "state", f"{job.state}: {MEANING[State(job.state)]}"
    yield "reason", job.reason
    yield "dead letter", f"{letter['id']}, {letter['status']} (manage.py dlq show {letter['id']})" if letter else None
    yield "error", f"{job.error_type}: {job.error_message}".strip(": ")
    yield "progress", _progress(job)
    yield "queue", job.queue
    yield "priority", Priority(job.priority).name.lower()
    yield "attempts", f"{job.attempt} of {job.max_attempts}"
    yield from _named(job, "key", "tenant", "tags", "correlation_id", "schedule")
    for name in ("created", "due", "expires", "sent", "started", "finished", "cancel_requested"):
        yield name.replace("_", " "), getattr(job, f"{name}_at")
    yield "cancel reason", job.cancel_reason
    yield "worker", f"{job.worker}, process {job.pid}" if job.pid else job.worker
    yield "lease until", job.lease_until if job.state == State.RUNNING else None
    yield from _named(job, "parent_id", "group_id", "follows_id", "waits_for_id", "replay_of_id")
    yield "root", job.root_id if job.root_id != job.pk else None


def _named(job: Job, *names: str) -> Iterable[tuple[str, object]]:
    for name in names:
        yield name.removesuffix("_id").replace("_", " "), getattr(job, name)


def _progress(job: Job) -> str:
    kept = job.progress if isinstance(job.progress, dict) else {}
    done, total = kept.get("done"), kept.get("total")
    if done is None:
        return ""
    of = f" of {total:,}" if isinstance(total, int | float) else ""
    counted = f"{done:,}{of} {kept.get('unit') or ''}".rstrip()
    return f"{counted}: {kept['message']}" if kept.get("message") else counted


def texts(job: Job) -> Iterable[tuple[str, str]]:
    """What takes several lines: secrets are hidden in it."""
    yield "payload", shown.pretty(shown.masked_payload(job.payload, shown.parameters(job.task)))
    yield "metadata", shown.pretty(mask(job.metadata)) if job.metadata else ""
    yield "result", shown.masked(job.result)


def show_timeline(paper: Paper, attempts: Iterable[Mapping[str, Any]]) -> None:
    """A table of attempts, unless there are none."""
    rows = [_attempt(each) for each in attempts]
    if rows:
        paper.heading("attempts")
        paper.table(TIMELINE, rows)


def _checkpoint(each: Mapping[str, Any]) -> tuple[object, ...]:
    value = shorten(each["value"] if isinstance(each["value"], str) else json.dumps(each["value"]), 80)
    return each["name"], each["kind"], value, each["attempt"] or "another job's", _time(each["written_at"])


def _attempt(each: Mapping[str, Any]) -> tuple[object, ...]:
    began, ended = _time(each.get("started_at")), _time(each.get("finished_at"))
    return (
        each.get("number"), began, said(ended - began) if began and ended else "", each.get("worker"),
        each.get("outcome"), each.get("decision"), f"{each['delay']:.1f} s" if each.get("delay") else "",
        each.get("reason"), f"{each.get('error_type') or ''}: {each.get('error_message') or ''}".strip(": "),
    )  # fmt: skip


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
