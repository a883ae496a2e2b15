"""Calls that do not fit the body: a type checker must refuse each line that says so, and no other."""

from __future__ import annotations

from jobs.task import ChunkTask, IdempotentTask, Task, chunk_task, task


class ChargeOrder(IdempotentTask):
    """A class with a required and an optional parameter."""

    key = "charge:{order_id}"

    def run(self, order_id: int, note: str = "") -> str:
        return f"{order_id} {note}"


class Import(Task):
    """A class with a parameter that goes by name only."""

    def run(self, *, path: str) -> int:
        return len(path)


@task
def add(a: int, b: int = 0) -> int:
    """A function."""
    return a + b


@task(queue="mail")
def send(order_id: int, *, copy: bool = False) -> str:
    """A function with options."""
    return f"{order_id} {copy}"


ChargeOrder.delay()  # refused
ChargeOrder.delay("seven")  # refused
ChargeOrder.delay(order=7)  # refused
ChargeOrder.delay(7, "x", "y")  # refused
ChargeOrder.delay(7, note=7)  # refused
ChargeOrder().delay("seven")  # refused
Import.delay("x.csv")  # refused
Import.delay(path=7)  # refused
wrong_result: int = ChargeOrder.delay(7).get()  # refused

add.delay()  # refused
add.delay("one")  # refused
add.delay(1, c=2)  # refused
add("one")  # refused
send.delay(7, True)  # refused
send.delay(7, copy="yes")  # refused
also_wrong: str = add.delay(1).get()  # refused


@task(quue="mail")  # refused
def misspelt() -> None:
    """An option that does not exist."""


@task(bind=True)
def bound(self: Task, page: int) -> int:
    """A bound function."""
    return page


bound.delay()  # refused
bound.delay("three")  # refused
bound.delay(None, 3)  # refused


class Settle(Task):
    """A body with steps."""

    def run(self, order_id: int) -> None:
        self.step("add", add, "one")  # refused
        self.step("add")  # refused
        self.atomic_step("add", add, 1, c=2)  # refused
        self.charge(self.step("add", add, 1))  # refused
        self.charge(self.cursor("rows", 0))  # refused

    def charge(self, reference: str) -> None:
        """What takes a text."""


class SendMail(ChunkTask):
    """A body for many: a call gives one."""

    def run(self, payloads: list[str]) -> None:
        """Nothing."""


@chunk_task(size=2)
def index(payloads: list[int]) -> None:
    """A function for many."""


SendMail.delay(7)  # refused
SendMail.delay(["a"])  # refused
index.delay("x")  # refused
