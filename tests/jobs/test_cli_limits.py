"""``manage.py jobs limits``, ``allot`` and ``withdraw``: what they show, set, take back, refuse and keep on record."""

from collections.abc import Callable

import pytest

from jobs import control, lanes
from jobs.models import Act, Allotment, Job
from jobs.states import State
from tests.jobs.cli import run
from tests.sample.tasks import alone, for_user

pytestmark = pytest.mark.django_db


def listed(key: str, kind: str = "slots") -> dict[str, object]:
    found: list[dict[str, object]] = run("jobs", "limits", "--json").json["limits"]
    return next(row for row in found if (row["key"], row["kind"]) == (key, kind))


def test_the_list_shows_what_the_code_says_beside_what_holds() -> None:
    control.allot("user:{user}", slots=5, by="ann", reason="month's end")
    row = listed("user:{user}")
    assert (row["code"], row["set"], row["by"], row["reason"]) == ("2", "5", "ann", "month's end")
    assert row["tasks"] == [for_user.name]
    assert "month's end" in run("jobs", "limits").out


def test_the_list_shows_the_fullest_key_of_a_template(sent: list[str]) -> None:
    for_user.apply_async(("x", "ada"))
    lanes.release(10)
    row = listed("user:{user}")
    assert (row["in_use"], row["fullest"]) == ("1 of 2", "user:ada")


def test_the_list_shows_what_was_set_that_no_task_declares() -> None:
    control.allot(queue="default", slots=3, by="ann")
    control.allot("acme", weight=2, by="ann")
    assert (listed("queue default")["set"], listed("acme", "weight")["set"]) == ("3", "2")


@pytest.mark.parametrize(
    ("words", "kind", "name", "said"),
    [
        (["gateway", "--rate", "5/s", "--burst", 10], "tokens", "gateway", "5/s, burst 10"),
        (["user:{user}", "--slots", 5], "slots", "user:{user}", "5"),
        (["user:ada", "--slots", 1], "slots", "user:ada", "1"),
        (["--queue", "default", "--slots", 20], "slots", "queue default", "20"),
        (["--task", "alone", "--rate", "1/m"], "tokens", f"task {alone.name}", "1/m"),
        (["--tenant", "acme", "--slots", 5], "slots", "tenant acme", "5"),
        (["--tenant", "acme", "--weight", 0.5], "weight", "acme", "0.5"),
    ],
)
def test_a_limit_is_set_and_kept_on_record(words: list[object], kind: str, name: str, said: str) -> None:
    answer = run("jobs", "allot", *words, "--reason", "trouble", "--by", "ann")
    row, act = Allotment.objects.get(), Act.objects.get()
    assert (row.kind, row.name, row.said, row.by, row.reason) == (kind, name, said, "ann", "trouble")
    assert (act.verb, act.by, act.target, act.reason) == ("allot", "ann", f"{kind} {name}", "trouble")
    assert (answer.code, name in answer.out) == (0, True)


def test_what_was_set_takes_back_what_was_released_by_the_limit(sent: list[str]) -> None:
    for_user.apply_async(("x", "ada"))
    lanes.release(10)
    run("jobs", "allot", "user:ada", "--slots", 1)
    assert Job.objects.get().state == State.PENDING


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gatewa", "--rate", "5/s"], "Did you mean gateway?"),
        (["gateway", "--slots", 2], "Tasks declare gateway as a limit of starts in a span of time"),
        (["--task", "alon", "--slots", 2], "Did you mean"),
        (["task alone", "--slots", 2], f"There is no task alone. Did you mean {alone.name}?"),
        (["--slots", 2], "Name one of these: a key, --queue, --task or --tenant."),
        (["gateway", "--queue", "default", "--rate", "5/s"], "Name one of these"),
        (["user:{user}", "--slots", 2, "--burst", 3], "A burst belongs to a rate"),
        (["--queue", "default", "--weight", 2], "A tenant has a weight; a queue or a task has none."),
        (["acme", "--weight", -1], "A weight is a number from 0.001 to 1000"),
        (["gateway", "--rate", "fast"], "'fast' does not say how many in which span"),
        (["gateway", "--slots", 0], "To let none run, pause the queue"),
        (["gateway"], "one of the arguments --slots --rate --weight is required"),
    ],
)
def test_what_cannot_be_set_is_refused_with_a_sentence(words: list[object], sentence: str) -> None:
    answer = run("jobs", "allot", *words)
    assert answer.code != 0
    assert sentence in answer.err
    assert not Allotment.objects.exists()
    assert not Act.objects.exists()


def test_what_was_set_is_withdrawn_and_that_is_kept_on_record() -> None:
    control.allot("gateway", rate="5/s", by="ann")
    answer = run("jobs", "withdraw", "gateway", "--reason", "they are back", "--by", "bob")
    act = Act.objects.latest("pk")
    assert not Allotment.objects.exists()
    assert (act.verb, act.by, act.target, act.reason) == ("withdraw", "bob", "tokens gateway", "they are back")
    assert answer.out == "gateway: rate 5/s is withdrawn. What the code says holds again.\n"


@pytest.mark.parametrize(
    "words",
    [["--queue", "default"], ["queue default"], ["--queue", "default", "--kind", "slots"]],
)
def test_what_was_set_for_a_whole_queue_is_withdrawn(words: list[str]) -> None:
    control.allot(queue="default", slots=2, by="ann")
    assert run("jobs", "withdraw", *words).code == 0
    assert not Allotment.objects.exists()


def test_a_limit_of_a_task_that_is_gone_from_the_code_can_be_withdrawn() -> None:
    control.allot(task="shop.tasks.gone", slots=2, by="ann")
    assert run("jobs", "withdraw", "--task", "gone").code == 0
    assert not Allotment.objects.exists()


def test_where_two_are_set_it_asks_which() -> None:
    control.allot(tenant="acme", slots=2, by="ann")
    control.allot("acme", weight=2, by="ann")
    answer = run("jobs", "withdraw", "--tenant", "acme")
    assert (answer.code, "Say which: --kind weight" in answer.err) == (2, True)
    assert run("jobs", "withdraw", "--tenant", "acme", "--kind", "weight").code == 0
    assert Allotment.objects.get().name == "tenant acme"


def test_where_nothing_is_set_it_says_what_is() -> None:
    control.allot("gateway", rate="5/s", by="ann")
    answer = run("jobs", "withdraw", "gate")
    assert (answer.code, answer.err) == (2, "Nothing is set for gate. Set: gateway (rate 5/s).\n")


@pytest.mark.parametrize(
    "act",
    [
        lambda: control.withdraw("tickets", "gateway", by="ann"),
        lambda: control.allot("acme", weight="2", by="ann"),  # type: ignore[arg-type]
        lambda: control.allot("gateway", slots=2, burst=3, by="ann"),
        lambda: control.allot("gateway", burst=3, by="ann"),
    ],
)
def test_python_refuses_what_cannot_be_meant(act: Callable[[], object]) -> None:
    with pytest.raises(control.Refused):
        act()


def test_python_withdraws_by_the_words_that_set_it() -> None:
    control.allot("gateway", rate="5/s", by="ann")
    control.allot(queue="default", slots=2, by="ann")
    assert control.withdraw("rate", "gateway", by="ann")
    assert control.withdraw("slots", queue="default", by="ann")
    assert not Allotment.objects.exists()
