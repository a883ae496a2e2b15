"""What the outside world answers in the demo: a pure function of the seed. No clock, network or database."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

A = TypeVar("A")


class Line(StrEnum):
    """What becomes of the connection that carries an answer."""

    HELD = "held"
    HANGS = "hangs"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the payment gateway; ``charged``: money moved, even if the answer gets lost."""

    status: int
    charged: bool = False
    line: Line = Line.HELD
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Script(Generic[A]):
    """The answers to the first askings, the one to all later ones, and how many in a thousand get it."""

    first: tuple[A, ...]
    later: A
    share: int

    def answer(self, asked: int) -> A:
        """The answer to asking number ``asked``, from 1.

        >>> [Script(("busy", "busy"), "done", 1).answer(n) for n in (1, 2, 3, 4)]
        ['busy', 'busy', 'done', 'done']
        """
        return self.first[asked - 1] if asked <= len(self.first) else self.later


CHARGED = Answer(200, charged=True)
CARD_REFUSED = Answer(402)
UNKNOWN_ORDER = Answer(404)
TOO_MANY = Answer(429, retry_after=1)
BROKEN = Answer(500)
BUSY = Answer(503)
RESET = Answer(0, line=Line.RESET)
RESET_AFTER_CHARGE = Answer(0, charged=True, line=Line.RESET)
HANG_AFTER_CHARGE = Answer(0, charged=True, line=Line.HANGS)

GATEWAY: dict[str, Script[Answer]] = {
    "charges at once": Script((), CHARGED, 780),
    "busy twice": Script((BUSY, BUSY), CHARGED, 60),
    "too many once": Script((TOO_MANY,), CHARGED, 50),
    "broken once": Script((BROKEN,), CHARGED, 30),
    "resets once": Script((RESET,), CHARGED, 18),
    "charges, then resets": Script((RESET_AFTER_CHARGE,), CHARGED, 14),
    "charges, then hangs": Script((HANG_AFTER_CHARGE,), CHARGED, 10),
    "card refused": Script((), CARD_REFUSED, 18),
    "unknown order": Script((), UNKNOWN_ORDER, 10),
    "broken for ever": Script((), BROKEN, 10),
}

ACCEPTED, GREYLISTED, NO_SUCH_MAILBOX = 250, 451, 550

MAILBOX: dict[str, Script[int]] = {
    "accepts": Script((), ACCEPTED, 850),
    "greylists once": Script((GREYLISTED,), ACCEPTED, 100),
    "has no such mailbox": Script((), NO_SUCH_MAILBOX, 50),
}


def draw(seed: int, *about: object) -> float:
    """A number in [0, 1) that depends on the arguments only, the same in every process and release.

    >>> draw(7, "gateway", "01-000001") == draw(7, "gateway", "01-000001") != draw(8, "gateway", "01-000001")
    True
    """
    text = "|".join(str(part) for part in (seed, *about))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def pick(scripts: Mapping[str, Script[A]], at: float) -> str:
    """The name of the script that owns the point ``at`` of [0, 1).

    >>> pick(GATEWAY, 0.0), pick(GATEWAY, 0.9999)
    ('charges at once', 'broken for ever')
    """
    left = at * sum(script.share for script in scripts.values())
    for name, script in scripts.items():
        left -= script.share
        if left < 0:
            return name
    return name


def gateway_script(seed: int, order_number: str) -> str:
    """The name of the gateway's script for an order."""
    return pick(GATEWAY, draw(seed, "gateway", order_number))


def gateway_answer(seed: int, order_number: str, asked: int) -> Answer:
    """What the gateway answers when it is asked about an order for the ``asked``-th time, from 1."""
    return GATEWAY[gateway_script(seed, order_number)].answer(asked)


def is_charged(seed: int, order_number: str) -> bool:
    """Whether an order is charged in the end."""
    return GATEWAY[gateway_script(seed, order_number)].later.charged


def mailbox_script(seed: int, recipient: str) -> str:
    """The name of the mail server's script for a recipient."""
    return pick(MAILBOX, draw(seed, "mailbox", recipient))


def mailbox_answer(seed: int, recipient: str, asked: int) -> int:
    """The SMTP code for a recipient who is named for the ``asked``-th time, from 1."""
    return MAILBOX[mailbox_script(seed, recipient)].answer(asked)


def is_delivered(seed: int, recipient: str) -> bool:
    """Whether mail to a recipient arrives in the end."""
    return MAILBOX[mailbox_script(seed, recipient)].later == ACCEPTED
