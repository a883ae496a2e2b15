"""Calls that fit the body: a type checker has nothing to say."""

from __future__ import annotations

from typing import assert_type

from jobs.task import NO_KEY, ChunkTask, Done, Failed, IdempotentTask, Task, TransactionalTask, chunk_task, task


class ChargeOrder(IdempotentTask):
    """A class with a required and an optional parameter."""

    key = "charge:{order_id}"
    queue = "payments"
    priority = "high"

    def run(self, order_id: int, note: str = "") -> str:
        return f"{order_id} {note} {self.idempotency_token}"


class Import(Task):
    """A class with a parameter that goes by name only."""

    def run(self, *, path: str) -> dict[str, int]:
        self.progress(1, 2, unit="rows")
        return {path: 1}


class MarkShipped(TransactionalTask):
    """A class without a result."""

    def run(self, order_id: int) -> None:
        """Nothing."""


@task
def add(a: int, b: int = 0) -> int:
    """A function with the bare decorator."""
    return a + b


@task(queue="mail", key=NO_KEY, base=IdempotentTask)
def send(order_id: int, *, copy: bool = False) -> str:
    """A function with options."""
    return f"{order_id} {copy}"


assert_type(ChargeOrder.delay(7).get(), str)
assert_type(ChargeOrder.delay(order_id=7, note="x").get(timeout=1), str)
assert_type(ChargeOrder().delay(7).get(), str)
assert_type(Import.delay(path="x.csv").get(), dict[str, int])
MarkShipped.delay(order_id=7)

assert_type(add.delay(1, b=2).get(), int)
assert_type(add.delay(1).id, str)
assert_type(add(1, 2), int)
assert_type(send.delay(7, copy=True).get(), str)
assert_type(send.delay(7).state, str)

ChargeOrder.apply_async(kwargs={"order_id": 7}, countdown=5)
add.apply_async(args=(1, 2), priority="low")
ChargeOrder.s(7)
add.si(1, 2)


@task(bind=True, queue="reports", base=IdempotentTask, key="export:{page}")
def export(self: IdempotentTask, page: int) -> str:
    """A bound function: what it gets first is not given by the caller."""
    self.progress(page, 10)
    return f"{page} {self.idempotency_token}"


assert_type(export.delay(3).get(), str)
assert_type(export.delay(page=3).ready(), bool)


def charge(order_id: int, *, token: str) -> str:
    """What a step calls."""
    return f"{order_id} {token}"


class Settle(IdempotentTask):
    """A body with steps and a cursor: each has the type of its function, or of where it starts."""

    key = "settle:{order_id}"

    def run(self, order_id: int) -> str:
        assert_type(self.step("charge", charge, order_id, token=self.idempotency_token_for("charge")), str)
        assert_type(self.atomic_step("book", charge, order_id, token=""), str)
        with self.advance("rows", self.cursor("rows", 0) + 1):
            pass
        return self.cursor("name", "")


class SendMail(ChunkTask):
    """A body for many: a call gives one of what it gets."""

    size = 50
    max_wait = 2.0
    chunk_by = "{payload}"

    def run(self, payloads: list[str]) -> list[Done | Failed]:
        return [Done(token) for token in self.idempotency_tokens]


@chunk_task
def index(payloads: list[int]) -> None:
    """A function for many."""


@chunk_task(size=10, max_wait=1, queue="mail", key="x:{payload}", bind=True)
def store(self: ChunkTask, payloads: list[dict[str, int]]) -> dict[int, Failed]:
    """A bound function for many."""
    return {0: Failed(ValueError(self.job_ids[0]))}


SendMail.delay("ann@example.org").get()
SendMail().delay("ann@example.org")
SendMail.apply_async(("ann@example.org",), tenant="acme")
assert_type(index.delay(7).id, str)
store.delay({"product": 1}).ready()
