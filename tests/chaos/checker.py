"""The independent checker: compares what was asked for with what the rows, the audit and the ledger say.

Plain SQL and plain files. It imports nothing of the platform: whoever is judged must not be asked.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import ledger
from tests.chaos.audit import written_by
from tests.chaos.ledger import Asked, Intake, Line, Run

FINAL = {"completed", "failed", "cancelled"}
# SQLite's clock counts milliseconds.
BLUR = 1_000_000
NAMED = 5


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as its row says."""

    id: str
    state: str
    task: str = ""
    attempt: int = 0
    number: int | None = None
    letter: bool = False
    follows: str = ""
    replays: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the audit."""

    at: int
    writer: int
    job: str
    old_state: str | None
    new_state: str | None
    old_attempt: int | None = None
    new_attempt: int | None = None
    old_token: str | None = None
    new_token: str | None = None
    new_lease: int | None = None
    old_pid: int | None = None
    reason: str = ""
    parent: int = 0  # of the writer


@dataclass(slots=True)
class Evidence:
    """All that the checker looks at."""

    intake: Intake = field(default_factory=Intake)
    lines: list[Line] = field(default_factory=list)
    jobs: list[JobRow] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    effects: list[tuple[int, str]] = field(default_factory=list)
    orders: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Verdict:
    """The counts of a row, and the sentences that fail it."""

    jobs_in: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unfinished: int = 0
    lost: int = 0
    overlapping: int = 0
    late_writes: int = 0
    duplicate_effects: int = 0
    duplicate_transactions: int = 0
    bodies_overlapped: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """The figures, by the names under which they are printed."""
        found = asdict(self)
        del found["problems"]
        return {"in": found.pop("jobs_in"), **found}


def judge(evidence: Evidence, *, may_refuse: bool = False) -> Verdict:
    """Compare what was asked for with what became of it."""
    verdict = Verdict()
    _Accounts(evidence, verdict).settle(may_refuse)
    _judge_effects(evidence, verdict)
    _judge_overlaps(evidence, verdict)
    _judge_late_writes(evidence, verdict)
    return verdict


class _Accounts:
    """Every job that was asked for must have become something; every row must have an end."""

    def __init__(self, evidence: Evidence, verdict: Verdict) -> None:
        self.evidence = evidence
        self.verdict = verdict
        self.by_id = {job.id: job for job in evidence.jobs}
        self.by_number: dict[int, list[JobRow]] = defaultdict(list)
        for job in evidence.jobs:
            if job.number is not None:
                self.by_number[job.number].append(job)
        self.ended = {line.job for line in evidence.lines if line.what == "end"}
        self.wrote = {job for _, job in evidence.effects}
        self.said: dict[str, list[str]] = defaultdict(list)

    def settle(self, may_refuse: bool) -> None:
        """Count everybody."""
        asked = self.evidence.intake.asked
        for number in asked:
            self._count_asked(asked[number])
        counted = {number for number in asked if self.by_number.get(number)}
        extra = [j for j in self.evidence.jobs if j.number not in counted]
        extra += [job for number in counted for job in self.by_number[number] if job is not self._row(asked[number])]
        for job in extra:
            self._count(job, None)
        for sentences in self.said.values():
            self.verdict.problems += _few(sentences)
        self._name_unexpected()
        if self.verdict.refused and not may_refuse:
            errors = sorted({a.refused for a in asked.values() if a.refused})
            self.verdict.problems.append(f"{self.verdict.refused} calls were refused: {'; '.join(errors)[:300]}")

    def _count_asked(self, asked: Asked) -> None:
        row = self._row(asked)
        if row is not None:
            self._count(row, asked)
        elif asked.refused:
            self.verdict.refused += 1
        elif self._is_owed(asked) and not self._not_due(asked):
            self.verdict.jobs_in += 1
            self.verdict.lost += 1
            self._say("lost", f"job {asked.number} ({asked.kind}) is lost: it has no row")

    def _is_owed(self, asked: Asked) -> bool:
        """Whether the caller may believe in the job: the call returned, or its transaction has committed."""
        return asked.number in self.evidence.orders if asked.in_transaction else asked.accepted

    def _not_due(self, asked: Asked) -> bool:
        """Whether it follows a job that ended otherwise than its turn needs."""
        all_asked = self.evidence.intake.asked
        for number in asked.after:
            before = self._row(all_asked[number]) if number in all_asked else None
            if before is None:
                if number in all_asked and self._not_due(all_asked[number]):
                    return True
            elif before.state in FINAL and before.state != asked.when:
                return True
        return False

    def _row(self, asked: Asked) -> JobRow | None:
        rows = self.by_number.get(asked.number)
        if rows:
            return min(rows, key=lambda job: (bool(job.replays), job.id != asked.job))
        return self.by_id.get(asked.job)

    def _count(self, job: JobRow, asked: Asked | None) -> None:
        verdict, name = self.verdict, f"job {job.number if job.number is not None else job.id}"
        verdict.jobs_in += 1
        if job.state not in FINAL:
            verdict.unfinished += 1
            self._say("unfinished", f"{name} is unfinished: {job.state}, attempt {job.attempt} {job.reason}".rstrip())
            return
        setattr(verdict, job.state, getattr(verdict, job.state) + 1)
        if job.state == "failed" and not job.letter:
            verdict.lost += 1
            self._say("buried nowhere", f"{name} failed without a dead letter: {job.reason}")
        if job.state == "completed" and not self._has_effect(job, asked):
            verdict.lost += 1
            self._say("without effect", f"{name} is completed without its effect")
        unasked = asked is not None and asked.number not in self.evidence.intake.cancelled
        if job.state == "cancelled" and asked is not None and asked.expects == "completed" and unasked:
            self._say("cancelled", f"{name} is cancelled, and nobody asked for it: {job.reason}")

    def _has_effect(self, job: JobRow, asked: Asked | None) -> bool:
        if job.follows:
            job = self.by_id.get(job.follows, job)
        if asked is None:
            ours = job.number is not None
            effect = ("row" if job.task.endswith("transactional") else "end") if ours else "none"
        else:
            effect = asked.effect
        return effect == "none" or job.id in (self.wrote if effect == "row" else self.ended)

    def _say(self, subject: str, sentence: str) -> None:
        self.said[subject].append(sentence)

    def _name_unexpected(self) -> None:
        """Jobs that ended otherwise than they should: no loss, and yet not what their caller wanted."""
        wrong = []
        for asked in self.evidence.intake.asked.values():
            row = self._row(asked)
            if row is None or row.state not in FINAL or asked.expects in ("any", row.state):
                continue
            if asked.number not in self.evidence.intake.cancelled:
                wrong.append(f"job {asked.number} should be {asked.expects} and is {row.state} ({row.reason})")
        self.verdict.problems += _few(wrong)


def _judge_effects(evidence: Evidence, verdict: Verdict) -> None:
    """Effects that happened twice, and those of jobs that did not complete."""
    rows: Counter[Any] = Counter(number or job for number, job in evidence.effects)
    again = {subject: count - 1 for subject, count in rows.items() if count > 1}
    verdict.duplicate_transactions = sum(again.values())
    verdict.problems += _few([f"the effect of transactional job {s} happened {n + 1} times" for s, n in again.items()])
    states = {job.id: job for job in evidence.jobs}
    phantom = [job for _, job in evidence.effects if states.get(job, _NO_JOB).state in {"failed", "cancelled"}]
    verdict.duplicate_transactions += len(phantom)
    verdict.problems += _few([f"the effect of {states[j].state} transactional job {j} is there" for j in phantom])
    by_row = {a.number for a in evidence.intake.asked.values() if a.effect == "row"} | {n for n, _ in evidence.effects}
    ends: Counter[Any] = Counter(
        line.number or line.job for line in evidence.lines if line.what == "end" and line.number not in by_row
    )
    verdict.duplicate_effects = sum(count - 1 for count in ends.values() if count > 1) + sum(again.values())


_NO_JOB = JobRow("", "")


def _judge_overlaps(evidence: Evidence, verdict: Verdict) -> None:
    """Two bodies of one job at once: with two valid tokens, or with one that was valid no more."""
    by_job: dict[str, list[Run]] = defaultdict(list)
    for run in ledger.runs(evidence.lines):
        by_job[run.job].append(run)
    for job_runs in by_job.values():
        verdict.bodies_overlapped += sum(a.last > b.began for a, b in pairwise(job_runs))
    by_token = {(run.job, run.token): run for job_runs in by_job.values() for run in job_runs}
    overlapping = []
    for job, changes in _by_job(evidence.changes).items():
        leases: dict[str, int] = {}
        holder: str | None = None
        for change in changes:
            token = change.new_token
            if change.new_state != "running" or token is None:
                continue
            if holder is not None and token != holder:
                before = by_token.get((job, holder))
                if before is not None and change.at < leases[holder] and before.last > change.at + BLUR:
                    overlapping.append(
                        f"job {before.number} was claimed again while attempt {before.attempt} held its lease and ran"
                    )
            holder = token
            leases[token] = change.new_lease or 0
    verdict.overlapping = len(overlapping)
    verdict.problems += _few(overlapping)


def _judge_late_writes(evidence: Evidence, verdict: Verdict) -> None:
    """Changes by somebody whose turn was over."""
    ran: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in ledger.runs(evidence.lines):
        ran[run.job][run.pid].add(run.token)
    parents = {change.writer: change.parent for change in evidence.changes}
    late = [
        f"job {change.job}: {why} ({change.old_state} → {change.new_state}, by process {change.writer})"
        for change in evidence.changes
        if (why := _too_late(change, ran.get(change.job, {}), parents))
    ]
    verdict.late_writes = len(late)
    verdict.problems += _few(late)


def _too_late(change: Change, ran: dict[int, set[str]], parents: dict[int, int]) -> str:
    """Why a change was too late, if it was. A worker's main process may claim and complete for its child."""
    if change.old_state is None or change.new_state is None:
        return ""
    if change.old_state in FINAL and change.new_state != change.old_state:
        return "it was final already"
    if (change.new_attempt or 0) < (change.old_attempt or 0):
        return "its attempts were counted back"
    if change.old_state != "running" or not change.writer or change.writer == change.old_pid:
        return ""
    if change.new_state == "completed" and change.old_pid not in (change.parent, *_children(change.writer, parents)):
        return "completed by a process that did not hold it"
    tokens = ran.get(change.writer)
    if tokens and change.old_token not in tokens:
        return "written with an old token"
    return ""


def _children(pid: int, parents: dict[int, int]) -> list[int]:
    return [child for child, parent in parents.items() if parent == pid]


def _by_job(changes: Iterable[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        found[change.job].append(change)
    return found


def _few(sentences: Sequence[str]) -> list[str]:
    """The first of many sentences, and how many there are."""
    more = len(sentences) - NAMED
    return [*sentences[:NAMED], f"… and {more} more such"] if more > 0 else list(sentences)


# --- Plain Celery -----------------------------------------------------------------------------------------


def judge_celery(evidence: Evidence, failures: set[str], waiting: set[str]) -> Verdict:
    """The same accounts for plain Celery, by task id: what has failed, and what still waits in the broker."""
    verdict = Verdict()
    ids: dict[int, set[str]] = defaultdict(set)
    for line in evidence.lines:
        ids[line.number].add(line.job)
    ended = {line.number for line in evidence.lines if line.what == "end"}
    wrote = {number for number, _ in evidence.effects}
    states: dict[int, str] = {}
    for number, asked in sorted(evidence.intake.asked.items()):
        own = ids[number] | ({asked.job} if asked.job else set())
        done = ended & wrote if asked.effect == "row" else ended
        owed = number in evidence.orders if asked.in_transaction else asked.accepted
        if number in done:
            states[number] = "completed"
        elif own & failures:
            states[number] = "failed"
        elif number in evidence.intake.cancelled:
            states[number] = "cancelled"
        elif own & waiting:
            states[number] = "unfinished"
        elif asked.refused:
            states[number] = "refused"
        elif not owed or any(states.get(n, "lost") not in (asked.when, "lost") for n in asked.after):
            continue
        else:
            states[number] = "lost"
        if states[number] != "refused":
            verdict.jobs_in += 1
        setattr(verdict, states[number], getattr(verdict, states[number]) + 1)
    _judge_effects(evidence, verdict)
    by_number: dict[int, list[Run]] = defaultdict(list)
    for run in ledger.runs(evidence.lines):
        by_number[run.number].append(run)
    for found in by_number.values():
        verdict.bodies_overlapped += sum(a.last > b.began for a, b in pairwise(found))
    verdict.problems += _few([f"job {n} is {s}" for n, s in states.items() if s in ("lost", "unfinished")])
    return verdict


# --- Reading the evidence -----------------------------------------------------------------------------------

_JOBS = """
SELECT j.id, j.state, j.task, j.attempt, j.payload, d.id, j.follows_id, j.replay_of_id, j.reason
FROM jobs_job j LEFT JOIN dlq_deadletter d ON d.job_id = j.id
"""
_CHANGES = """
SELECT at, writer, job, old_state, new_state, old_attempt, new_attempt, old_token, new_token, new_lease, old_pid, reason
FROM chaos_audit ORDER BY id
"""


def gather(url: str, ledger_file: Path, intake_file: Path) -> Evidence:
    """Read what is known of a row's world."""
    evidence = Evidence(ledger.read_intake(intake_file), [_plain_ids(line) for line in ledger.read_lines(ledger_file)])
    for asked in evidence.intake.asked.values():
        asked.job = _id(asked.job)
    with closing(connect(url)) as connection:
        evidence.jobs = [_job(row) for row in connection.execute(_JOBS).fetchall()]
        evidence.changes = [_change(row) for row in connection.execute(_CHANGES).fetchall()]
        evidence.effects = [
            (n, _id(job)) for n, job in connection.execute("SELECT number, job FROM chaos_effect").fetchall()
        ]
        evidence.orders = {n for (n,) in connection.execute("SELECT number FROM chaos_order").fetchall()}
    return evidence


def connect(url: str) -> Any:
    """A connection of our own to a row's database."""
    if url.startswith("sqlite:"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=20, isolation_level=None)
    limits = "-c statement_timeout=20000"
    return psycopg.connect(url, connect_timeout=5, autocommit=True, options=limits, application_name="checker")


def _job(row: Sequence[Any]) -> JobRow:
    identity, state, task, attempt, payload, letter, follows, replays, reason = row
    return JobRow(
        _id(identity), state, task, attempt, number_in(payload), letter is not None, _id(follows), _id(replays), reason
    )


def number_in(payload: str) -> int | None:
    """The number of the job that has this payload, None for jobs of somebody else.

    >>> number_in('{"args": [], "kwargs": {"number": 5}}'), number_in('{"args": [{"number": 6}], "kwargs": {}}')
    (5, 6)
    """
    try:
        content = json.loads(payload)
        given = content["kwargs"] or content["args"][0]  # that of a chunk is a value of its own
        number = given.get("number")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return number if isinstance(number, int) else None


def _change(row: Sequence[Any]) -> Change:
    at, mark, job, old, new, old_attempt, new_attempt, old_token, new_token, lease, pid, reason = row
    writer, parent = written_by(mark)
    return Change(
        moment(at) or 0, writer, _id(job), old, new, old_attempt, new_attempt, _id(old_token) or None,
        _id(new_token) or None, moment(lease), pid, reason or "", parent,
    )  # fmt: skip


def _plain_ids(line: Line) -> Line:
    return Line(line.what, line.number, _id(line.job), line.attempt, line.pid, _id(line.token), line.at)


def _id(value: Any) -> str:
    """An id as every database writes it: without dashes."""
    return str(value).replace("-", "") if value else ""


def moment(value: Any) -> int | None:
    """A time in nanoseconds, from either database."""
    if value is None:
        return None
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return int(found.timestamp() * 1_000_000) * 1000
