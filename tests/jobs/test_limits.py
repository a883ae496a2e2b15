"""What a task may declare of limits, and what it is told where that makes no sense."""

from typing import Any

import pytest

from jobs.errors import DeclarationError, KeyCannotBeMade
from jobs.limits import Concurrency, Rate, binds, bound, settle
from jobs.task import Task, task


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: Concurrency("x", 0), "1 or more"),
        (lambda: Concurrency("x", True), "1 or more"),
        (lambda: Rate("x", "fast"), "20/s"),
        (lambda: Rate("x", "0/s"), "20/s"),
        (lambda: Rate("x", "1/s", burst=0), "1 or more"),
        (lambda: task(limits=Concurrency("x"))(lambda: None), "must be a list"),
        (lambda: task(limits=["x"])(lambda: None), "must be a Concurrency or a Rate"),  # type: ignore[list-item]
        (lambda: task(limits=[Concurrency("customer:{nobody}")])(lambda a: None), "It may use: a, task, queue, tenant"),
        (lambda: task(limits=[Concurrency("a:{}")])(lambda a: None), r"without a name.*\{a\}, \{task\}"),
        (lambda: task(limit=[Concurrency("x")])(lambda: None), r"does not know limit\. Did you mean limits\?"),
        (lambda: task(rate_limit="10/m")(lambda: None), r"For a rate over all workers write limits=\[Rate\("),
        (lambda: task(limits=[Concurrency("a{")])(lambda: None), "is not a template"),
        (lambda: task(limits=[Concurrency("")])(lambda: None), "text or a function"),
        (lambda: task(limits=[Concurrency("x"), Concurrency("x", 2)])(lambda: None), "two limits of one kind"),
    ],
)
def test_a_limit_that_can_never_be_kept_is_refused_at_declaration(declare: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        declare()


def test_a_class_whose_limits_have_a_name_that_nobody_reads_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"does not know limit\. Did you mean limits\?"):

        class Mistyped(Task):
            limit = [Concurrency("x", 1)]

            def run(self) -> None: ...


def test_a_class_may_keep_a_limit_under_a_name_of_its_own() -> None:
    class Kept(Task):
        GATEWAY = Rate("gateway of a class", "5/s")
        limits = [GATEWAY]

        def run(self) -> None: ...

    assert Kept.limits == [Kept.GATEWAY]


def made(limit: Any, arguments: dict[str, Any], tenant: str = "", queue: str = "default") -> str:
    """The key of a limit."""
    (bind,) = binds(settle(bound("shop.pay", [limit], arguments, tenant), queue))
    return bind.key


def test_a_key_is_made_of_the_arguments_and_of_where_the_job_goes() -> None:
    assert made(Concurrency("{task} {queue} {tenant} {a}"), {"a": 7}, "acme", 'a "queue"') == (
        'shop.pay a "queue" acme 7'
    )


def test_a_key_may_be_made_by_a_function() -> None:
    assert made(Rate(lambda a, b: f"{a}-{b}", "1/s"), {"a": 1, "b": 2}) == "1-2"


def test_jobs_without_a_tenant_count_together() -> None:
    assert made(Concurrency("{tenant}"), {}) == "(no tenant)"


def test_a_long_key_is_kept_as_a_digest() -> None:
    assert made(Concurrency("{a}"), {"a": "x" * 1000}).startswith("sha256:")


def test_a_key_that_cannot_be_made_is_told_to_the_caller() -> None:
    with pytest.raises(KeyCannotBeMade, match="cannot be made from"):
        made(Concurrency("{a.b}"), {"a": 1})
