"""``manage.py jobs``: the verbs that change something. Each is on record in the audit trail."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import UUID

from jobs import control, declared, rescue, retention, stats, tally
from jobs.errors import JobsError
from jobs.management import arguments
from jobs.management.ages import said
from jobs.management.looking import AN_ID, FILTERS
from jobs.management.refusals import mistaken
from jobs.management.rendering import counting
from jobs.management.verbs import Tally, Verb, numbered
from jobs.models import Job, Pause
from jobs.states import FINAL, UNFINISHED, WAITING, State


class OnJobs(Verb):
    """A verb on jobs that are named, or found by filters."""

    states: ClassVar[frozenset[State]]
    past: ClassVar[str]

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Ids, or filters."""
        parser.add_argument("id", nargs="*", type=arguments.job_id, help="ids of jobs; without any, the filters choose")
        arguments.add_job_filters(parser, states=False)
        parser.add_argument(
            "--limit", type=arguments.count, default=1000, help="how many the filters choose at most (default: 1,000)"
        )
        arguments.add_signature(parser)

    def run(self) -> None:
        """Act on each by itself, and say what was refused."""
        tally = Tally()
        for job_id in self.meant():
            try:
                tally.done.append(self.act(job_id))
            except JobsError as error:
                tally.refuse(job_id, error)
        self.tell(tally)
        tally.raise_if_refused("jobs")

    def meant(self) -> list[UUID]:
        """The ids of the jobs that are meant."""
        filters = self.chosen(*FILTERS)
        if bool(self.given["id"]) == bool(filters):
            raise mistaken("Name either the ids of jobs, or filters that choose them (--queue, --task, --tag …).")
        chosen = list(dict.fromkeys(self.given["id"] or self._found(filters)))
        if len(chosen) > 1 or filters:
            self.consider(len(chosen))
        return chosen

    def _found(self, filters: dict[str, Any]) -> Iterator[UUID]:
        left = self.given["limit"]
        for state in sorted(self.states):
            for job in self._of_state(state, filters, left):
                left -= 1
                yield job.pk

    @staticmethod
    def _of_state(state: State, filters: dict[str, Any], most: int) -> Iterator[Job]:
        for offset in range(0, most, stats.MOST):
            yield from stats.find(state=state, **filters, limit=min(stats.MOST, most - offset), offset=offset)

    def consider(self, count: int) -> None:
        """Ask, where so many are too many to be sure."""

    def act(self, job_id: UUID) -> Job:
        """Do it to one."""
        raise NotImplementedError

    def tell(self, tally: Tally) -> None:
        """Say what became of them."""
        if self.given["json"]:
            self.paper.json({self.past: [_told(job) for job in tally.done], "refused": tally.refused})
        elif tally.done or not tally.refused:
            self.paper.line("\n".join(self.sentence(job) for job in tally.done) or "No jobs fit.")

    def sentence(self, job: Job) -> str:
        """What became of one."""
        return f"{job.pk} {job.task.rsplit('.', 1)[-1]}: {self.past}"


def _told(job: Job) -> dict[str, str]:
    return {"id": str(job.pk), "task": job.task, "state": job.state}


class Cancel(OnJobs):
    """Cancel jobs."""

    name = "cancel"
    help = "cancel jobs: waiting ones never run, running ones are asked to stop"
    about = (
        "Cancel jobs, by id or by filters. A job that waits never runs. A job that runs is asked to stop; its worker\n"
        "ends it within about a second if the body cooperates, and by force after JOBS['CANCEL_GRACE'] seconds."
    )
    examples = (
        f'jobs cancel {AN_ID} --reason "wrong file"',
        'jobs cancel --task ImportOrders --tag import-17 --yes --reason "wrong file"',
    )
    states = UNFINISHED
    past = "cancelled"

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Ids or filters, and consent."""
        super().arguments(parser)
        arguments.add_yes(parser)

    def consider(self, count: int) -> None:
        """Ask before many are cancelled."""
        if count:
            self.confirm(f"cancel {numbered(count, 'job')}")

    def act(self, job_id: UUID) -> Job:
        """Cancel one."""
        return control.cancel(job_id, reason=self.given["reason"], by=self.by)

    def sentence(self, job: Job) -> str:
        """Whether it is over already."""
        what = self.past if job.state == State.CANCELLED else "runs; asked to stop"
        return f"{job.pk} {job.task.rsplit('.', 1)[-1]}: {what}"


class Retry(OnJobs):
    """Make jobs due."""

    name = "retry"
    help = "make waiting jobs due now"
    about = (
        "Make jobs due now that wait for their time, their next attempt or the broker. A failed job does not wait:\n"
        "it is sent again by replaying its dead letter (manage.py dlq replay)."
    )
    examples = (f"jobs retry {AN_ID}", 'jobs retry --task ChargeOrder --since 1h --reason "the gateway is back"')
    states = WAITING
    past = "due"

    def act(self, job_id: UUID) -> Job:
        """Make one due."""
        return control.retry(job_id, by=self.by, reason=self.given["reason"])

    def sentence(self, job: Job) -> str:
        """That the conductor sends it."""
        return f"{job.pk} {job.task.rsplit('.', 1)[-1]}: due now"


class Snooze(OnJobs):
    """Put jobs off."""

    name = "snooze"
    help = "put jobs that have not started off until later"
    about = (
        "Put jobs off that wait, or that no worker has started: for a while from now, or until a time. No attempt\n"
        "is used. A job that runs is not put off: its body may raise Snooze."
    )
    examples = (
        f'jobs snooze {AN_ID} --for 2h --reason "the bank is closed"',
        "jobs snooze --task ChargeOrder --at 2030-01-31T12:00",
    )
    states = WAITING | {State.RESERVED}
    past = "snoozed"

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Ids or filters, and how long."""
        super().arguments(parser)
        when = parser.add_mutually_exclusive_group(required=True)
        when.add_argument("--for", dest="length", type=arguments.age, metavar="AGE", help="how long: 30m, 2h, 1d12h")
        when.add_argument("--at", type=arguments.moment, metavar="TIME", help="until when: 2030-01-31T12:00")

    def act(self, job_id: UUID) -> Job:
        """Put one off."""
        until = self.given["length"] or self.given["at"]
        return control.snooze(job_id, until, by=self.by, reason=self.given["reason"])

    def sentence(self, job: Job) -> str:
        """Until when."""
        return f"{job.pk} {job.task.rsplit('.', 1)[-1]}: due at {job.due_at:%Y-%m-%d %H:%M:%S %Z}".rstrip()


class Prune(Verb):
    """Let finished jobs go."""

    name = "prune"
    help = "delete jobs that finished long ago, in small slices"
    about = (
        "Delete jobs that finished longer ago than an age, with their attempts. Kept are jobs with an open dead\n"
        "letter and members of a chord that has not ended. Other work goes on meanwhile; stop it when you like."
    )
    examples = (
        "jobs prune --older-than 30d",
        "jobs prune --older-than 7d --state completed --limit 100000 --yes",
        "jobs prune --older-than 90d --state failed --dry-run",
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """An age, states, consent."""
        parser.add_argument(
            "--older-than", type=arguments.age, metavar="AGE", help="how long ago they finished: 12h, 30d, 8w"
        )
        parser.add_argument(
            "--state", action="append", choices=sorted(FINAL), metavar="STATE",
            help="completed, cancelled or failed; may be repeated (default: completed and cancelled)",
        )  # fmt: skip
        parser.add_argument("--limit", type=arguments.count, help="how many at most")
        parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
        arguments.add_signature(parser)
        arguments.add_yes(parser)

    def run(self) -> None:
        """Count, ask, delete."""
        age = self.given["older_than"]
        if age is None:
            raise mistaken("Prune needs an age: how long ago must a job have finished? For example --older-than 30d.")
        states = self.given["state"] or retention.BY_DEFAULT
        total = min(retention.prunable(age, states), self.given["limit"] or 10**12)
        pruned = 0
        if total and not self.given["dry_run"]:
            what = f"{numbered(total, 'job')} ({', '.join(states)})"
            self.confirm(f"delete {what} that finished more than {said(age)} ago")
            with counting(self.err, "pruned", total) as progress:
                pruned = retention.prune(
                    age, states, limit=self.given["limit"], progress=progress, by=self.by, reason=self.given["reason"]
                )
        self._tell(total, pruned)

    def _tell(self, total: int, pruned: int) -> None:
        if self.given["json"]:
            self.paper.json({"found": total, "pruned": pruned, "dry_run": self.given["dry_run"]})
        elif self.given["dry_run"]:
            self.paper.line(f"{numbered(total, 'job')} would be pruned.")
        else:
            self.paper.line(f"{numbered(pruned, 'job')} pruned.")


class Recount(Verb):
    """Make the numbers fit the table again."""

    name = "recount"
    help = "count the finished jobs anew, where the numbers do not fit the table"
    about = (
        "The numbers of finished jobs are kept as they end and are pruned, not counted when you ask. Rows that you\n"
        "deleted yourself, and those that a process of an older release pruned during a deployment, stay in them.\n"
        "This counts again what is in the table. It reads all jobs: about a second for a million. Jobs go on;\n"
        "on SQLite those who write wait meanwhile."
    )
    examples = ("jobs recount", "jobs recount --json")

    def run(self) -> None:
        """Count, and say how many."""
        kept = tally.recount()
        if self.given["json"]:
            self.paper.json({"finished": kept})
        else:
            self.paper.line(f"{numbered(kept, 'finished job')} in the table.")


class RequeueStuck(Verb):
    """What the conductor does, now."""

    name = "requeue-stuck"
    help = "give back jobs whose worker or message is lost, and send what is due"
    about = (
        "Do once and at once what the conductor does all the time: give back jobs whose lease has ended, send\n"
        "again those whose message is lost (on the same evidence), and send what is due. Nothing is sent on\n"
        "suspicion, so it is safe at any moment. It takes up to five seconds."
    )
    examples = ("jobs requeue-stuck", "jobs requeue-stuck --json")

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Who, and why."""
        arguments.add_signature(parser)

    def run(self) -> None:
        """Do it, and say how many."""
        done = rescue.requeue_stuck(by=self.by, reason=self.given["reason"])
        if self.given["json"]:
            self.paper.json({"rescued": done.rescued, "lost": done.lost, "released": done.released})
        else:
            self.paper.line(
                f"{numbered(done.rescued, 'job')} taken back from dead workers, {done.lost:,} with a lost message, "
                f"{done.released:,} sent to the broker."
            )


class ResetBreaker(Verb):
    """Close a circuit."""

    name = "reset-breaker"
    help = "close the circuit of a breaker at once, and forget what failed"
    about = (
        "Close a circuit at once: the jobs with its key go on, and its failures are forgotten. If they fail again it\n"
        "opens again. For which keys there are circuits, 'jobs breakers' says."
    )
    examples = ('jobs reset-breaker gateway --reason "they are back"',)

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which of them."""
        parser.add_argument("key", help="the key of the breaker, as 'jobs breakers' shows it")
        arguments.add_signature(parser)

    def run(self) -> None:
        """Close it."""
        row = control.reset_breaker(self.given["key"], by=self.by, reason=self.given["reason"])
        if self.given["json"]:
            self.paper.json({"key": row.key, "circuit": "closed"})
        else:
            self.paper.line(f"The circuit {row.key} is closed.")


class OnQueueOrTask(Verb):
    """A verb on a queue or a task."""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which of them."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--queue", help="the name of a queue")
        which.add_argument("--task", help="a task: ChargeOrder, or shop.tasks.ChargeOrder")
        arguments.add_signature(parser)

    def tell(self, name: str, paused: bool) -> None:
        """Say how it stands now."""
        kind = "queue" if self.given["queue"] else "task"
        if self.given["json"]:
            self.paper.json({"kind": kind, "name": name, "paused": paused})
        elif paused:
            self.paper.line(f"The {kind} {name} is paused: its jobs wait in the database; running ones go on.")
        else:
            self.paper.line(f"The {kind} {name} is resumed.")


class PauseVerb(OnQueueOrTask):
    """Pause."""

    name = "pause"
    help = "stop starting jobs of a queue or a task"
    about = "Stop starting jobs of a queue or a task, on all workers, until it is resumed. Running jobs go on."
    examples = ('jobs pause --queue payments --reason "gateway is down"', "jobs pause --task ChargeOrder")

    def run(self) -> None:
        """Pause it, once it is known to exist."""
        queue, task = self.given["queue"], self.given["task"]
        name = declared.queue_named(queue) if queue else declared.task_named(task)
        control.pause(**{"queue" if queue else "task": name}, reason=self.given["reason"], by=self.by)
        self.tell(name, paused=True)


class Resume(OnQueueOrTask):
    """Resume."""

    name = "resume"
    help = "start jobs of a paused queue or task again"
    examples = ("jobs resume --queue payments", "jobs resume --task ChargeOrder")

    def run(self) -> None:
        """Resume it, or say what is paused."""
        kind = Pause.Kind.QUEUE if self.given["queue"] else Pause.Kind.TASK
        name = self._paused_name(kind, self.given["queue"] or self.given["task"])
        control.resume(**{str(kind.value): name}, by=self.by, reason=self.given["reason"])
        self.tell(name, paused=False)

    @staticmethod
    def _paused_name(kind: Pause.Kind, text: str) -> str:
        """The full name of what is paused; a task that was removed from the code can still be resumed."""
        paused = stats.paused()
        names = [pause.name for pause in paused if pause.kind == kind]
        found = [name for name in names if name == text or (kind == Pause.Kind.TASK and name.endswith(f".{text}"))]
        if len(found) == 1:
            return found[0]
        raise mistaken(f"The {kind.value} {text} is not paused. Paused: {', '.join(map(str, paused)) or 'nothing'}.")
