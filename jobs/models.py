"""The rows: jobs, their attempts, keys, fan-ins, and what operators did. Constraints are the sentences they hold."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from jobs.ids import new_id
from jobs.states import FINAL, WAITING, Priority, State
from jobs.windows import Bound

PRIORITIES = [(p.value, p.name.lower()) for p in Priority]
_UNFINISHED = Q(finished_at__isnull=True)
_FINISHED = Q(finished_at__isnull=False)
_WAITING = Q(state__in=sorted(WAITING))


def _set(column: str) -> Q:
    return Q(**{f"{column}__isnull": False})


class Job(models.Model):
    """One task with one payload, and all that became of it."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    task = models.CharField(max_length=255)
    payload = models.TextField(help_text="args and kwargs as JSON")
    version = models.PositiveIntegerField(default=1, help_text="version of the payload")
    queue = models.CharField(max_length=100)
    priority = models.PositiveSmallIntegerField(choices=PRIORITIES, default=Priority.NORMAL.value)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING.value)
    reason = models.CharField(max_length=255, blank=True, default="", help_text="why it is in this state")

    key = models.CharField(max_length=255, null=True, blank=True, help_text="what makes two calls the same job")  # noqa: DJ001
    tenant = models.CharField(max_length=100, blank=True, default="")
    tags = models.JSONField(default=list, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    correlation_id = models.CharField(max_length=100, blank=True, default="")

    parent_id = models.UUIDField(null=True, blank=True)
    root_id = models.UUIDField(null=True, blank=True)
    group_id = models.UUIDField(null=True, blank=True)
    group_index = models.IntegerField(null=True, blank=True)
    fanin_id = models.UUIDField(null=True, blank=True, help_text="the chord whose header this belongs to")
    waits_for_id = models.UUIDField(null=True, blank=True, help_text="the chord whose header must complete first")
    follows_id = models.UUIDField(null=True, blank=True, help_text="the job whose outcome becomes this one's")
    replay_of_id = models.UUIDField(null=True, blank=True, help_text="the failed job that this one repeats")
    origin_id = models.UUIDField(null=True, blank=True, help_text="the first of a line of replays")
    schedule = models.CharField(max_length=200, blank=True, default="")
    followed = models.BooleanField(default=False, help_text="whether jobs follow this one")
    canvas = models.TextField(blank=True, default="", help_text="what follows: links, chain, as JSON")
    delivery = models.TextField(blank=True, default="", help_text="what the message carries beyond the payload")
    lane = models.CharField(
        max_length=32, blank=True, default="", db_default="", help_text="its line, where something constrains it"
    )
    bound = models.TextField(blank=True, default="", db_default="", help_text="the keys of its limits, as JSON")

    created_at = models.DateTimeField()
    due_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    attempt = models.PositiveIntegerField(default=0, help_text="number of the last attempt started")
    max_attempts = models.PositiveIntegerField(help_text="how many it is allowed")
    sends = models.PositiveIntegerField(default=0)
    snoozes = models.PositiveIntegerField(default=0)
    losses = models.PositiveIntegerField(default=0)
    time_limit = models.FloatField(null=True, blank=True)
    soft_time_limit = models.FloatField(null=True, blank=True)

    token = models.UUIDField(null=True, blank=True, help_text="fence of the last attempt")
    worker = models.CharField(max_length=255, blank=True, default="")
    pid = models.PositiveIntegerField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_reason = models.CharField(max_length=255, blank=True, default="")

    progress = models.JSONField(null=True, blank=True)
    result = models.TextField(null=True, blank=True)  # noqa: DJ001
    error_type = models.CharField(max_length=255, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    traceback = models.TextField(blank=True, default="")

    # Of a draft: the burst of calls that it is one of. It is no column.
    window: Bound | None = None

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        verbose_name = _("job")
        permissions: ClassVar = [
            ("retry_job", "Can make jobs due now and replay failed ones"),
            ("cancel_job", "Can cancel jobs"),
            ("prune_job", "Can prune finished jobs"),
            ("pause_queue", "Can pause and resume queues and tasks"),
        ]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["task", "key"], condition=_UNFINISHED & _set("key"), name="one_unfinished_job_per_key"
            ),
            models.CheckConstraint(
                condition=Q(state__in=sorted(FINAL)) | _UNFINISHED, name="only_final_jobs_are_finished"
            ),
            models.CheckConstraint(
                condition=~Q(state__in=sorted(FINAL)) | Q(finished_at__isnull=False),
                name="final_jobs_are_finished",
            ),
            models.CheckConstraint(
                condition=~Q(state=State.RUNNING) | Q(lease_until__isnull=False, token__isnull=False),
                name="running_jobs_hold_a_lease",
            ),
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(due_at__isnull=True) | Q(expires_at__gte=F("created_at")),
                name="jobs_expire_after_creation",
            ),
        ]
        # Each is named after the question that it answers; docs/explanation/scale.md says what each costs. Those of
        # the unfinished are small by nature. A finished job is moved no more: what only history needs is written once.
        indexes: ClassVar = [
            models.Index(
                fields=["priority", "due_at"], condition=_UNFINISHED & _WAITING & Q(lane=""), name="jobs_due_directly"
            ),
            models.Index(
                fields=["lane", "due_at"], condition=_UNFINISHED & _WAITING & ~Q(lane=""), name="jobs_due_by_lane"
            ),
            models.Index(fields=["lease_until"], condition=_UNFINISHED & _set("lease_until"), name="jobs_leased"),
            models.Index(fields=["expires_at"], condition=_UNFINISHED & _set("expires_at"), name="jobs_expiring"),
            models.Index(
                fields=["cancel_requested_at"],
                condition=_UNFINISHED & _set("cancel_requested_at"),
                name="jobs_to_be_cancelled",
            ),
            models.Index(fields=["queue", "priority", "due_at"], condition=_UNFINISHED, name="jobs_unfinished"),
            models.Index(fields=["waits_for_id"], condition=_set("waits_for_id"), name="jobs_waiting_for"),
            models.Index(fields=["follows_id"], condition=_set("follows_id"), name="jobs_following"),
            models.Index(fields=["fanin_id"], condition=_set("fanin_id"), name="jobs_of_fanin"),
            models.Index(fields=["created_at"], name="jobs_by_creation"),
            models.Index(fields=["task", "created_at"], name="jobs_of_task"),
            models.Index(fields=["queue", "created_at"], name="jobs_of_queue"),
            models.Index(fields=["tenant", "created_at"], condition=~Q(tenant=""), name="jobs_of_tenant"),
            models.Index(fields=["created_at"], condition=~Q(tags=[]), name="jobs_tagged"),
            models.Index(fields=["state", "finished_at"], condition=_FINISHED, name="jobs_by_end"),
            models.Index(fields=["correlation_id"], condition=_FINISHED, name="jobs_by_correlation"),
            models.Index(fields=["key"], condition=_set("key"), name="jobs_by_key"),
            models.Index(fields=["parent_id"], condition=_set("parent_id"), name="jobs_by_parent"),
            models.Index(fields=["group_id"], condition=_set("group_id"), name="jobs_by_group"),
            models.Index(fields=["replay_of_id"], condition=_set("replay_of_id"), name="jobs_by_original"),
        ]

    def __str__(self) -> str:
        return f"{self.task.rsplit('.', 1)[-1]} {str(self.id)[-12:]}"

    @property
    def waiting(self) -> bool:
        """Whether it rests in the database."""
        return self.state in WAITING

    @property
    def finished(self) -> bool:
        """Whether its state is final."""
        return self.state in FINAL


class Attempt(models.Model):
    """One run of a job that did not complete it; the completing one is read off the job."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    worker = models.CharField(max_length=255, blank=True, default="")
    pid = models.PositiveIntegerField(null=True, blank=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    outcome = models.CharField(max_length=20)
    error_type = models.CharField(max_length=255, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    traceback = models.TextField(blank=True, default="")
    decision = models.CharField(max_length=10, choices=State.choices)
    reason = models.CharField(max_length=255, blank=True, default="", help_text="why this was decided")
    delay = models.FloatField(default=0.0, help_text="seconds until the next attempt")
    priority = models.PositiveSmallIntegerField(
        choices=PRIORITIES, null=True, help_text="at which it ran, where its task lowers it on retry"
    )

    class Meta:
        ordering: ClassVar = ["number"]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "number"], name="one_record_per_attempt"),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number}"


class Key(models.Model):
    """A key that holds longer than its job: for a period, or for ever (no ``expires_at``)."""

    task = models.CharField(max_length=255)
    key = models.CharField(max_length=255)
    job_id = models.UUIDField()
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["task", "key"], name="one_job_per_held_key"),
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.key}"


class FanIn(models.Model):
    """A chord's header: how many members are left, and which did not complete."""

    id = models.UUIDField(primary_key=True)
    size = models.PositiveIntegerField()
    remaining = models.PositiveIntegerField()
    failed = models.JSONField(default=list, help_text="ids of members that did not complete")
    created_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(remaining__lte=F("size")), name="no_more_remain_than_began"),
        ]

    def __str__(self) -> str:
        return f"{self.size - self.remaining} of {self.size}"


class Worker(models.Model):
    """A worker process as it last reported itself."""

    name = models.CharField(max_length=255, primary_key=True)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    queues = models.JSONField(default=list)
    holds = models.JSONField(default=list, help_text="ids of the jobs that it has received and not finished")
    concurrency = models.PositiveIntegerField(default=0)
    pool = models.CharField(max_length=50, blank=True, default="")
    stuck = models.PositiveIntegerField(
        default=0, db_default=0, help_text="how many of its slots are held by bodies that nobody can stop"
    )

    class Meta:
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.name


class Checkpoint(models.Model):
    """What a body had finished when it said so: a named step's result, or a cursor; the next attempt reads it."""

    class Kind(models.TextChoices):
        """What is kept."""

        STEP = "step", _("step")
        CURSOR = "cursor", _("cursor")

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="checkpoints")
    kind = models.CharField(max_length=6, choices=Kind.choices)
    name = models.CharField(max_length=200)
    value = models.TextField(help_text="as JSON")
    attempt = models.PositiveIntegerField(default=0, help_text="number of the attempt that wrote it; 0: another job's")
    written_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["written_at", "id"]
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "name"], name="one_checkpoint_per_name"),
        ]

    def __str__(self) -> str:
        return self.name


class Moment(models.DateTimeField):  # type: ignore[type-arg]
    """A time that has a zone in Python, also where ``USE_TZ`` is off; schedules are reckoned in real time."""

    def from_db_value(self, value: datetime | None, expression: Any, connection: Any) -> datetime | None:
        """Give a time without a zone the project's."""
        return value if value is None or timezone.is_aware(value) else timezone.make_aware(value)

    def get_prep_value(self, value: Any) -> Any:
        """Give the database the form that it takes."""
        prepared = super().get_prep_value(value)
        naive = isinstance(prepared, datetime) and timezone.is_aware(prepared) and not settings.USE_TZ
        return timezone.make_naive(prepared) if naive else prepared

    def deconstruct(self) -> Any:
        """In migrations and in the database it is a time like any other."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs


class Schedule(models.Model):
    """What Mainstay knows of a schedule of beat: what to do about missed fires, and until when it was decided."""

    class Misfire(models.TextChoices):
        """What becomes of the fires that were missed."""

        SKIP = "skip", _("skip")
        ONCE = "once", _("once")
        ALL = "all", _("all")

    name = models.CharField(max_length=200, primary_key=True)
    misfire = models.CharField(max_length=4, choices=Misfire.choices, default=Misfire.ONCE)
    periodic_task_id = models.BigIntegerField(null=True, blank=True, help_text="the periodic task that it belongs to")
    says = models.TextField(blank=True, default="", help_text="when it fires, as it was when it last began anew")
    anchor = Moment(null=True, blank=True, help_text="from where an interval is counted")
    decided_until = Moment(null=True, blank=True, help_text="every fire up to then is in the ledger")
    ran_at = Moment(null=True, blank=True, help_text="what was written as the time of the last run")

    class Meta:
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return self.name


class Tick(models.Model):
    """One fire of one schedule: fired once, by whichever beat came first, or left out by the schedule's policy."""

    schedule = models.CharField(max_length=200)
    fire_at = Moment(help_text="when it was due")
    job_id = models.UUIDField(null=True, blank=True, help_text="the job it became; none where it was left out")
    left_out = models.PositiveIntegerField(default=0, help_text="how many fires, up to the next row, were left out")
    reason = models.CharField(max_length=255, blank=True, default="", help_text="why it did not become a job")
    decided_at = Moment()

    class Meta:
        ordering: ClassVar = ["-fire_at"]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["schedule", "fire_at"], name="one_tick_per_schedule_and_time"),
        ]

    def __str__(self) -> str:
        return f"{self.schedule} {self.fire_at:%Y-%m-%d %H:%M:%S}"


class Epoch(models.Model):
    """The marker last left in a broker. A broker that comes back with an older one, or without, has lost messages;
    one with a newer one shows that the database itself was set back."""

    broker = models.CharField(max_length=100, primary_key=True)
    server = models.CharField(max_length=100, blank=True, default="", help_text="the run of the server that held it")
    serial = models.BigIntegerField(default=0)
    marked_at = models.DateTimeField(null=True, blank=True)
    lost_since = models.DateTimeField(null=True, blank=True, help_text="what was sent from then")
    lost_until = models.DateTimeField(null=True, blank=True, help_text="to then may be lost, and is to be sent again")
    forgotten_since = models.DateTimeField(null=True, blank=True, help_text="what happened from then")
    forgotten_until = models.DateTimeField(null=True, blank=True, help_text="to then the database does not know")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.broker}: {self.serial}"


class Leader(models.Model):
    """Who leads, until when: one row per office."""

    office = models.CharField(max_length=50, primary_key=True)
    holder = models.CharField(max_length=255)
    until = models.DateTimeField()
    ticked_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.office}: {self.holder}"


class Arrival(models.Model):
    """A job that waits in its lane since a moment ago: the next release takes it in."""

    job_id = models.UUIDField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.job_id)


class Share(models.Model):
    """The jobs of one tenant that wait in a queue with a priority: they have a turn among those of the others."""

    queue = models.CharField(max_length=100)
    priority = models.PositiveSmallIntegerField()
    tenant = models.CharField(max_length=100, blank=True, default="")
    turn = models.FloatField(default=0.0, help_text="how much was released so far, by its weight")
    is_open = models.BooleanField(default=False, help_text="whether one of its lanes may have a job to release")
    open_at = models.DateTimeField(null=True, help_text="since when, or when next")

    class Meta:
        verbose_name = _("waiting line")
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["queue", "priority", "tenant"], name="one_share_per_tenant"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "priority", "turn", "open_at"], condition=Q(is_open=True), name="shares_by_turn"
            ),
            models.Index(fields=["queue", "priority", "open_at"], condition=Q(is_open=True), name="shares_by_age"),
            models.Index(fields=["open_at"], condition=Q(is_open=False), name="shares_to_open"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant} in {self.queue} at {self.priority}"


class Lane(models.Model):
    """Jobs of one share that the same keys bind: if the first may not go, none may."""

    id = models.CharField(max_length=32, primary_key=True)
    share = models.ForeignKey(Share, on_delete=models.CASCADE, related_name="lanes")
    task = models.CharField(max_length=255)
    bound = models.TextField(blank=True, default="")
    head_at = models.DateTimeField(help_text="when its first job became due")
    open_at = models.DateTimeField(help_text="when it is looked at next")
    waits_on = models.CharField(max_length=255, blank=True, default="", help_text="the key that has nothing left")
    priority = models.PositiveSmallIntegerField(default=0)
    turn = models.FloatField(default=0.0, help_text="that of its share, when it was closed")

    class Meta:
        default_permissions = ()
        indexes: ClassVar = [
            models.Index(fields=["share", "open_at"], name="lanes_by_age"),
            models.Index(
                fields=["waits_on", "priority", "turn", "head_at"], condition=~Q(waits_on=""), name="lanes_closed"
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Slot(models.Model):
    """A released job that has not ended, under one of its keys; without a key, for its queue."""

    job_id = models.UUIDField()
    key = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job_id", "key"], name="one_slot_per_job_and_key"),
        ]
        indexes: ClassVar = [models.Index(fields=["key"], name="slots_of_key")]

    def __str__(self) -> str:
        return f"{self.job_id} {self.key}".strip()


class ChunkMember(models.Model):
    """A released job of a chunk, and the one whose message calls for all of them: the leader, itself a member."""

    job_id = models.UUIDField(primary_key=True)
    leader_id = models.UUIDField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.job_id} with {self.leader_id}"


class Bucket(models.Model):
    """The tokens of a key, as of a moment by the database's clock."""

    key = models.CharField(max_length=255, primary_key=True)
    tokens = models.FloatField()
    filled_at = models.DateTimeField()
    wake_at = models.DateTimeField(null=True, db_index=True, help_text="when the lanes are opened that wait for it")
    full_at = models.DateTimeField(null=True, db_index=True, help_text="from when on it says nothing that is not so")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.tokens:g}"


class Allotment(models.Model):
    """What an operator said in place of what a task declares: the numbers of a limit, or the weight of a tenant."""

    class Kind(models.TextChoices):
        """What it is about."""

        SLOTS = "slots", _("jobs at a time")
        TOKENS = "tokens", _("jobs in a span of time")
        WEIGHT = "weight", _("weight of a tenant")

    kind = models.CharField(max_length=10, choices=Kind.choices)
    name = models.CharField(max_length=255, help_text="a key, the template of keys, or a tenant")
    amount = models.FloatField(help_text="how many; of a rate, in a second")
    burst = models.FloatField(help_text="of a rate, how many may start at once")
    said = models.CharField(max_length=100, help_text="as it was said")
    reason = models.CharField(max_length=255, blank=True, default="")
    by = models.CharField(max_length=150, blank=True, default="")
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = _("limit or weight")
        verbose_name_plural = _("limits and weights")
        default_permissions = ("view",)
        permissions: ClassVar = [("set_limit", "Can set and withdraw limits, and weights of tenants")]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "name"], name="allotted_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="allotments_allow_something"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.said}"


class Burst(models.Model):
    """The calls with one key that become one job: it gathers them until it may go. A throttle's also when it went."""

    task = models.CharField(max_length=255)
    key = models.CharField(max_length=255)
    after = models.BigIntegerField(default=0, help_text="the burst before it that its first caller saw")
    job_id = models.UUIDField(db_index=True)
    first_at = models.DateTimeField()
    quiet = models.FloatField(null=True, help_text="seconds without a call after which it goes; none for a throttle")
    span = models.FloatField(help_text="seconds that it waits at most, or that lie between two runs")
    leading = models.BooleanField(default=False)
    keep_first = models.BooleanField(default=False)
    went = models.BooleanField(default=False, help_text="whether its job was let go, and its start is to be kept")
    look_at = models.DateTimeField(db_index=True, help_text="when the conductor looks at it next")

    class Meta:
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["task", "key", "after"], name="one_burst_comes_after_another"),
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.key}"


class Call(models.Model):
    """One call of a burst: whoever calls adds a row, and waits for nobody else who does."""

    # No foreign key: its lock would be one that the caller may have to wait for.
    burst_id = models.BigIntegerField()
    at = models.DateTimeField()
    payload = models.TextField()
    version = models.PositiveIntegerField(default=1)
    bound = models.TextField(blank=True, default="")

    class Meta:
        default_permissions = ()
        indexes: ClassVar = [models.Index(fields=["burst_id", "at", "id"], name="calls_of_burst")]

    def __str__(self) -> str:
        return f"call of burst {self.burst_id}"


class Circuit(models.Model):
    """What failed of late under a key of a breaker, and until when the jobs with this key are parked."""

    key = models.CharField(max_length=255, unique=True)
    rule = models.CharField(max_length=255, help_text="the key as it is declared")
    task = models.CharField(max_length=255, help_text="the task of the last failure that counted")
    job_id = models.UUIDField(null=True, help_text="the job of the last failure that counted")
    error = models.CharField(max_length=255, blank=True, default="", help_text="the error of that")
    failed_at = models.JSONField(default=list, help_text="when the failures were that count, in seconds")
    threshold = models.PositiveIntegerField(default=1, help_text="how many open it")
    in_a_row = models.BooleanField(default=False, help_text="whether a success in between makes it begin anew")
    opened_at = models.DateTimeField(null=True)
    open_until = models.DateTimeField(null=True, help_text="half-open from then on; closed where nothing stands here")
    openings = models.PositiveIntegerField(default=0, help_text="how often it opened since it was closed")
    probes = models.PositiveIntegerField(default=1, help_text="how many must complete before it closes")
    succeeded = models.PositiveIntegerField(default=0, help_text="how many have")
    wake_at = models.DateTimeField(null=True, db_index=True, help_text="when the lanes are opened that wait for it")
    changed_at = models.DateTimeField()

    class Meta:
        verbose_name = _("circuit breaker")
        default_permissions = ("view",)
        permissions: ClassVar = [("reset_circuit", "Can reset circuit breakers")]

    def __str__(self) -> str:
        return self.key


class Pause(models.Model):
    """A queue or a task that is not to start jobs for now."""

    class Kind(models.TextChoices):
        """What is paused."""

        QUEUE = "queue", _("queue")
        TASK = "task", _("task")

    kind = models.CharField(max_length=10, choices=Kind.choices)
    name = models.CharField(max_length=255)
    reason = models.CharField(max_length=255, blank=True, default="")
    by = models.CharField(max_length=150, blank=True, default="")
    created_at = models.DateTimeField()

    class Meta:
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "name"], name="paused_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Tally(models.Model):
    """How many jobs of a task and a queue have ended in a state, within a span of time; they are counted once.

    Those of all time also say how many of them were pruned since: the difference is in the table.
    """

    class Span(models.TextChoices):
        """How long a tally's time is."""

        EVER = "ever", _("ever")
        DAY = "day", _("day")
        HOUR = "hour", _("hour")
        MINUTE = "minute", _("minute")

    span = models.CharField(max_length=6, choices=Span.choices)
    begins = models.DateTimeField()
    task = models.CharField(max_length=255)
    queue = models.CharField(max_length=100)
    state = models.CharField(max_length=10, choices=State.choices)
    ended = models.BigIntegerField(default=0)
    pruned = models.BigIntegerField(default=0)

    class Meta:
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["span", "begins", "task", "queue", "state"], name="one_tally_per_span"),
        ]

    def __str__(self) -> str:
        return f"{self.ended} {self.state} of {self.task}, {self.span} {self.begins:%Y-%m-%d %H:%M}"


class Census(models.Model):
    """How far a count has come: until when the finished are in the tallies, or the unfinished as of a moment."""

    name = models.CharField(max_length=50, primary_key=True)
    until = models.DateTimeField(null=True, blank=True)
    numbers = models.JSONField(default=dict)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.name} until {self.until}"


class Act(models.Model):
    """One thing an operator did: the audit trail."""

    at = models.DateTimeField()
    by = models.CharField(max_length=150)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    verb = models.CharField(max_length=30)
    target = models.CharField(max_length=255)
    job_id = models.UUIDField(null=True, blank=True, db_index=True)
    reason = models.TextField(blank=True, default="")
    details = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering: ClassVar = ["-at", "-id"]
        verbose_name = _("operator's act")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.by}: {self.verb} {self.target}"
